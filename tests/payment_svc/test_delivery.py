"""Delivery of the sandbox's webhooks to a real HTTP server that can be in trouble."""

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
from testing.payment_harness import SECRET, Desk


@dataclass
class Receiver:
    """Takes webhooks over HTTP, as the gateway does. `statuses` are its next answers."""

    desk: Desk
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
            self.outcomes.append(await self.desk.receive(body, header=fields[signature.HEADER]))
        if status:
            writer.write(f"HTTP/1.1 {status} x\r\ncontent-length: 0\r\n".encode())
            writer.write(b"connection: close\r\n\r\n")
            await writer.drain()
        writer.close()
        await writer.wait_closed()


@asynccontextmanager
async def receiving(desk: Desk, *statuses: int) -> AsyncIterator[tuple[Receiver, Delivery]]:
    receiver = Receiver(desk, list(statuses))
    server = await asyncio.start_server(receiver.serve, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    receiver.url = f"http://127.0.0.1:{port}/webhooks/sandbox"
    async with server, httpx.AsyncClient(trust_env=False) as client:
        yield receiver, a_delivery(desk, client, receiver.url)


def a_delivery(desk: Desk, client: httpx.AsyncClient, url: str) -> Delivery:
    return Delivery(desk.database, client, desk.clock, url=url, secret=SECRET, queued=Wakeup())


async def test_a_webhook_is_delivered_once(desk: Desk) -> None:
    payment = await desk.open()
    await desk.pay(payment)
    async with receiving(desk) as (receiver, delivery):
        assert await delivery.deliver_due() == 1
        desk.clock.advance(3600)
        assert await delivery.deliver_due() == 0
    assert receiver.outcomes == [Outcome.APPLIED]
    assert (await desk.find(payment)).status is Status.CAPTURED


async def test_a_receiver_in_trouble_gets_it_later_and_it_has_one_effect(desk: Desk) -> None:
    """503, then a connection that breaks off, then 429; each time signed afresh."""
    payment = await desk.open()
    await desk.pay(payment)
    async with receiving(desk, 503, 0, 429) as (receiver, delivery):
        for pause in (0.5, 1, 2):
            assert await delivery.deliver_due() == 1
            assert await delivery.deliver_due() == 0
            desk.clock.advance(pause)
        assert await delivery.deliver_due() == 1
        desk.clock.advance(3600)
        assert await delivery.deliver_due() == 0
    assert receiver.outcomes == [Outcome.APPLIED]
    assert len(receiver.headers) == 4
    assert len(set(receiver.headers)) > 1
    assert await desk.event_kinds() == ["captured"]


async def test_a_receiver_that_is_away_for_an_hour_loses_nothing(desk: Desk) -> None:
    payment = await desk.open()
    await desk.pay(payment)
    async with httpx.AsyncClient(trust_env=False) as client:
        nowhere = a_delivery(desk, client, "http://127.0.0.1:9/webhooks/sandbox")
        for _ in range(12):
            await nowhere.deliver_due()
            desk.clock.advance(300)
    async with receiving(desk) as (receiver, delivery):
        assert await delivery.deliver_due() == 1
    # Signed an hour after the event: the tolerance is on the signature, not on the event.
    assert receiver.outcomes == [Outcome.APPLIED]


async def test_an_answer_that_got_lost_makes_a_duplicate_without_effect(desk: Desk) -> None:
    """The process dies after the receiver has taken the webhook and before that is stored."""
    payment = await desk.open()
    await desk.pay(payment)
    async with desk.database.transaction() as connection:
        (leased,) = await outgoing.lease_due(connection, now=desk.clock(), limit=1)
    assert await desk.receive(leased.body) is Outcome.APPLIED
    async with receiving(desk) as (receiver, delivery):
        assert await delivery.deliver_due() == 0
        desk.clock.advance(15)
        assert await delivery.deliver_due() == 1
    assert receiver.outcomes == [Outcome.DUPLICATE]
    assert await desk.event_kinds() == ["captured"]


async def test_two_processes_send_different_webhooks(desk: Desk) -> None:
    for _ in range(6):
        await desk.pay(await desk.open())
    async with desk.database.transaction() as one, desk.database.transaction() as other:
        first = await outgoing.lease_due(one, now=desk.clock(), limit=4)
        second = await outgoing.lease_due(other, now=desk.clock(), limit=4)
    sent = [webhook.event_id for webhook in (*first, *second)]
    assert len(sent) == len(set(sent)) == 6


async def test_after_three_days_it_is_given_up_but_kept(desk: Desk) -> None:
    payment = await desk.open()
    await desk.pay(payment)
    desk.clock.advance(3 * 24 * 3600)
    async with receiving(desk, 503) as (_, delivery):
        assert await delivery.deliver_due() == 1
        desk.clock.advance(3600)
        assert await delivery.deliver_due() == 0
    async with desk.database.transaction() as connection:
        kept = (await connection.execute(sa.select(tables.sandbox_webhooks))).one()
    assert (kept.due_time, kept.deliver_time, kept.last_answer) == (None, None, "503")
