"""Test harness of payment_svc: its parts over one database, the sandbox, and a clock to set.

provider_harness.py has the same with Stripe or Razorpay, payment_server.py the whole process.
"""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from boxoffice.payments.v1.payment_event_service_pb2 import PaymentEvent
from mesh.db.database import Database
from mesh.db.jobs import Wakeup
from mesh.ids import new_id
from mesh.money import Money
from payment_svc import captures, payment_reports, payments, refunds, tables, webhooks
from payment_svc.ledger import Account
from payment_svc.payment_reports import Outcome
from payment_svc.payments import Payment
from payment_svc.provider_calls import ProviderCalls
from payment_svc.providers.base import Captured, Failed, Order, Provider, ProviderReport
from payment_svc.providers.sandbox import NAME, bank, ledger, signature
from payment_svc.providers.sandbox.ledger import Entry
from payment_svc.providers.sandbox.provider import SandboxProvider
from payment_svc.refunds import Refund

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
SECRET = "the sandbox's webhook secret"
GATEWAY_URL = "http://gateway.test"
PRICE = Money(150_000, "INR")
CALL_SECONDS = 60.0
"""Limit of a call that is expected to succeed, also on a slow machine."""


class Clock:
    """A clock that stands still until a test advances it."""

    def __init__(self, now: datetime = NOW) -> None:
        self.now = now

    def __call__(self) -> datetime:
        return self.now

    def advance(self, seconds: float) -> None:
        self.now += timedelta(seconds=seconds)


def an_order(
    *,
    payment_id: UUID | None = None,
    customer_id: UUID | None = None,
    amount: Money = PRICE,
    provider: str = NAME,
    description: str = "2 × North Stand, Monsoon Nights",
    success_url: str = "",
    cancel_url: str = "",
    event_id: UUID | None = None,
    **terms: Any,
) -> Order:
    return Order(
        payment_id=payment_id or new_id(),
        booking_id=new_id(),
        customer_id=customer_id or new_id(),
        provider=provider,
        amount=amount,
        description=description,
        success_url=success_url,
        cancel_url=cancel_url,
        event_id=event_id,
        **terms,
    )


def a_capture(
    payment: Payment, reference: str = "ch_1", *, amount: Money | None = None, at: float = 0
) -> Captured:
    """The provider's report of a capture, `at` seconds after NOW."""
    return Captured(
        payment.payment_id,
        payment.provider_reference,
        NOW + timedelta(seconds=at),
        reference,
        amount or payment.amount,
        "card",
    )


def a_failure(payment: Payment, code: str = "card_declined", *, at: float = 0) -> Failed:
    """The provider's report of a declined attempt, `at` seconds after NOW."""
    return Failed(payment.payment_id, payment.provider_reference, NOW + timedelta(seconds=at), code)


