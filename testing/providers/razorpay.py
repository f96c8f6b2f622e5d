"""A stand-in for Razorpay's HTTP API: Payment Links, payments, refunds, signed events.

Follows Razorpay's API reference: JSON, basic authentication, one link per reference_id, refunds
by X-Refund-Idempotency, late authorisations.
"""

import base64
import hashlib
import hmac
import itertools
import json
import re
from typing import Any

from testing.providers.server import Answer, Entry, Objects, Request, StandIn

KEY_ID = "rzp_test_stand_in"
KEY_SECRET = "the secret of the key"
WEBHOOK_SECRET = "the secret of the webhooks"
FEE_PERCENT = 2


class RazorpayStandIn(StandIn):
    """Keeps links, payments and refunds as Razorpay does. `pay` is the customer's payment."""

    opening_path = "/payment_links"
    closed_status = "cancelled"

    def __init__(self) -> None:
        super().__init__()
        self.links: Objects = {}
        self.payments: Objects = {}
        self._keys: dict[str, tuple[Any, dict[str, Any]]] = {}
        self._numbers = itertools.count(1)

    @property
    def opened(self) -> Objects:
        return self.links

    # Actions of customers, banks and dashboard users.

    def pay(
        self, reference: str, *, declined: str | None = None, authorized_only: bool = False
    ) -> str:
        """An attempt to pay a link. With `authorized_only` the payment is not captured."""
        with self.lock:
            link = self.links[reference]
            if link["status"] != "created" and not authorized_only:
                raise ValueError(f"the link is {link['status']}")
            payment = self._new_payment(link)
            if declined is not None:
                payment |= {"status": "failed", "error_reason": declined}
                self._event("payment.failed", payment=payment)
            else:
                payment["status"] = "authorized"
                self._event("payment.authorized", payment=payment)
                if not authorized_only:
                    self._capture(payment)
            return str(payment["id"])

    def late_authorize(self, payment_id: str) -> None:
        """The bank authorises a failed attempt."""
        with self.lock:
            payment = self.payments[payment_id]
            payment |= {
                "status": "authorized",
                "error_reason": None,
                "created_at": int(self.clock()),
            }
            self._event("payment.authorized", payment=payment)

    def release_authorization(self, payment_id: str) -> None:
        """The authorisation was not captured in time."""
        with self.lock:
            self.payments[payment_id] |= {"status": "failed", "error_reason": "not_captured"}

    def dispute(
        self,
        reference: str,
        *,
        reason: str,
        end: str | None = None,
        phase: str = "chargeback",
    ) -> None:
        with self.lock:
            payment = self._paid(reference)
            dispute = {
                "id": f"disp_{payment['id']}",
                "payment_id": payment["id"],
                "amount": payment["amount"],
                "currency": payment["currency"],
                "reason_code": reason,
                "phase": phase,
                "amount_deducted": payment["amount"] if end == "lost" else 0,
                "status": end or "open",
            }
            self._event(f"payment.dispute.{end or 'created'}", payment=payment, dispute=dispute)

    def refund_in_dashboard(self, reference: str, amount: int) -> None:
        with self.lock:
            self._refund(self._paid(reference)["id"], {"amount": amount})

    def finish_refunds(self, *, succeed: bool) -> None:
        with self.lock:
            for refund in self.refunds.values():
                if refund["status"] == "pending":
                    refund["status"] = "processed" if succeed else "failed"
                    if succeed:
                        self._book("REFUND", self.payments[refund["payment_id"]], refund)
                    else:
                        self.payments[refund["payment_id"]]["amount_refunded"] -= refund["amount"]
                    self._event(f"refund.{refund['status']}", refund=refund)

    def return_refunds(self) -> None:
        with self.lock:
            for refund in self.refunds.values():
                if refund["status"] == "processed":
                    refund["status"] = "failed"
                    payment = self.payments[refund["payment_id"]]
                    payment["amount_refunded"] -= refund["amount"]
                    payment["status"] = "captured"
                    self._event("refund.failed", refund=refund)

    def inquire(self, reference: str, *, is_closed: bool = False) -> None:
        end = "closed" if is_closed else None
        self.dispute(reference, reason="general", end=end, phase="retrieval")

    def forget_keys(self) -> None:
        with self.lock:
            self._keys.clear()

    # The API.

    def parse(self, body: bytes, content_type: str) -> dict[str, Any]:
        if content_type != "application/json":
            self.violations.append(f"content type {content_type}")
        parsed = json.loads(body)
        return parsed if isinstance(parsed, dict) else {}

    def throttled(self) -> dict[str, Any]:
        return _error("Too many requests")

    def headers_for(
        self, event_id: str, body: bytes, *, secret: str | None = None
    ) -> dict[str, str]:
        key = (secret or WEBHOOK_SECRET).encode()
        signature = hmac.new(key, body, hashlib.sha256).hexdigest()
        return {"x-razorpay-signature": signature, "x-razorpay-event-id": event_id}

    def answer(self, request: Request) -> dict[str, Any]:
        expected = base64.b64encode(f"{KEY_ID}:{KEY_SECRET}".encode()).decode()
        if request.headers.get("authorization") != f"Basic {expected}":
            raise Answer(401, _error("Authentication failed"))
        return self._post(request) if request.method == "POST" else self._get(request)

    def _post(self, request: Request) -> dict[str, Any]:
        match request.path.split("/")[2:]:
            case ["payment_links"]:
                return self._open(request.body)
            case ["payment_links", link_id, "cancel"]:
                link = _get(self.links, link_id)
                if link["status"] != "created":
                    raise Answer(400, _error(f"link is {link['status']}"))
                link["status"] = "cancelled"
                self._event("payment_link.cancelled", payment_link=link)
                return link
            case ["payments", payment_id, "capture"]:
                payment = _get(self.payments, payment_id)
                if payment["status"] != "authorized":
                    raise Answer(400, _error("This payment has already been captured"))
                if request.body["amount"] != payment["amount"]:
                    raise Answer(400, _error("Capture amount must be equal to the amount"))
                if request.body["currency"] != payment["currency"]:
                    raise Answer(400, _error("currency mismatch"))
                self._capture(payment)
                return payment
            case ["payments", payment_id, "refund"]:
                key = request.headers.get("x-refund-idempotency", "")
                if not re.fullmatch("[A-Za-z0-9_-]{10,}", key):
                    self.violations.append(f"refund key {key!r}")
                content = (payment_id, request.body)
                if key in self._keys:
                    earlier, answer = self._keys[key]
                    if earlier != content:
                        raise Answer(400, _error("different request, same key"))
                    return answer
                answer = self._refund(payment_id, request.body)
                self._keys[key] = (content, dict(answer))
                return answer
        raise Answer(404, _error("The requested URL was not found"))

    def _get(self, request: Request) -> dict[str, Any]:
        match request.path.split("/")[2:]:
            case ["payment_links"]:
                reference_id = request.query.get("reference_id")
                return {"payment_links": _where(self.links, reference_id=reference_id)}
            case ["payment_links", link_id]:
                return _get(self.links, link_id)
            case ["orders", order_id, "payments"]:
                return _items(_where(self.payments, order_id=order_id))
            case ["payments", payment_id]:
                return _get(self.payments, payment_id)
            case ["payments", payment_id, "refunds"]:
                return _items(_where(self.refunds, payment_id=payment_id))
            case ["payments"]:
                return self._page(self.payments, request.query)
            case ["refunds"]:
                return self._page(self.refunds, request.query)
        raise Answer(404, _error("The requested URL was not found"))

    def _open(self, body: dict[str, Any]) -> dict[str, Any]:
        required = ["amount", "currency", "reference_id", "description", "notes"]
        self.violations += [f"without {name}" for name in required if not body.get(name)]
        if body.get("accept_partial") is not False:
            self.violations.append("partial payments are on")
        if len(body["reference_id"]) > 40:
            raise Answer(400, _error("reference_id is too long"))
        if _where(self.links, reference_id=body["reference_id"]):
            raise Answer(400, _error("payment link with given reference_id already exists"))
        if body["currency"] in {"KWD", "BHD", "OMR"} and body["amount"] % 10:
            raise Answer(400, _error("amount must end in 0"))
        if body["amount"] < 100 and body["currency"] == "INR":
            raise Answer(400, _error("The amount must be atleast INR 1.00"))
        link_id = f"plink_{next(self._numbers):014}"
        link = {
            "id": link_id,
            "amount": body["amount"],
            "currency": body["currency"],
            "reference_id": body["reference_id"],
            "notes": body["notes"],
            "short_url": f"https://rzp.test/i/{link_id}",
            "status": "created",
            "created_at": int(self.clock()),
        }
        self.links[link_id] = link
        return link

    def _paid(self, link_id: str) -> dict[str, Any]:
        """The attempt that paid a link."""
        attempts = _where(self.payments, order_id=self.links[link_id]["order_id"])
        return next(
            attempt for attempt in attempts if attempt["status"] in {"captured", "refunded"}
        )

    def _new_payment(self, link: dict[str, Any]) -> dict[str, Any]:
        link.setdefault("order_id", f"order_{link['id']}")
        payment_id = f"pay_{next(self._numbers):014}"
        payment = {
            "id": payment_id,
            "entity": "payment",
            "amount": link["amount"],
            "currency": link["currency"],
            "status": "created",
            "order_id": link["order_id"],
            # Like Razorpay: the link's notes are not copied, its id is in the description.
            "description": f"#{link['id'].removeprefix('plink_')}",
            "notes": [],
            "method": "upi",
            "amount_refunded": 0,
            "fee": None,
            "error_reason": None,
            "created_at": int(self.clock()),
        }
        self.payments[payment_id] = payment
        return payment

    def _capture(self, payment: dict[str, Any]) -> None:
        payment |= {"status": "captured", "fee": payment["amount"] * FEE_PERCENT // 100}
        (link,) = _where(self.links, order_id=payment["order_id"])
        self._book("CAPTURE", payment, payment)
        self._event("payment.captured", payment=payment)
        if link["status"] == "created":
            link["status"] = "paid"
            self._event("payment_link.paid", payment=payment, payment_link=link)

    def _refund(self, payment_id: str, body: dict[str, Any]) -> dict[str, Any]:
        payment = _get(self.payments, payment_id)
        if payment["status"] not in {"captured", "refunded"}:
            raise Answer(400, _error("The payment status should be captured"))
        if body["amount"] > payment["amount"] - payment["amount_refunded"]:
            raise Answer(400, _error("The total refund amount is greater than the payment"))
        payment["amount_refunded"] += body["amount"]
        if payment["amount_refunded"] == payment["amount"]:
            payment["status"] = "refunded"
        refund = {
            "id": f"rfnd_{next(self._numbers):014}",
            "entity": "refund",
            "amount": body["amount"],
            "currency": payment["currency"],
            "payment_id": payment_id,
            "notes": body.get("notes", []),
            "status": "pending" if self.has_slow_refunds else "processed",
            "created_at": int(self.clock()),
        }
        self.refunds[str(refund["id"])] = refund
        self._event("refund.created", payment=payment, refund=refund)
        if refund["status"] == "processed":
            self._book("REFUND", payment, refund)
            self._event("refund.processed", payment=payment, refund=refund)
        return refund

    def _book(self, kind: str, payment: dict[str, Any], moved: dict[str, Any]) -> None:
        (link,) = _where(self.links, order_id=payment["order_id"])
        self.ledger.append(
            Entry(kind, link["reference_id"], moved["id"], moved["amount"], moved["currency"])
        )

    def _event(self, kind: str, **entities: dict[str, Any]) -> None:
        event = {
            "entity": "event",
            "event": kind,
            "contains": list(entities),
            "payload": {name: {"entity": dict(entity)} for name, entity in entities.items()},
            "created_at": int(self.clock()),
        }
        self.emit(f"evt_{next(self._numbers):014}", event)

    def _page(self, objects: Objects, query: dict[str, str]) -> dict[str, Any]:
        low, high = int(query["from"]), int(query["to"])
        newest_first = reversed(objects.values())
        selected = [entity for entity in newest_first if low <= entity["created_at"] <= high]
        count, skip = int(query["count"]), int(query["skip"])
        if count > 100:
            raise Answer(400, _error("The count may not be greater than 100"))
        return _items(selected[skip : skip + count])


def _get(objects: Objects, name: str) -> dict[str, Any]:
    if name not in objects:
        raise Answer(400, _error("The id provided does not exist"))
    return objects[name]


def _where(objects: Objects, **fields: object) -> list[dict[str, Any]]:
    return [
        entity
        for entity in objects.values()
        if all(entity.get(name) == value for name, value in fields.items())
    ]


def _items(items: list[dict[str, Any]]) -> dict[str, Any]:
    return {"entity": "collection", "count": len(items), "items": items}


def _error(description: str) -> dict[str, Any]:
    return {"error": {"code": "BAD_REQUEST_ERROR", "description": description}}
