"""Test harness of payment_svc with Stripe or Razorpay as the provider.

Each adapter runs over its own SDK against a stand-in for the provider's API.
"""

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Generic, TypeVar

from mesh.clock import system_clock
from mesh.db.database import Database
from mesh.money import Money
from payment_svc.payments import Payment
from payment_svc.providers.base import Provider
from payment_svc.providers.razorpay.provider import NAME as RAZORPAY
from payment_svc.providers.razorpay.provider import RazorpayProvider
from payment_svc.providers.stripe.provider import NAME as STRIPE
from payment_svc.providers.stripe.provider import StripeProvider
from payment_svc.refunds import Refund
from payment_svc.webhooks import Outcome
from testing.payment_harness import CALL_SECONDS, Clock, PaymentHarness
from testing.providers import razorpay, stripe
from testing.providers.razorpay import RazorpayStandIn
from testing.providers.server import StandIn
from testing.providers.stripe import StripeStandIn

OLD_SECRET = "the webhooks' secret before"
SHORT_CALL_SECONDS = 2.0
"""Limit of a call that is expected to time out."""

StandInT = TypeVar("StandInT", bound=StandIn)
StandInT_co = TypeVar("StandInT_co", bound=StandIn, covariant=True)


class ProviderHarness(PaymentHarness, Generic[StandInT_co]):
    """payment_svc's parts with one provider, and what its customers and that provider do.

    `short_calls` reach the same provider with a short time limit, for calls that must time out.
    """

    def __init__(
        self,
        database: Database,
        *,
        name: str,
        provider: Provider,
        short_provider: Provider,
        clock: Clock,
        stand_in: StandInT_co,
    ) -> None:
        super().__init__(database, name=name, provider=provider, clock=clock)
        self.short_calls = self.calls_to(short_provider)
        self.stand_in = stand_in

    async def pay(self, payment: Payment, *, declined: str | None = None) -> None:
        self.stand_in.pay(reference(payment), declined=declined)

    async def deliver(self) -> list[Outcome]:
        return [await self.receive(event_id, body) for event_id, body in self.stand_in.events]

    async def receive(
        self, event_id: str, body: bytes, headers: Mapping[str, str] | None = None
    ) -> Outcome:
        """Receives one webhook, with a valid signature unless headers are given."""
        if headers is None:
            headers = self.stand_in.headers_for(event_id, body)
        # The stand-in signs by the machine's clock.
        return await self._receive(body, headers, now=system_clock())

    async def complete_refunds(self) -> None:
        """Carries out due refunds, and again those that become due after failures."""
        for _ in range(30):
            # Beyond any pause between two attempts.
            self.clock.advance(301)
            if not await self.calls.refund_due():
                return
        raise AssertionError("a refund is still due after 30 attempts")

    async def refund(self, payment: Payment, amount: Money | None = None) -> Refund:
        refund = await self.request_refund(payment, amount)
        await self.complete_refunds()
        return await self.find_refund(refund)

    def moves(self) -> list[str]:
        """The kinds of all money movements at the provider."""
        return [entry.kind for entry in self.stand_in.ledger]


def reference(payment: Payment) -> str:
    """The provider's id of a payment that was opened."""
    assert payment.provider_reference is not None
    return payment.provider_reference


def stripe_harness(
    database: Database,
) -> AbstractAsyncContextManager[ProviderHarness[StripeStandIn]]:
    stand_in = StripeStandIn()

    def adapter(clock: Clock, call_seconds: float) -> StripeProvider:
        return StripeProvider(
            secret_key=stripe.SECRET_KEY,
            webhook_secrets=[OLD_SECRET, stripe.WEBHOOK_SECRET],
            api_base=stand_in.url,
            return_url="http://gateway.test",
            clock=clock,
            call_seconds=call_seconds,
        )

    return _running(database, STRIPE, stand_in, adapter)


def razorpay_harness(
    database: Database,
) -> AbstractAsyncContextManager[ProviderHarness[RazorpayStandIn]]:
    stand_in = RazorpayStandIn()

    def adapter(clock: Clock, call_seconds: float) -> RazorpayProvider:
        return RazorpayProvider(
            key_id=razorpay.KEY_ID,
            key_secret=razorpay.KEY_SECRET,
            webhook_secrets=[OLD_SECRET, razorpay.WEBHOOK_SECRET],
            api_base=stand_in.url,
            clock=clock,
            call_seconds=call_seconds,
        )

    return _running(database, RAZORPAY, stand_in, adapter)


@asynccontextmanager
async def _running(
    database: Database,
    name: str,
    stand_in: StandInT,
    adapter: Callable[[Clock, float], StripeProvider | RazorpayProvider],
) -> AsyncIterator[ProviderHarness[StandInT]]:
    # A little ahead: the stand-in's times, by the machine's clock, are not in its future.
    clock = Clock(datetime.now(UTC) + timedelta(seconds=1))
    with stand_in.running():
        provider, short_provider = adapter(clock, CALL_SECONDS), adapter(clock, SHORT_CALL_SECONDS)
        try:
            yield ProviderHarness(
                database,
                name=name,
                provider=provider,
                short_provider=short_provider,
                clock=clock,
                stand_in=stand_in,
            )
        finally:
            # Ends answers that still hang: closing a provider waits for its calls.
            stand_in.stopping.set()
            await provider.close()
            await short_provider.close()
    assert stand_in.violations == []
