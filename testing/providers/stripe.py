"""A stand-in for Stripe's HTTP API: Checkout Sessions, refunds, lists, signed events.

Follows Stripe's API reference: bracketed form fields, idempotency keys that are stored with
their request, errors with type and code.
"""

import itertools
from typing import Any
from urllib.parse import parse_qsl

import stripe as sdk

from testing.providers.server import Answer, Entry, Objects, Request, StandIn

SECRET_KEY = "sk_test_stand_in"
WEBHOOK_SECRET = "whsec_stand_in"
ZERO_DECIMAL = set("BIF CLP DJF GNF JPY KMF KRW MGA PYG RWF VND VUV XAF XOF XPF".lower().split())
THREE_DECIMAL = {"bhd", "jod", "kwd", "omr", "tnd"}
FEE_PERCENT = 2


class StripeStandIn(StandIn):
    """Keeps sessions, intents and refunds as Stripe does. `pay` is the customer's payment."""

    opening_path = "/checkout/sessions"
    closed_status = "expired"

    def __init__(self) -> None:
        super().__init__()
        self.sessions: Objects = {}
        self.intents: Objects = {}
        self.charges: Objects = {}
        self._keys: dict[str, tuple[Any, int, dict[str, Any]]] = {}
        self._numbers = itertools.count(1)

    @property
    def opened(self) -> Objects:
        return self.sessions

    # Actions of customers, banks and dashboard users.

    def pay(self, reference: str, *, declined: str | None = None) -> None:
        with self.lock:
            # The intent of an embedded payment has no session.
            session = self.sessions.get(reference)
            if session is not None and session["status"] != "open":
                raise ValueError(f"the session is {session['status']}")
            intent = self.intents[reference] if session is None else self._intent_of(session)
            charge = self._charge(intent, succeeded=declined is None)
            if declined is not None:
                intent["status"] = "requires_payment_method"
                intent["last_payment_error"] = {"code": "card_declined", "decline_code": declined}
                self._event("payment_intent.payment_failed", intent)
                return
            self._succeed(session, intent, charge)

    def dispute(
        self,
        reference: str,
        *,
        reason: str,
        end: str | None = None,
        status: str = "needs_response",
    ) -> None:
        with self.lock:
            intent = self.intents[self.sessions[reference]["payment_intent"]]
            kind = "created" if end is None else "closed"
            self._event(
                f"charge.dispute.{kind}",
                {
                    "id": f"dp_{intent['id']}",
                    "object": "dispute",
                    "payment_intent": intent["id"],
                    "amount": intent["amount"],
                    "currency": intent["currency"],
                    "reason": reason,
                    "status": end or status,
                },
            )

    def refund_in_dashboard(self, reference: str, amount: int) -> None:
        with self.lock:
            intent_id = self.sessions[reference]["payment_intent"]
            self._refund({"payment_intent": intent_id, "amount": amount})

    def finish_refunds(self, *, succeed: bool) -> None:
        with self.lock:
            for refund in self.refunds.values():
                if refund["status"] == "pending":
                    refund["status"] = "succeeded" if succeed else "failed"
                    if succeed:
                        self._book("REFUND", refund)
                    else:
                        charge = self.charges[refund["charge"]]
                        charge["amount_refunded"] -= refund["amount"]
                        refund["failure_reason"] = "expired_or_canceled_card"
                    self._event("refund.updated", refund)

    def return_refunds(self) -> None:
        with self.lock:
            for refund in self.refunds.values():
                if refund["status"] == "succeeded":
                    self.charges[refund["charge"]]["amount_refunded"] -= refund["amount"]
                    refund |= {"status": "failed", "failure_reason": "lost_or_stolen_card"}
                    self._event("refund.failed", refund)

    def inquire(self, reference: str, *, is_closed: bool = False) -> None:
        end = "warning_closed" if is_closed else None
        self.dispute(reference, reason="general", end=end, status="warning_needs_response")

    def forget_keys(self) -> None:
        with self.lock:
            self._keys.clear()

    # The API.

    def parse(self, body: bytes, content_type: str) -> dict[str, Any]:
        if content_type != "application/x-www-form-urlencoded":
            self.violations.append(f"content type {content_type}")
        return dict(parse_qsl(body.decode(), keep_blank_values=True, strict_parsing=True))

    def throttled(self) -> dict[str, Any]:
        return _error("invalid_request_error", "rate_limit", "Too many requests")

    def headers_for(
        self, event_id: str, body: bytes, *, secret: str | None = None
    ) -> dict[str, str]:
        signed = sdk.WebhookSignature.generate_signature_header(
            body.decode(), secret or WEBHOOK_SECRET, int(self.clock())
        )
        return {"stripe-signature": signed}

    def answer(self, request: Request) -> dict[str, Any]:
        if request.headers.get("authorization") != f"Bearer {SECRET_KEY}":
            raise Answer(401, _error("invalid_request_error", None, "Invalid API Key"))
        if "stripe-version" not in request.headers:
            self.violations.append("no Stripe-Version")
        if request.method == "GET":
            return self._get(request)
        key = request.headers.get("idempotency-key")
        if key is None:
            self.violations.append(f"no Idempotency-Key: {request.path}")
            raise Answer(400, _error("invalid_request_error", None, "no key"))
        content = (request.path, sorted(request.body.items()))
        if key in self._keys:
            earlier, status, body = self._keys[key]
            if earlier != content:
                raise Answer(400, _error("idempotency_error", None, "other parameters"))
            if status != 200:
                raise Answer(status, body)
            return body
        try:
            body = self._post(request)
        except Answer as refusal:
            self._keys[key] = (content, refusal.status, refusal.body)
            raise
        self._keys[key] = (content, 200, dict(body))
        return body

    def _post(self, request: Request) -> dict[str, Any]:
        match request.path.split("/")[2:]:
            case ["checkout", "sessions"]:
                return self._open(request.body)
            case ["checkout", "sessions", session_id, "expire"]:
                session = _get(self.sessions, session_id)
                if session["status"] != "open":
                    raise Answer(400, _error("invalid_request_error", None, "not open"))
                session |= {"status": "expired", "url": None}
                self._event("checkout.session.expired", session)
                return session
            case ["payment_intents"]:
                return self._open_intent(request.body)
            case ["payment_intents", intent_id, "cancel"]:
                intent = _get(self.intents, intent_id)
                if intent["status"] != "requires_payment_method":
                    raise Answer(
                        400, _error("invalid_request_error", "payment_intent_unexpected_state", "")
                    )
                intent["status"] = "canceled"
                self._event("payment_intent.canceled", intent)
                return intent
            case ["payment_intents", intent_id, "capture"]:
                intent = _get(self.intents, intent_id)
                raise Answer(
                    400,
                    _error("invalid_request_error", "payment_intent_unexpected_state", "")
                    | {"payment_intent": intent["id"]},
                )
            case ["refunds"]:
                return self._refund(request.body)
        raise Answer(404, _error("invalid_request_error", None, f"no such URL {request.path}"))

    def _get(self, request: Request) -> dict[str, Any]:
        match request.path.split("/")[2:]:
            case ["checkout", "sessions", session_id]:
                return self._expanded(_get(self.sessions, session_id))
            case ["payment_intents", intent_id]:
                return self._expanded_intent(_get(self.intents, intent_id))
            case ["refunds"]:
                return self._page(self.refunds, request.query)
            case ["charges"]:
                page = self._page(self.charges, request.query)
                if request.query.get("expand[0]") == "data.balance_transaction":
                    page["data"] = [self._with_fee(charge) for charge in page["data"]]
                return page
        raise Answer(404, _error("invalid_request_error", None, f"no such URL {request.path}"))

    def _open(self, form: dict[str, Any]) -> dict[str, Any]:
        price = "line_items[0][price_data]"
        required = [
            "mode",
            "success_url",
            "client_reference_id",
            "line_items[0][quantity]",
            f"{price}[currency]",
            f"{price}[unit_amount]",
            f"{price}[product_data][name]",
            "metadata[payment_id]",
            "payment_intent_data[metadata][payment_id]",
        ]
        self.violations += [f"without {name}" for name in required if not form.get(name)]
        currency, amount = form[f"{price}[currency]"], int(form[f"{price}[unit_amount]"])
        if currency in THREE_DECIMAL and amount % 10:
            raise Answer(400, _error("invalid_request_error", "parameter_invalid_integer", ""))
        if amount < 50 and currency not in ZERO_DECIMAL:
            raise Answer(400, _error("invalid_request_error", "amount_too_small", ""))
        session_id = f"cs_test_{next(self._numbers)}"
        session = {
            "id": session_id,
            "object": "checkout.session",
            "url": f"https://checkout.stripe.test/{session_id}",
            "status": "open",
            "payment_status": "unpaid",
            "payment_intent": None,
            "amount_total": amount,
            "currency": currency,
            "client_reference_id": form["client_reference_id"],
            "metadata": _metadata(form, "metadata"),
            "intent_metadata": _metadata(form, "payment_intent_data[metadata]"),
            "created": int(self.clock()),
        }
        self.sessions[session_id] = session
        return session

    def _open_intent(self, form: dict[str, Any]) -> dict[str, Any]:
        if form.get("allowed_payment_method_types[0]") != "card" or not form.get(
            "metadata[payment_id]"
        ):
            self.violations.append("an intent without its method or payment_id")
        intent_id = f"pi_{next(self._numbers)}"
        self.intents[intent_id] = self._new_intent(
            intent_id, int(form["amount"]), form["currency"], _metadata(form, "metadata")
        )
        return self.intents[intent_id] | {"client_secret": f"{intent_id}_secret_stand_in"}

    def _new_intent(
        self, intent_id: str, amount: int, currency: str, metadata: dict[str, str]
    ) -> dict[str, Any]:
        return {
            "id": intent_id,
            "object": "payment_intent",
            "amount": amount,
            "amount_received": 0,
            "currency": currency,
            "metadata": metadata,
            "status": "requires_payment_method",
            "payment_method_types": ["card"],
            "latest_charge": None,
            "last_payment_error": None,
            "created": int(self.clock()),
        }

    def _refund(self, form: dict[str, Any]) -> dict[str, Any]:
        intent = _get(self.intents, form["payment_intent"])
        charge = self.charges[intent["latest_charge"]]
        amount = int(form["amount"])
        if amount > charge["amount_captured"] - charge["amount_refunded"]:
            raise Answer(400, _error("invalid_request_error", "charge_already_refunded", ""))
        charge["amount_refunded"] += amount
        refund = {
            "id": f"re_{next(self._numbers)}",
            "object": "refund",
            "amount": amount,
            "currency": charge["currency"],
            "charge": charge["id"],
            "payment_intent": intent["id"],
            "metadata": _metadata(form, "metadata"),
            "status": "pending" if self.has_slow_refunds else "succeeded",
            "created": int(self.clock()),
        }
        self.refunds[str(refund["id"])] = refund
        if refund["status"] == "succeeded":
            self._book("REFUND", refund)
        self._event("refund.created", refund)
        return dict(refund)

    def _intent_of(self, session: dict[str, Any]) -> dict[str, Any]:
        if session["payment_intent"] is None:
            intent_id = f"pi_{next(self._numbers)}"
            session["payment_intent"] = intent_id
            self.intents[intent_id] = self._new_intent(
                intent_id, session["amount_total"], session["currency"], session["intent_metadata"]
            )
        return self.intents[session["payment_intent"]]

    def _charge(self, intent: dict[str, Any], *, succeeded: bool) -> dict[str, Any]:
        charge = {
            "id": f"ch_{next(self._numbers)}",
            "object": "charge",
            "amount": intent["amount"],
            "amount_captured": intent["amount"] if succeeded else 0,
            "amount_refunded": 0,
            "captured": succeeded,
            "status": "succeeded" if succeeded else "failed",
            "currency": intent["currency"],
            "metadata": intent["metadata"],
            "payment_intent": intent["id"],
            "payment_method_details": {"type": "card", "card": {"brand": "visa"}},
            "balance_transaction": f"txn_{intent['id']}",
            "created": int(self.clock()),
        }
        self.charges[str(charge["id"])] = charge
        intent["latest_charge"] = charge["id"]
        return charge

    def _succeed(
        self, session: dict[str, Any] | None, intent: dict[str, Any], charge: dict[str, Any]
    ) -> None:
        intent |= {"status": "succeeded", "amount_received": intent["amount"]}
        intent["last_payment_error"] = None
        self._book("CAPTURE", charge)
        self._event("payment_intent.succeeded", intent)
        if session is not None:
            session |= {"status": "complete", "payment_status": "paid", "url": None}
            self._event("checkout.session.completed", session)

    def _book(self, kind: str, moved: dict[str, Any]) -> None:
        intent = self.intents[moved["payment_intent"]]
        self.ledger.append(
            Entry(
                kind,
                intent["metadata"]["payment_id"],
                intent["id"] if kind == "CAPTURE" else moved["id"],
                moved["amount"],
                moved["currency"].upper(),
            )
        )

    def _event(self, kind: str, element: dict[str, Any]) -> None:
        event_id = f"evt_{next(self._numbers)}"
        event = {
            "id": event_id,
            "object": "event",
            "type": kind,
            "created": int(self.clock()),
            "data": {"object": dict(element)},
        }
        self.emit(event_id, event)

    def _expanded(self, session: dict[str, Any]) -> dict[str, Any]:
        if session["payment_intent"] is None:
            return session
        intent = self.intents[session["payment_intent"]]
        return {**session, "payment_intent": self._expanded_intent(intent)}

    def _expanded_intent(self, intent: dict[str, Any]) -> dict[str, Any]:
        if intent["latest_charge"] is None:
            return intent
        return {**intent, "latest_charge": self._with_fee(self.charges[intent["latest_charge"]])}

    def _with_fee(self, charge: dict[str, Any]) -> dict[str, Any]:
        if not charge["captured"]:
            return {**charge, "balance_transaction": None}
        fee = charge["amount"] * FEE_PERCENT // 100
        return {**charge, "balance_transaction": {"fee": fee, "currency": charge["currency"]}}

    def _page(self, objects: Objects, query: dict[str, str]) -> dict[str, Any]:
        selected = list(reversed(objects.values()))
        if (intent := query.get("payment_intent")) is not None:
            selected = [element for element in selected if element["payment_intent"] == intent]
        if "created[gte]" in query:
            low, high = int(query["created[gte]"]), int(query["created[lt]"])
            selected = [element for element in selected if low <= element["created"] < high]
        if "starting_after" in query:
            ids = [element["id"] for element in selected]
            selected = selected[ids.index(query["starting_after"]) + 1 :]
        limit = int(query.get("limit", "10"))
        if not 1 <= limit <= 100:
            raise Answer(400, _error("invalid_request_error", "parameter_invalid_integer", ""))
        return {"object": "list", "data": selected[:limit], "has_more": len(selected) > limit}


def _get(objects: Objects, name: str) -> dict[str, Any]:
    if name not in objects:
        raise Answer(404, _error("invalid_request_error", "resource_missing", name))
    return objects[name]


def _metadata(form: dict[str, Any], prefix: str) -> dict[str, str]:
    return {
        name.removeprefix(f"{prefix}[").removesuffix("]"): value
        for name, value in form.items()
        if name.startswith(f"{prefix}[")
    }


def _error(kind: str, code: str | None, message: str) -> dict[str, Any]:
    return {"error": {"type": kind, "code": code, "message": message}}