class PaymentHarness(ABC):
    """payment_svc's parts over one database and one provider, and what they have stored."""

    def __init__(self, database: Database, *, name: str, provider: Provider, clock: Clock) -> None:
        self.database = database
        self.name = name
        self.provider = provider
        self.clock = clock
        self.calls = self.calls_to(provider)

    def calls_to(self, provider: Provider, *, call_seconds: float = CALL_SECONDS) -> ProviderCalls:
        """The service's calls, with another provider in place of the harness's or another limit."""
        return ProviderCalls(
            self.database, {self.name: provider}, self.clock, Wakeup(), call_seconds=call_seconds
        )

    @abstractmethod
    async def pay(self, payment: Payment) -> None:
        """The customer pays on the provider's page. No webhook is delivered."""

    @abstractmethod
    async def deliver(self) -> list[webhooks.Outcome]:
        """Delivers every webhook that the provider ever queued, again on each call."""

    def order(self, **changes: Any) -> Order:
        return an_order(**{"provider": self.name, **changes})

    async def open(self, **changes: Any) -> Payment:
        return await self.calls.open(self.order(**changes))

    async def open_paid(self, **changes: Any) -> Payment:
        """A payment that was paid on its page, with the webhook received."""
        payment = await self.open(**changes)
        await self.pay(payment)
        await self.deliver()
        return await self.find(payment)

    async def apply_reports(self, *reports: ProviderReport) -> list[Outcome]:
        """Applies reports, each in a transaction of its own."""
        outcomes = []
        for report in reports:
            async with self.database.transaction() as connection:
                outcomes.append(
                    await payment_reports.apply_report(
                        connection, provider=self.name, report=report, now=self.clock()
                    )
                )
        return outcomes

    async def request_refund(
        self,
        payment: Payment,
        amount: Money | None = None,
        *,
        reason: str = "",
        refund_id: UUID | None = None,
    ) -> Refund:
        async with self.database.transaction() as connection:
            return await refunds.request(
                connection,
                payment_id=payment.payment_id,
                amount=amount,
                reason=reason,
                refund_id=refund_id,
                step_minor=self.calls.step_minor,
                now=self.clock(),
            )

    async def find(self, payment: Payment) -> Payment:
        return await self.find_by_id(payment.payment_id)

    async def find_by_id(self, payment_id: UUID) -> Payment:
        async with self.database.transaction() as connection:
            return await payments.find(connection, payment_id=payment_id, owner=None)

    async def find_refund(self, refund: Refund) -> Refund:
        async with self.database.transaction() as connection:
            return await refunds.find(connection, refund_id=refund.refund_id, owner=None)

    async def verdicts(self, payment: Payment) -> dict[captures.Verdict, tuple[Money, Money]]:
        """The captured and the refunded amount of the payment's captures, by verdict."""
        async with self.database.transaction() as connection:
            rows = await connection.execute(
                sa.select(tables.captures).where(tables.captures.c.payment_id == payment.payment_id)
            )
            return {
                captures.Verdict(row.verdict): (
                    Money(row.amount_minor, row.currency_code),
                    Money(row.refunded_minor, row.currency_code),
                )
                for row in rows
            }

    async def balances(self) -> dict[tuple[Account, str], int]:
        """The balance of each ledger account, by currency."""
        lines = tables.book_lines.c
        async with self.database.transaction() as connection:
            rows = await connection.execute(
                sa.select(
                    lines.account, lines.currency_code, sa.func.sum(lines.amount_minor)
                ).group_by(lines.account, lines.currency_code)
            )
            return {(Account(account), currency): int(total) for account, currency, total in rows}

    async def events(self) -> list[PaymentEvent]:
        """All events of the outbox, in the order of writing."""
        async with self.database.transaction() as connection:
            rows = await connection.execute(
                sa.select(tables.outbox.c.payload).order_by(tables.outbox.c.sequence)
            )
            return [PaymentEvent.FromString(payload) for payload in rows.scalars()]

    async def event_kinds(self) -> list[str | None]:
        return [event.WhichOneof("event") for event in await self.events()]

    async def count(self, table: sa.Table) -> int:
        async with self.database.transaction() as connection:
            counted = await connection.execute(sa.select(sa.func.count()).select_from(table))
            return int(counted.scalar_one())

    async def _receive(
        self, body: bytes, headers: Mapping[str, str], *, now: datetime
    ) -> webhooks.Outcome:
        event = self.provider.read_webhook(body, headers, now=now)
        async with self.database.transaction() as connection:
            return await webhooks.receive(
                connection, provider=self.name, event=event, payload=body, now=self.clock()
            )


class SandboxHarness(PaymentHarness):
    """payment_svc's parts with the sandbox as the provider, and what its customers do there."""

    provider: SandboxProvider

    def __init__(self, database: Database) -> None:
        clock = Clock()
        provider = SandboxProvider(
            database, clock, gateway_url=GATEWAY_URL, secrets=[SECRET], webhook_queued=Wakeup()
        )
        super().__init__(database, name=NAME, provider=provider, clock=clock)

    async def pay(self, payment: Payment) -> None:
        async with self.database.transaction() as connection:
            await bank.pay(connection, payment_id=payment.payment_id, now=self.clock())

    async def decline(self, payment: Payment) -> None:
        async with self.database.transaction() as connection:
            await bank.decline(connection, payment_id=payment.payment_id, now=self.clock())

    async def capture(self, payment: Payment, amount: Money) -> None:
        """The sandbox captures an amount that its session does not ask for."""
        async with self.database.transaction() as connection:
            session = await bank.find(connection, payment_id=payment.payment_id)
            await bank.capture(connection, session=session, amount=amount, now=self.clock())

    async def webhook_bodies(self) -> list[bytes]:
        return await sandbox_webhook_bodies(self.database)

    async def deliver(self) -> list[webhooks.Outcome]:
        return [await self.receive(body) for body in await self.webhook_bodies()]

    async def receive(self, body: bytes, *, header: str | None = None) -> webhooks.Outcome:
        """Receives one webhook, with a valid signature unless a header is given."""
        header = header or signature.sign(body, secret=SECRET, now=self.clock())
        return await self._receive(body, {signature.HEADER: header}, now=self.clock())

    async def sandbox_ledger(self) -> Sequence[Entry]:
        async with self.database.transaction() as connection:
            return await ledger.list_entries(connection, after=0, limit=1000)


async def sandbox_webhook_bodies(database: Database) -> list[bytes]:
    """The bodies of all webhooks that the sandbox ever queued, oldest first."""
    webhook = tables.sandbox_webhooks.c
    async with database.transaction() as connection:
        rows = await connection.execute(sa.select(webhook.body).order_by(webhook.event_id))
        return list(rows.scalars())


def rewritten(body: bytes, **changes: Any) -> bytes:
    """A webhook's body with some of its fields replaced."""
    event = json.loads(body)
    for name, value in changes.items():
        target = event if name in event else event["data"]
        target[name] = value
    return json.dumps(event).encode()
