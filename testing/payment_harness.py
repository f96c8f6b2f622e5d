"""Builders of payment_svc's tests: a desk at which customers pay through the sandbox."""

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from google.protobuf import wrappers_pb2

from boxoffice.payments.v1.payment_event_service_pb2 import PaymentEvent
from mesh.db import idempotent
from mesh.db.database import Database
from mesh.db.jobs import Wakeup
from mesh.ids import new_id
from mesh.money import Money
from payment_svc import captures, payment_reports, payments, refunds, tables, webhooks
from payment_svc.payment_reports import Outcome
from payment_svc.payments import Payment
from payment_svc.provider_calls import ProviderCalls
from payment_svc.providers.base import Captured, Failed, Order, ProviderReport
from payment_svc.providers.sandbox import NAME, bank, ledger, signature
from payment_svc.providers.sandbox.ledger import Entry
from payment_svc.providers.sandbox.provider import SandboxProvider
from payment_svc.refunds import Refund

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
SECRET = "the sandbox's webhook secret"
GATEWAY_URL = "http://gateway.test"
PRICE = Money(150_000, "INR")


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self) -> None:
        self.now = NOW

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
    )


def a_key(key: str = "key", *, content: str = "", owner: str = "staff") -> idempotent.Key:
    return idempotent.key_for("RefundPayment", owner, key, wrappers_pb2.StringValue(value=content))


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
    """The provider's report of a refused try, `at` seconds after NOW."""
    return Failed(payment.payment_id, payment.provider_reference, NOW + timedelta(seconds=at), code)


class Desk:
    """The service's parts over one database, and what its users do with them."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.clock = Clock()
        self.provider = SandboxProvider(
            database,
            self.clock,
            gateway_url=GATEWAY_URL,
            secrets=[SECRET],
            webhook_queued=Wakeup(),
        )
        self.cashier = ProviderCalls(database, {NAME: self.provider}, self.clock, Wakeup())

    async def open(self, **changes: Any) -> Payment:
        return await self.cashier.open(an_order(**changes))

    async def open_paid(self, **changes: Any) -> Payment:
        """A payment that was paid on its page, with the webhook received."""
        payment = await self.open(**changes)
        await self.pay(payment)
        await self.deliver()
        return await self.find(payment)

    async def pay(self, payment: Payment) -> None:
        async with self.database.transaction() as connection:
            await bank.pay(connection, payment_id=payment.payment_id, now=self.clock())

    async def decline(self, payment: Payment) -> None:
        async with self.database.transaction() as connection:
            await bank.decline(connection, payment_id=payment.payment_id, now=self.clock())

    async def take(self, payment: Payment, amount: Money) -> None:
        """The sandbox takes money that its session did not ask for."""
        async with self.database.transaction() as connection:
            session = await bank.find(connection, payment_id=payment.payment_id)
            await bank.capture(connection, session=session, amount=amount, now=self.clock())

    async def bodies(self) -> list[bytes]:
        """All webhooks that the sandbox ever queued, oldest first."""
        async with self.database.transaction() as connection:
            rows = await connection.execute(
                sa.select(tables.sandbox_webhooks.c.body).order_by(
                    tables.sandbox_webhooks.c.event_id
                )
            )
            return list(rows.scalars())

    async def deliver(self) -> list[webhooks.Outcome]:
        """Brings every webhook that the sandbox ever queued, again and again."""
        return [await self.receive(body) for body in await self.bodies()]

    async def receive(self, body: bytes, *, header: str | None = None) -> webhooks.Outcome:
        """Takes one webhook, signed rightly unless a header is given."""
        header = header or signature.sign(body, secret=SECRET, now=self.clock())
        event = self.provider.read_webhook(body, {signature.HEADER: header}, now=self.clock())
        async with self.database.transaction() as connection:
            return await webhooks.receive(
                connection, provider=NAME, event=event, payload=body, now=self.clock()
            )

    async def apply_report(self, *reports: ProviderReport) -> list[Outcome]:
        """Applies reports, each in a transaction of its own."""
        outcomes = []
        for report in reports:
            async with self.database.transaction() as connection:
                outcomes.append(
                    await payment_reports.apply_report(
                        connection, provider=NAME, report=report, now=self.clock()
                    )
                )
        return outcomes

    async def request_refund(
        self,
        payment: Payment,
        amount: Money | None = None,
        *,
        reason: str = "",
        key: idempotent.Key | None = None,
    ) -> Refund:
        async with self.database.transaction() as connection:
            return await refunds.request(
                connection,
                payment_id=payment.payment_id,
                amount=amount,
                reason=reason,
                key=key or a_key(str(new_id())),
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
        """What was taken for the payment, and how much of it went back, by verdict."""
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

    async def ledger(self) -> Sequence[Entry]:
        async with self.database.transaction() as connection:
            return await ledger.list_entries(connection, after=0, limit=1000)

    async def events(self) -> list[PaymentEvent]:
        """All of the outbox, in the order of writing."""
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


def retyped(body: bytes, **changes: Any) -> bytes:
    """A webhook's body with other facts, as its sender would write it."""
    event = json.loads(body)
    for name, value in changes.items():
        target = event if name in event else event["data"]
        target[name] = value
    return json.dumps(event).encode()
