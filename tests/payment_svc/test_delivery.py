"""Delivery of the sandbox's webhooks to a real HTTP server that can fail."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import httpx
import sqlalchemy as sa

from mesh.db.jobs import Wakeup
from payment_svc import tables
from payment_svc.payments import Status
from payment_svc.providers.sandbox import outgoing, signature
from payment_svc.providers.sandbox.delivery import Delivery
from payment_svc.webhooks import Outcome
from testing.payment_harness import SECRET, SandboxHarness


@dataclass
class Receiver:
    """Receives webhooks over HTTP, as the gateway does. `statuses` are its next answers."""

    harness: SandboxHarness
    statuses: list[int] = field(default_factory=list)
    headers: list[str] = field(default_factory=list)
    outcomes: list[Outcome] = field(default_factory=list)
    url: str = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode()
        fields = dict(line.lower().split(": ", 1) for line in head.split("\r\n")[1:] if line)
        body = await reader.readexactly(int(fields["content-length"]))
        self.headers.append(fields[signature.HEADER])
        status = self.statuses.pop(0) if self.statuses else 200
        if status == 200:
            self.outcomes.append(await self.harness.receive(body, header=fields[signature.HEADER]))
        if status:
            writer.write(f"HTTP/1.1 {status} x\r\ncontent-length: 0\r\n".encode())
            writer.write(b"connection: close\r\n\r\n")
            await writer.drain()
        writer.close()
        await writer.wait_closed()


@asynccontextmanager
async def receiving(
    harness: SandboxHarness, *statuses: int
) -> AsyncIterator[tuple[Receiver, Delivery]]:
    receiver = Receiver(harness, list(statuses))
    server = await asyncio.start_server(receiver.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    receiver.url = f"http://127.0.0.1:{port}/webhooks/sandbox"
    async with server, httpx.AsyncClient(trust_env=False, timeout=60) as client:
        yield receiver, a_delivery(harness, client, receiver.url)


def a_delivery(harness: SandboxHarness, client: httpx.AsyncClient, url: str) -> Delivery:
    return Delivery(
        harness.database, client, harness.clock, url=url, secret=SECRET, queued=Wakeup()
    )


async def test_a_webhook_is_delivered_once(harness: SandboxHarness) -> None:
    payment = await harness.open()
    await harness.pay(payment)
    async with receiving(harness) as (receiver, delivery):
        assert await delivery.deliver_due() == 1
        harness.clock.advance(3600)
        assert await delivery.deliver_due() == 0
    assert receiver.outcomes == [Outcome.APPLIED]
    assert (await harness.find(payment)).status is Status.CAPTURED


async def test_a_webhook_is_retried_after_errors_and_has_one_effect(
    harness: SandboxHarness,
) -> None:
    """503, then a closed connection, then 429. Each attempt has a new signature."""
    payment = await harness.open()
    await harness.pay(payment)
    async with receiving(harness, 503, 0, 429) as (receiver, delivery):
        for pause in (0.5, 1, 2):
            assert await delivery.deliver_due() == 1
            assert await delivery.deliver_due() == 0
            harness.clock.advance(pause)
        assert await delivery.deliver_due() == 1
        harness.clock.advance(3600)
        assert await delivery.deliver_due() == 0
    assert receiver.outcomes == [Outcome.APPLIED]
    assert len(receiver.headers) == 4
    assert len(set(receiver.headers)) > 1
    assert await harness.event_kinds() == ["captured"]


async def test_a_receiver_that_is_unreachable_for_an_hour_gets_the_webhook(
    harness: SandboxHarness,
) -> None:
    payment = await harness.open()
    await harness.pay(payment)
    async with httpx.AsyncClient(trust_env=False, timeout=60) as client:
        unreachable = a_delivery(harness, client, "http://127.0.0.1:9/webhooks/sandbox")
        for _ in range(12):
            await unreachable.deliver_due()
            harness.clock.advance(300)
    async with receiving(harness) as (receiver, delivery):
        assert await delivery.deliver_due() == 1
    # Signed an hour after the event: the signature's age counts, not the event's.
    assert receiver.outcomes == [Outcome.APPLIED]


async def test_a_lost_answer_leads_to_a_duplicate_without_effect(
    harness: SandboxHarness,
) -> None:
    """The process dies after the receiver has answered and before the answer is stored."""
    payment = await harness.open()
    await harness.pay(payment)
    async with harness.database.transaction() as connection:
        (leased,) = await outgoing.lease_due(connection, now=harness.clock(), limit=1)
    assert await harness.receive(leased.body) is Outcome.APPLIED
    async with receiving(harness) as (receiver, delivery):
        assert await delivery.deliver_due() == 0
        harness.clock.advance(15)
        assert await delivery.deliver_due() == 1
    assert receiver.outcomes == [Outcome.DUPLICATE]
    assert await harness.event_kinds() == ["captured"]


async def test_two_processes_lease_different_webhooks(harness: SandboxHarness) -> None:
    for _ in range(6):
        await harness.pay(await harness.open())
    async with (
        harness.database.transaction() as connection,
        harness.database.transaction() as other,
    ):
        first = await outgoing.lease_due(connection, now=harness.clock(), limit=4)
        second = await outgoing.lease_due(other, now=harness.clock(), limit=4)
    sent = [webhook.event_id for webhook in (*first, *second)]
    assert len(sent) == len(set(sent)) == 6


async def test_after_three_days_a_webhook_is_not_retried_but_kept(harness: SandboxHarness) -> None:
    payment = await harness.open()
    await harness.pay(payment)
    harness.clock.advance(3 * 24 * 3600)
    async with receiving(harness, 503) as (_, delivery):
        assert await delivery.deliver_due() == 1
        harness.clock.advance(3600)
        assert await delivery.deliver_due() == 0
    async with harness.database.transaction() as connection:
        kept = (await connection.execute(sa.select(tables.sandbox_webhooks))).one()
    assert (kept.due_time, kept.deliver_time, kept.last_answer) == (None, None, "503")
