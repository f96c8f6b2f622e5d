"""Reads the databases during the run, past all proxies, as another eye than the services'.

A violation counts when it lasts: a move between two events is two transactions.
"""

import asyncio
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psycopg

from chaos.faults.processes import superuser

_PAUSE_SECONDS = 1.0
_LASTING_SECONDS = 10.0
_IDLE_SECONDS = 10.0
_QUIET_SECONDS = 90.0
_DROPPED = '"message":"The garbage collector is trying to clean up non-checked-in connection'

# Places in confirmed bookings by pool, as booking_svc counts them. The ledger counts for itself.
_BOOKED = """
SELECT offers.pool_id::text, sum(items.quantity)::int
FROM booking_items AS items JOIN bookings USING (booking_id)
JOIN offers ON offers.event_id = bookings.event_id AND offers.offer_id = items.offer_id
WHERE bookings.status IN ('CONFIRMED', 'COMPLETED') GROUP BY offers.pool_id
"""
_SEATS_TWICE = """
SELECT bookings.event_id::text || ' ' || items.seat_id::text
FROM booking_items AS items JOIN bookings USING (booking_id)
WHERE bookings.status IN ('CONFIRMED', 'COMPLETED') AND items.seat_id IS NOT NULL
GROUP BY bookings.event_id, items.seat_id HAVING count(*) > 1
"""
_CAPACITIES = "SELECT pool_id::text, capacity FROM pools"
_OVERSOLD = "SELECT pool_id::text FROM pools WHERE held < 0 OR sold < 0 OR held + sold > capacity"
# Due, or tried already. Others wait on purpose, e.g. the release of a reservation that a stalled
# process may still use.
_DUE = """
SELECT booking_id::text, kind, subject_id::text FROM booking_steps
WHERE due_time <= now() OR attempts > 0
"""
_STEPS = """
SELECT booking_id::text, kind, subject_id::text FROM booking_steps WHERE create_time <= %s
"""
_IDLE = """
SELECT datname || ': ' || left(query, 80) FROM pg_stat_activity
WHERE state LIKE 'idle in transaction%%' AND now() - state_change > make_interval(secs => %s)
"""


@dataclass
class Watcher:
    """`reads` counts the complete looks at stock and bookings."""

    servers: Path
    reads: int = 0
    violations: list[str] = field(default_factory=list)
    _since: dict[str, float] = field(default_factory=dict)

    async def run(self) -> None:
        """Looks again and again, until cancelled."""
        while True:
            try:
                self._judge(await self._look())
                self.reads += 1
            except (psycopg.Error, TimeoutError):
                # PostgreSQL is frozen or restarting.
                self._since.clear()
            await asyncio.sleep(_PAUSE_SECONDS)

    def _judge(self, seen: set[str]) -> None:
        """Keeps what was seen in all looks for a while."""
        now = time.monotonic()
        self._since = {text: self._since.get(text, now) for text in seen}
        for text, since in self._since.items():
            if now - since >= _LASTING_SECONDS and text not in self.violations:
                self.violations.append(text)

    async def _look(self) -> set[str]:
        async with asyncio.timeout(5), await superuser(self.servers, "stock") as stock:
            oversold = await _rows(stock, _OVERSOLD)
            capacities = dict(await _pairs(stock, _CAPACITIES))
        async with asyncio.timeout(5), await superuser(self.servers, "booking") as booking:
            booked = await _pairs(booking, _BOOKED)
            twice = await _rows(booking, _SEATS_TWICE)
        return {
            *(f"pool {pool}: more held and sold than its capacity" for pool in oversold),
            *(
                f"pool {pool}: {count} places in confirmed bookings, capacity {capacities[pool]}"
                for pool, count in booked
                if count > capacities[pool]
            ),
            *(f"event and seat {seat}: in two confirmed bookings" for seat in twice),
        }

    async def idle_transactions(self) -> list[str]:
        """Transactions that have been idle for a while."""
        async with await superuser(self.servers) as connection:
            cursor = await connection.execute(_IDLE, (_IDLE_SECONDS,))
            return [str(row[0]) for row in await cursor.fetchall()]

    async def converged_after(self, seconds: float) -> float | None:
        """The time until all saga steps that are due now are done; None after `seconds`."""
        start = time.monotonic()
        due: set[tuple[str, ...]] | None = None
        read_time = None
        while time.monotonic() < start + seconds:
            try:
                async with asyncio.timeout(5), await superuser(self.servers, "booking") as booking:
                    if due is None:
                        row = await (await booking.execute("SELECT now()")).fetchone()
                        read_time = row[0] if row else None
                        due = set(await (await booking.execute(_DUE)).fetchall())
                    due &= set(await (await booking.execute(_STEPS, (read_time,))).fetchall())
                    if not due:
                        return time.monotonic() - start
            except (psycopg.Error, TimeoutError):
                # Read again.
                pass
            await asyncio.sleep(0.5)
        return None


async def pool_slots_in_use(metrics_urls: Mapping[str, str]) -> dict[str, int]:
    """Processes whose pool still has connections in use when nothing calls them.

    Background loops borrow connections for moments: a process counts when every reading for
    90 s shows one in use.
    """
    held: dict[str, int] = {}
    waiting = dict(metrics_urls)
    end = time.monotonic() + _QUIET_SECONDS
    async with httpx.AsyncClient(timeout=5, trust_env=False) as client:
        while waiting and time.monotonic() < end:
            for name, url in list(waiting.items()):
                held[name] = _in_use((await client.get(url)).text)
                if not held[name]:
                    del waiting[name]
            await asyncio.sleep(0.2)
    return {name: held[name] for name in waiting}


def dropped_connections(logs: Path) -> dict[str, int]:
    """Connections that a process lost and the garbage collector closed, by its log."""
    counts = {
        file.stem: file.read_text(errors="replace").count(_DROPPED) for file in logs.glob("*.log")
    }
    return {name: count for name, count in counts.items() if count}


def _in_use(text: str) -> int:
    for line in text.splitlines():
        if line.startswith('boxoffice_database_connections{state="in_use"}'):
            return int(float(line.rpartition(" ")[2]))
    return 0


async def _rows(connection: psycopg.AsyncConnection, query: str) -> list[str]:
    return [str(row[0]) for row in await (await connection.execute(query)).fetchall()]


async def _pairs(connection: psycopg.AsyncConnection, query: str) -> list[tuple[str, int]]:
    return [
        (str(row[0]), int(row[1])) for row in await (await connection.execute(query)).fetchall()
    ]
