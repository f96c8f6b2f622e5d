"""SIGKILL at every await of reserve and commit: each is atomic, and a retry finds its result."""

import asyncio
import json
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import pytest
import sqlalchemy as sa
from google.protobuf import json_format

from boxoffice.stock.v1 import reservation_pb2, stock_service_pb2
from mesh.db.database import Database
from mesh.errors import DomainError
from mesh.ids import new_id
from stock_svc.expiry import sweep
from stock_svc.reservations import Reservation, State
from stock_svc.tables import reservations
from testing.databases import open_patiently
from testing.stock_harness import HOLD, LAPSED, NOW, Sale, on_sale

MOST_AWAITS = 200


@dataclass
class Victim:
    """Processes of testing.dying_stock, one per request."""

    process: asyncio.subprocess.Process
    url: str

    async def is_killed(self, method: str, request: Any, *, at: int) -> bool:
        """Whether the process was killed; False when the call ended before its `at`-th await."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        order = {
            "url": self.url,
            "method": method,
            "request": json_format.MessageToDict(request),
            "now": NOW.isoformat(),
            "die_at": at,
        }
        self.process.stdin.write(json.dumps(order).encode() + b"\n")
        answer = (await self.process.stdout.readline()).decode().strip()
        assert answer in ("killed", "done 0")
        return answer == "killed"


@dataclass
class Bench:
    database: Database
    victim: Victim


@pytest.fixture
async def bench(new_database: Callable[[str], str]) -> AsyncIterator[Bench]:
    url = new_database("stock_svc")
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "testing.dying_stock",
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    async with open_patiently(url) as database:
        yield Bench(database, Victim(process, url))
    assert process.stdin is not None
    process.stdin.close()
    assert await process.wait() == 0


async def states(sale: Sale) -> list[str]:
    async with sale.database.transaction() as connection:
        stored = await connection.scalars(
            sa.select(reservations.c.state).where(reservations.c.event_id == sale.event_id)
        )
        return list(stored)


def reserve_request(sale: Sale, customer_id: UUID) -> stock_service_pb2.ReserveRequest:
    """Two places and a seat."""
    lines = [sale.line(quantity=2), *sale.lines("A1")]
    request = stock_service_pb2.ReserveRequest(
        event_id=str(sale.event_id),
        reservation_id=str(new_id()),
        request_key="key",
        customer_id=str(customer_id),
        lines=[
            reservation_pb2.ReservationLine(
                offer_id=str(line.offer_id),
                quantity=line.quantity,
                seat_id=None if line.seat_id is None else str(line.seat_id),
            )
            for line in lines
        ],
    )
    request.expire_time.FromDatetime(NOW + HOLD)
    return request


async def a_sale(database: Database) -> Sale:
    return await on_sale(
        database, offers={"place": "floor"}, seats={"stalls": ["A1"]}, per_customer_limit=2
    )


async def retry(sale: Sale, customer_id: UUID) -> Reservation:
    return await sale.reserve(
        sale.line(quantity=2), *sale.lines("A1"), customer_id=customer_id, request_key="key"
    )


@pytest.mark.timeout(600)
async def test_reserve_is_atomic_when_killed_at_any_await(bench: Bench) -> None:
    outcomes = []
    for at in range(1, MOST_AWAITS):
        sale, customer_id = await a_sale(bench.database), new_id()
        request = reserve_request(sale, customer_id)
        killed = await bench.victim.is_killed("Reserve", request, at=at)
        # The retry waits for a statement of the killed process that still runs in the database.
        again = await retry(sale, customer_id)
        was_first = str(again.reservation_id) == request.reservation_id
        outcomes.append(was_first)
        assert again == await retry(sale, customer_id)
        assert await states(sale) == ["ACTIVE"]
        assert await sale.counters() == (2, 0)
        await sale.assert_clean()
        # When the hold lapses, everything is available again.
        await sweep(bench.database, now=LAPSED)
        assert await sale.available(now=LAPSED) == 10
        assert await sale.seat_states(now=LAPSED) == {"A1": "AVAILABLE"}
        await sale.assert_clean()
        if not killed:
            break
    assert not killed
    assert was_first
    # The first kills are before the commit: nothing was written.
    assert outcomes[0] is False
    assert outcomes.count(False) >= 4


@pytest.mark.timeout(600)
async def test_commit_is_atomic_when_killed_at_any_await(bench: Bench) -> None:
    reached = []
    for at in range(1, MOST_AWAITS):
        sale, customer_id = await a_sale(bench.database), new_id()
        made = await retry(sale, customer_id)
        request = stock_service_pb2.CommitReservationRequest(
            event_id=str(sale.event_id), reservation_id=str(made.reservation_id)
        )
        killed = await bench.victim.is_killed("CommitReservation", request, at=at)
        # Waits for a statement of the killed process that still runs.
        async with bench.database.transaction() as connection:
            await connection.execute(
                sa.select(reservations.c.state)
                .where(reservations.c.event_id == sale.event_id)
                .with_for_update()
            )
        [state] = await states(sale)
        reached.append(state)
        await sale.assert_clean()
        assert await sale.counters() == ((2, 0) if state == "ACTIVE" else (0, 2))
        if at % 2:
            assert (await sale.commit(made.reservation_id)).state is State.COMMITTED
            assert await sale.counters() == (0, 2)
        else:
            # Without a retry, sold places stay sold, and held places become free.
            await sweep(bench.database, now=LAPSED)
            assert await sale.available(now=LAPSED) == (10 if state == "ACTIVE" else 8)
            if state == "ACTIVE":
                with pytest.raises(DomainError):
                    await sale.commit(made.reservation_id, now=LAPSED)
        await sale.assert_clean()
        if not killed:
            break
    assert not killed
    assert reached[-1] == "COMMITTED"
    assert reached.count("ACTIVE") >= 4
