"""One process at a time runs a loop; another takes over when it ends."""

import asyncio
from functools import partial

import sqlalchemy as sa

from mesh.db import leadership
from mesh.db.database import Database


class Loop:
    """A loop that records which processes run it."""

    def __init__(self) -> None:
        self.running: set[str] = set()
        self.most = 0
        self.changed = asyncio.Condition()

    async def turn(self, process: str) -> None:
        async with self.changed:
            self.running.add(process)
            self.most = max(self.most, len(self.running))
            self.changed.notify_all()
        try:
            await asyncio.sleep(3600)
        finally:
            self.running.discard(process)

    async def until(self, *processes: str) -> None:
        async with asyncio.timeout(60), self.changed:
            await self.changed.wait_for(lambda: self.running == set(processes))


async def test_the_second_process_takes_over_when_the_first_ends(database: Database) -> None:
    loop = Loop()
    first, second = (
        asyncio.create_task(leadership.forever_alone(database, "sweeper", partial(loop.turn, name)))
        for name in ("first", "second")
    )
    async with asyncio.timeout(60), loop.changed:
        await loop.changed.wait_for(lambda: bool(loop.running))
    leader, other = (first, second) if "first" in loop.running else (second, first)
    remaining = "second" if leader is first else "first"
    leader.cancel()
    await loop.until(remaining)
    other.cancel()
    await asyncio.gather(first, second, return_exceptions=True)
    assert loop.most == 1


async def test_two_loops_have_separate_locks(database: Database) -> None:
    loop = Loop()
    both = [
        asyncio.create_task(leadership.forever_alone(database, name, partial(loop.turn, name)))
        for name in ("sweeper", "housekeeping")
    ]
    await loop.until("sweeper", "housekeeping")
    for task in both:
        task.cancel()
    await asyncio.gather(*both, return_exceptions=True)


async def test_a_leader_that_lost_its_session_stops_and_starts_again(database: Database) -> None:
    loop = Loop()
    leading = asyncio.create_task(
        leadership.forever_alone(database, "sweeper", partial(loop.turn, "only"))
    )
    await loop.until("only")
    async with database.reading() as connection:
        await connection.execute(
            sa.text(
                "SELECT pg_terminate_backend(pid) FROM pg_locks"
                " WHERE locktype = 'advisory' AND pid <> pg_backend_pid()"
            )
        )
    async with asyncio.timeout(60):
        while loop.running:
            await asyncio.sleep(0.05)
    await loop.until("only")
    leading.cancel()
    await asyncio.gather(leading, return_exceptions=True)
