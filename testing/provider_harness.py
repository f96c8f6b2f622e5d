"""payment_svc's parts with Stripe or Razorpay as the provider, and the provider's other side.

Each adapter runs over its own SDK against a stand-in for the API that checks what is sent.
"""

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, TypeVar

from mesh.clock import system_clock
from mesh.db.database import Database
from mesh.db.jobs import Wakeup
from mesh.money import Money
from payment_svc import webhooks
from payment_svc.payments import Payment
from payment_svc.provider_calls import ProviderCalls
from payment_svc.providers.base import CALL_SECONDS, Order, Provider
from payment_svc.providers.razorpay.provider import NAME as RAZORPAY
from payment_svc.providers.razorpay.provider import RazorpayProvider
from payment_svc.providers.stripe.provider import NAME as STRIPE
from payment_svc.providers.stripe.provider import StripeProvider
from payment_svc.refunds import Refund
from payment_svc.webhooks import Outcome
from testing.payment_harness import Desk, an_order
from testing.providers import razorpay, stripe
from testing.providers.razorpay import RazorpayStandIn
from testing.providers.server import StandIn
from testing.providers.stripe import StripeStandIn

OLD_SECRET = "the webhooks' secret before"
# A hanging provider must not make the tests wait for long.
_CALL_SECONDS = 2

StandInT_co = TypeVar("StandInT_co", bound=StandIn, covariant=True)


@dataclass(frozen=True)
class Shop(Generic[StandInT_co]):
    """The service with one provider, and what its customers and that provider do."""

    name: str
    desk: Desk
    stand_in: StandInT_co
    provider: Provider
    cashier: ProviderCalls

    def giving_up_after(self, seconds: float) -> "Shop[StandInT_co]":
        """The same with another time limit of a call."""
        cashier = _cashier(self.name, self.desk, self.provider, call_seconds=seconds)
        return replace(self, cashier=cashier)

    def order(self, **changes: Any) -> Order:
        return an_order(provider=self.name, **changes)

    async def open(self, **changes: Any) -> Payment:
        return await self.cashier.open(self.order(**changes))

    def pay(self, payment: Payment, *, declined: str | None = None) -> None:
        """The customer pays on the provider's page; no webhook has come yet."""
        self.stand_in.pay(reference(payment), declined=declined)

    async def open_paid(self, **changes: Any) -> Payment:
        payment = await self.open(**changes)
        self.pay(payment)
        await self.deliver()
        return await self.desk.find(payment)

    async def deliver(self) -> list[Outcome]:
        """Brings every event that the provider ever announced, again and again."""
        return [await self.receive(event_id, body) for event_id, body in self.stand_in.events]

    async def receive(
        self, event_id: str, body: bytes, headers: Mapping[str, str] | None = None
    ) -> Outcome:
        """Takes one webhook, signed rightly unless headers are given."""
        if headers is None:
            headers = self.stand_in.headers_for(event_id, body)
        # The stand-in signs by the machine's clock.
        event = self.provider.read_webhook(body, headers, now=system_clock())
        async with self.desk.database.transaction() as connection:
            return await webhooks.receive(
                connection, provider=self.name, event=event, payload=body, now=self.desk.clock()
            )

    async def refund_due(self) -> None:
        """Carries out what is due, and what becomes due after failures."""
        for _ in range(30):
            # Beyond any pause between two tries.
            self.desk.clock.advance(301)
            if not await self.cashier.refund_due():
                return
        raise AssertionError("a refund never ends")

    async def refund(self, payment: Payment, amount: Money | None = None) -> Refund:
        refund = await self.desk.request_refund(payment, amount)
        await self.refund_due()
        return await self.desk.find_refund(refund)

    def moves(self) -> list[str]:
        """The kinds of all that the provider moved."""
        return [entry.kind for entry in self.stand_in.ledger]


def reference(payment: Payment) -> str:
    """The provider's id of a payment that was opened."""
    assert payment.provider_reference is not None
    return payment.provider_reference


@asynccontextmanager
async def stripe_shop(database: Database) -> AsyncIterator[Shop[StripeStandIn]]:
    name, desk, stand_in = STRIPE, _desk(database), StripeStandIn()
    with stand_in.running():
        provider = StripeProvider(
            secret_key=stripe.SECRET_KEY,
            webhook_secrets=[OLD_SECRET, stripe.WEBHOOK_SECRET],
            api_base=stand_in.url,
            return_url="http://gateway.test",
            clock=desk.clock,
        )
        # Its SDK's own time limit is fixed.
        cashier = _cashier(name, desk, provider, call_seconds=_CALL_SECONDS)
        try:
            yield Shop(name, desk, stand_in, provider, cashier)
        finally:
            await provider.close()
    assert stand_in.complaints == []


@asynccontextmanager
async def razorpay_shop(database: Database) -> AsyncIterator[Shop[RazorpayStandIn]]:
    name, desk, stand_in = RAZORPAY, _desk(database), RazorpayStandIn()
    with stand_in.running():
        provider = RazorpayProvider(
            key_id=razorpay.KEY_ID,
            key_secret=razorpay.KEY_SECRET,
            webhook_secrets=[OLD_SECRET, razorpay.WEBHOOK_SECRET],
            api_base=stand_in.url,
            clock=desk.clock,
            call_seconds=_CALL_SECONDS,
        )
        try:
            yield Shop(name, desk, stand_in, provider, _cashier(name, desk, provider))
        finally:
            await provider.close()
    assert stand_in.complaints == []


def _desk(database: Database) -> Desk:
    desk = Desk(database)
    # The stand-ins' times are compared with ours.
    desk.clock.now = datetime.now(UTC) + timedelta(seconds=1)
    return desk


def _cashier(
    name: str, desk: Desk, provider: Provider, *, call_seconds: float = CALL_SECONDS
) -> ProviderCalls:
    return ProviderCalls(
        desk.database, {name: provider}, desk.clock, Wakeup(), call_seconds=call_seconds
    )
