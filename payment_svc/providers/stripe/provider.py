"""The adapter to Stripe over its official SDK: a Checkout Session for each payment.

Source of the calls: Stripe's API reference, "Checkout Sessions", "Refunds", "Idempotent
requests". events.py reads Stripe's objects.
"""

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from typing import Any

import stripe
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
        session = await self._open(order)
        return Session(session["id"], session["url"] or "")

    async def void(self, order: Order, reference: str | None) -> Voided | Captured:
        if reference is None:
            # The same key returns the session of an earlier call, or opens it.
            reference = (await self._open(order))["id"]
        # Refused: the session is closed already. Its state decides.
        with suppress(ProviderRefusedError):
            async with _calling():
                await self._api.checkout.sessions.expire_async(reference)
        session = await self._session(reference)
        paid = events.captured_of(session)
        if paid is not None:
            return paid
        if session["status"] != "expired":
            raise ProviderError(NAME, "not_decided")
        return Voided(order.payment_id, reference, self._clock())

    async def capture(self, order: Order, authorization_reference: str) -> Captured | Failed:
        try:
            async with _calling():
                answer = await self._api.payment_intents.capture_async(
                    authorization_reference,
                    options={"idempotency_key": f"{order.payment_id}:capture"},
                )
            intent = answer.to_dict()
        except ProviderRefusedError:
            async with _calling():
                answer = await self._api.payment_intents.retrieve_async(
                    authorization_reference, {"expand": ["latest_charge.balance_transaction"]}
                )
            intent = answer.to_dict()
        if intent["status"] == "succeeded":
            return events.intent_captured(intent, None)
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
        return ended(events.refund_report(refund.to_dict()))

    async def inspect(self, order: Order, reference: str) -> Sequence[ProviderReport]:
        session = await self._session(reference)
        reports = events.reports_of(session, self._clock())
        for report in list(reports):
            if isinstance(report, Captured):
                refunds = await self._refunds(report.capture_reference)
                reports += map(events.refund_report, refunds)
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
                movements.append(Movement.of(capture))
        async for refund in _pages(self._api.refunds.list_async, {"created": created}):
            report = events.refund_report(refund)
            if isinstance(report, RefundProcessed):
                movements.append(Movement.of(report))
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
        async with _calling():
            session = await self._api.checkout.sessions.create_async(
                self._parameters(order), {"idempotency_key": f"{order.payment_id}:open"}
            )
        return session.to_dict()

    def _parameters(self, order: Order) -> SessionCreateParams:
        """The same for each call: Stripe rejects a key with other parameters."""
        # Stripe requires a URL, also when the order has none.
        success_url = order.success_url or self._return_url
        name = (order.description or "Booking")[:_MAX_DESCRIPTION]
        return {
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
