"""The adapter to Stripe, over its official SDK: a Checkout Session for each payment.

Source of the calls: Stripe's API reference, "Checkout Sessions", "Refunds", "Idempotent
requests". What its objects mean to us is in stripe_events.py.
"""

import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from typing import Any

import stripe
from stripe.params.checkout import SessionCreateParams

from mesh.clock import Clock
from mesh.money import Money
from payment_svc.providers import amounts, fields, signatures
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
)
from payment_svc.providers.stripe import events

NAME = "stripe"

_SIGNATURE_HEADER = "stripe-signature"
_MAX_DESCRIPTION = 250
_PAGE = 100
_MAX_PAGES = 100
# Of one payment: more refunds than this are looked for in `movements` only.
_MAX_REFUNDS = 100


class StripeProvider:
    """Implements payment_svc.providers.Provider."""

    def __init__(
        self,
        *,
        secret_key: str,
        webhook_secrets: Sequence[str],
        api_base: str | None,
        return_url: str,
        clock: Clock,
    ) -> None:
        self._http = stripe.HTTPXClient(timeout=CALL_SECONDS)
        self._api = stripe.StripeClient(
            secret_key,
            base_addresses={"api": api_base} if api_base else {},
            http_client=self._http,
            # Repeated by us alone, under the same key, so that limits and breaker see each call.
            max_network_retries=0,
        ).v1
        self._secrets = tuple(webhook_secrets)
        self._return_url = return_url
        self._clock = clock

    async def close(self) -> None:
        await self._http.close_async()  # type: ignore[no-untyped-call] # the SDK's

    async def create_session(self, order: Order) -> Session:
        session = await self._open(order)
        return Session(session["id"], session["url"] or "")

    async def void(self, order: Order, reference: str | None) -> Voided | Captured:
        if reference is None:
            # Opened or not, the same key gives the one session that there can be.
            reference = (await self._open(order))["id"]
        # Refused: it is over already; which way decides.
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
            order.payment_id, None, self._clock(), fields.text_or(intent["status"], "not_captured")
        )

    async def refund(self, order: RefundOrder) -> RefundProcessed | RefundRefused | None:
        if order.attempt > 1:
            # Keys are forgotten after a day, and the answer to one never changes: look first.
            for done in await self._refunds(order.capture_reference):
                if events.is_refund(done, order):
                    return events.refund_report(done)
        try:
            async with _calling():
                refund = await self._api.refunds.create_async(
                    {
                        "payment_intent": order.capture_reference,
                        "amount": _amount(order.amount),
                        "metadata": {
                            "refund_id": str(order.refund_id),
                            "payment_id": str(order.payment_id),
                            "refusals": str(order.refusals),
                        },
                    },
                    {"idempotency_key": order.idempotency_key},
                )
        except ProviderRefusedError as error:
            return RefundRefused(
                order.payment_id,
                order.session_reference,
                self._clock(),
                order.refund_id,
                order.refusals,
                error.code,
            )
        return events.refund_report(refund.to_dict())

    async def inspect(self, order: Order, reference: str) -> Sequence[ProviderReport]:
        session = await self._session(reference)
        reports = events.reports_of(session, self._clock())
        for report in list(reports):
            if isinstance(report, Captured):
                found = map(events.refund_report, await self._refunds(report.capture_reference))
                reports += [each for each in found if each is not None]
        return reports

    async def movements(self, *, since: datetime, until: datetime) -> Sequence[Movement]:
        created = {"gte": int(since.timestamp()), "lt": int(until.timestamp())}
        found: list[Movement] = []
        charges = self._api.charges.list_async
        async for charge in _pages(
            charges, {"created": created, "expand": ["data.balance_transaction"]}
        ):
            taken = events.charge_captured(charge)
            if taken is not None:
                found.append(Movement.of(taken))
        async for refund in _pages(self._api.refunds.list_async, {"created": created}):
            back = events.refund_report(refund)
            if isinstance(back, RefundProcessed):
                found.append(Movement.of(back))
        return found

    def step_minor(self, currency_code: str) -> int:
        return amounts.STRIPE.step_minor(currency_code)

    def read_webhook(
        self, body: bytes, headers: Mapping[str, str], *, now: datetime
    ) -> WebhookEvent:
        signatures.verify(body, headers.get(_SIGNATURE_HEADER), secrets=self._secrets, now=now)
        try:
            return events.read(json.loads(body))
        except fields.UNREADABLE_ERRORS:
            return fields.unreadable(body)

    async def _open(self, order: Order) -> dict[str, Any]:
        async with _calling():
            session = await self._api.checkout.sessions.create_async(
                self._terms(order), {"idempotency_key": f"{order.payment_id}:open"}
            )
        return session.to_dict()

    def _terms(self, order: Order) -> SessionCreateParams:
        """What is opened, the same each time: else its idempotency key would be refused."""
        # The address of the gateway when the shop gave none: Stripe requires one.
        back = order.success_url or self._return_url
        metadata = {"payment_id": str(order.payment_id), "booking_id": str(order.booking_id)}
        name = (order.description or "Booking")[:_MAX_DESCRIPTION]
        return {
            "mode": "payment",
            # Cards are decided while the customer waits; others take days.
            "allowed_payment_method_types": ["card"],
            "client_reference_id": str(order.payment_id),
            "line_items": [
                {
                    "quantity": 1,
                    "price_data": {
                        "currency": order.amount.currency_code.lower(),
                        "unit_amount": _amount(order.amount),
                        "product_data": {"name": name},
                    },
                }
            ],
            "metadata": metadata,
            "payment_intent_data": {"metadata": metadata, "description": name},
            "success_url": back,
            "cancel_url": order.cancel_url or back,
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


def _amount(money: Money) -> int:
    try:
        return amounts.STRIPE.to_provider(money)
    except amounts.UnrepresentableError as error:
        raise ProviderRefusedError(NAME, "amount_not_representable") from error


async def _pages(call: Any, params: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """All objects of a list, page by page, newest first."""
    after: dict[str, Any] = {}
    for _ in range(_MAX_PAGES):
        async with _calling():
            page = await call({**params, "limit": _PAGE, **after})
        for one in page.data:
            yield one.to_dict()
        if not page.has_more or not page.data:
            return
        after = {"starting_after": page.data[-1].id}
    raise ProviderError(NAME, "too_many_pages")


@asynccontextmanager
async def _calling() -> AsyncIterator[None]:
    """Stripe's errors as ours: refused for good, or not known."""
    try:
        yield
    except (stripe.InvalidRequestError, stripe.CardError) as error:
        # 409 is a call under the same key that still runs.
        if error.http_status == 409:
            raise ProviderError(NAME, "in_progress") from error
        raise ProviderRefusedError(NAME, error.code or "invalid_request") from error
    except stripe.StripeError as error:
        raise ProviderError(NAME, error.code or type(error).__name__) from error
