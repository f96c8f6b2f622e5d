"""The adapter to Stripe over its official SDK: a Checkout Session for each payment.

An embedded payment is a PaymentIntent, which the client confirms with Stripe's library.
Source of the calls: Stripe's API reference, "Checkout Sessions", "PaymentIntents", "Refunds",
"Idempotent requests". events.py reads Stripe's objects.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from typing import Any

import stripe
from stripe import RequestOptions
from stripe.params.checkout import SessionCreateParams

from mesh.clock import Clock
from mesh.money import AmountLimits
from payment_svc.providers import fields, signatures
from payment_svc.providers.amounts import STRIPE
from payment_svc.providers.base import (
    CALL_SECONDS,
    Captured,
    Failed,
    Movement,
    Order,
    ProviderError,
    ProviderRefusedError,
    ProviderReport,
    RefundOrder,
    RefundProcessed,
    RefundRefused,
    Session,
    Voided,
    WebhookEvent,
    ended,
    with_answer,
)
from payment_svc.providers.stripe import events

NAME = "stripe"

_SIGNATURE_HEADER = "stripe-signature"
_MAX_DESCRIPTION = 250
_PAGE = 100
_MAX_PAGES = 100
# Of one payment. Further refunds are found by `movements` only.
_MAX_REFUNDS = 100
# Error codes of refunds that are rejected again, however often they are repeated.
_FINAL_REFUSALS = frozenset({"charge_already_refunded"})


class StripeProvider:
    """Implements payment_svc.providers.base.Provider."""

    has_embedded = True

    def __init__(
        self,
        *,
        secret_key: str,
        webhook_secrets: Sequence[str],
        api_base: str | None,
        return_url: str,
        clock: Clock,
        call_seconds: float = CALL_SECONDS,
    ) -> None:
        self._http = stripe.HTTPXClient(timeout=call_seconds)
        self._api = stripe.StripeClient(
            secret_key,
            base_addresses={"api": api_base} if api_base else {},
            http_client=self._http,
            # payment_svc alone repeats calls: its circuit breaker counts each.
            max_network_retries=0,
        ).v1
        self._secrets = tuple(webhook_secrets)
        self._return_url = return_url
        self._clock = clock

    async def close(self) -> None:
        await self._http.close_async()  # type: ignore[no-untyped-call] # of the SDK

    async def create_session(self, order: Order) -> Session:
        opened = await self._open(order)
        if order.is_embedded:
            return Session(opened["id"], "", opened["client_secret"])
        return Session(opened["id"], opened["url"] or "")

    async def void(self, order: Order, reference: str | None) -> Voided | Captured:
        if reference is None:
            # The same key returns the session of an earlier call, or opens it.
            reference = (await self._open(order))["id"]
        # Refused: it is closed already. Its state decides.
        with suppress(ProviderRefusedError):
            async with _calling():
                if order.is_embedded:
                    await self._api.payment_intents.cancel_async(reference)
                else:
                    await self._api.checkout.sessions.expire_async(reference)
        for report in await self._reports(order, reference):
            if isinstance(report, Captured | Voided):
                return report
        raise ProviderError(NAME, "not_decided")

    async def capture(self, order: Order, authorization_reference: str) -> Captured | Failed:
        try:
            async with _calling():
                answer = await self._api.payment_intents.capture_async(
                    authorization_reference,
                    options={"idempotency_key": f"{order.payment_id}:capture"},
                )
            intent = answer.to_dict()
        except ProviderRefusedError:
            intent = await self._intent(authorization_reference)
        if intent["status"] == "succeeded":
            return with_answer(events.intent_captured(intent, None), intent)
        return Failed(
            order.payment_id,
            None,
            self._clock(),
            fields.text_or(intent["status"], "not_captured"),
            authorization_reference,
        )

    async def refund(self, order: RefundOrder) -> RefundProcessed | RefundRefused | None:
        if order.attempt > 1:
            # Stripe deletes keys after a day and repeats a key's stored answer, also a failure.
            for earlier in await self._refunds(order.capture_reference):
                if events.is_refund(earlier, order):
                    return ended(events.refund_report(earlier))
        try:
            async with _calling():
                refund = await self._api.refunds.create_async(
                    {
                        "payment_intent": order.capture_reference,
                        "amount": STRIPE.to_provider(order.amount),
                        "metadata": order.notes,
                    },
                    {"idempotency_key": order.idempotency_key},
                )
        except ProviderRefusedError as error:
            return RefundRefused.of(
                order,
                event_time=self._clock(),
                failure_code=error.code,
                is_final=error.code in _FINAL_REFUSALS,
            )
        return ended(with_answer(events.refund_report(refund.to_dict()), refund.to_dict()))

    async def inspect(self, order: Order, reference: str) -> Sequence[ProviderReport]:
        reports = await self._reports(order, reference)
        for report in list(reports):
            if isinstance(report, Captured):
                for refund in await self._refunds(report.capture_reference):
                    reports.append(with_answer(events.refund_report(refund), refund))
        return reports

    async def movements(self, *, since: datetime, until: datetime) -> Sequence[Movement]:
        created = {"gte": int(since.timestamp()), "lt": int(until.timestamp())}
        movements: list[Movement] = []
        charges = self._api.charges.list_async
        async for charge in _pages(
            charges, {"created": created, "expand": ["data.balance_transaction"]}
        ):
            capture = events.charge_captured(charge)
            if capture is not None:
                movements.append(Movement.of(with_answer(capture, charge)))
        async for refund in _pages(self._api.refunds.list_async, {"created": created}):
            report = events.refund_report(refund)
            if isinstance(report, RefundProcessed):
                movements.append(Movement.of(with_answer(report, refund)))
        return movements

    def step_minor(self, currency_code: str) -> int:
        return STRIPE.step_minor(currency_code)

    def limits(self, currency_code: str) -> AmountLimits | None:
        return STRIPE.limits(currency_code)

    def read_webhook(
        self, body: bytes, headers: Mapping[str, str], *, now: datetime
    ) -> WebhookEvent:
        signatures.verify(body, headers.get(_SIGNATURE_HEADER), secrets=self._secrets, now=now)
        return fields.read_event(body, events.read)

    async def _open(self, order: Order) -> dict[str, Any]:
        """The session, or the intent of an embedded payment.

        The parameters are the same for each call: Stripe rejects a key with others.
        """
        key: RequestOptions = {"idempotency_key": f"{order.payment_id}:open"}
        opened: Any
        async with _calling():
            if order.is_embedded:
                opened = await self._api.payment_intents.create_async(
                    {
                        "amount": STRIPE.to_provider(order.amount),
                        "currency": order.amount.currency_code.lower(),
                        "allowed_payment_method_types": ["card"],
                        "description": _name(order),
                        "metadata": {**order.notes, **events.EMBEDDED},
                    },
                    key,
                )
            else:
                opened = await self._api.checkout.sessions.create_async(
                    self._parameters(order), key
                )
        answer: dict[str, Any] = opened.to_dict()
        return answer

    def _parameters(self, order: Order) -> SessionCreateParams:
        # Stripe requires a URL, also when the order has none.
        success_url = order.success_url or self._return_url
        name = _name(order)
        parameters: SessionCreateParams = {
            "mode": "payment",
            # A card payment is decided at once; other methods take days.
            "allowed_payment_method_types": ["card"],
            "client_reference_id": str(order.payment_id),
            "line_items": [
                {
                    "quantity": 1,
                    "price_data": {
                        "currency": order.amount.currency_code.lower(),
                        "unit_amount": STRIPE.to_provider(order.amount),
                        "product_data": {"name": name},
                    },
                }
            ],
            "metadata": order.notes,
            "payment_intent_data": {"metadata": order.notes, "description": name},
            "success_url": success_url,
            "cancel_url": order.cancel_url or success_url,
        }
        if order.email:
            parameters["customer_email"] = order.email
        return parameters

    async def _reports(self, order: Order, reference: str) -> list[ProviderReport]:
        now = self._clock()
        if order.is_embedded:
            intent = await self._intent(reference)
            return [with_answer(r, intent) for r in events.reports_of_intent(intent, now)]
        session = await self._session(reference)
        return [with_answer(report, session) for report in events.reports_of(session, now)]

    async def _intent(self, reference: str) -> dict[str, Any]:
        async with _calling():
            intent = await self._api.payment_intents.retrieve_async(
                reference, {"expand": ["latest_charge.balance_transaction"]}
            )
        return intent.to_dict()

    async def _session(self, reference: str) -> dict[str, Any]:
        async with _calling():
            session = await self._api.checkout.sessions.retrieve_async(
                reference, {"expand": ["payment_intent.latest_charge.balance_transaction"]}
            )
        return session.to_dict()

    async def _refunds(self, intent: str) -> list[dict[str, Any]]:
        async with _calling():
            page = await self._api.refunds.list_async(
                {"payment_intent": intent, "limit": _MAX_REFUNDS}
            )
        return [refund.to_dict() for refund in page.data]


def _name(order: Order) -> str:
    return (order.description or "Booking")[:_MAX_DESCRIPTION]


async def _pages(call: Any, params: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """All objects of a list, page by page, newest first."""
    after: dict[str, Any] = {}
    for _ in range(_MAX_PAGES):
        async with _calling():
            page = await call({**params, "limit": _PAGE, **after})
        for element in page.data:
            yield element.to_dict()
        if not page.has_more or not page.data:
            return
        after = {"starting_after": page.data[-1].id}
    raise ProviderError(NAME, "too_many_pages")


@asynccontextmanager
async def _calling() -> AsyncIterator[None]:
    """Around a call of the SDK: its errors as ProviderError and ProviderRefusedError."""
    try:
        yield
    except (
        stripe.InvalidRequestError,
        stripe.CardError,
        # The account is closed, or the key is not its key.
        stripe.PermissionError,
        stripe.AuthenticationError,
    ) as error:
        # 409: a call with the same key is still running.
        if error.http_status == 409:
            raise ProviderError(NAME, "in_progress") from error
        raise ProviderRefusedError(NAME, error.code or "invalid_request") from error
    except stripe.StripeError as error:
        raise ProviderError(NAME, error.code or type(error).__name__) from error
