"""A durable queue in a table of its service, and the loop that runs its jobs.

What a job does, and what its outcomes mean, belongs to the module that defines the queue.
"""

import asyncio
import logging
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Hashable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Self, TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.db.pipeline import Query, run_together
from mesh.outages import is_outage
from mesh.tasks import forever

_J = TypeVar("_J")
_log = logging.getLogger(__name__)

_MAX_DOUBLINGS = 32
_MAX_JITTER = 0.1


@dataclass(frozen=True, slots=True)
class Backoff:
    """Pauses between attempts: `first_seconds`, doubled each time, at most `max_seconds`."""

    first_seconds: float
    max_seconds: float

    def after(self, attempt: int) -> timedelta:
        """The pause after the `attempt`-th failure in a row, counted from 1."""
        doublings = min(max(attempt, 1) - 1, _MAX_DOUBLINGS)
        return timedelta(seconds=min(self.first_seconds * 2.0**doublings, self.max_seconds))

    def after_column(self, attempt: sa.ColumnElement[int]) -> sa.ColumnElement[timedelta]:
        """The same formula in SQL."""
        doublings = sa.func.least(sa.func.greatest(attempt, 1) - 1, _MAX_DOUBLINGS)
        seconds = sa.func.least(
            self.first_seconds * sa.func.power(2.0, doublings), self.max_seconds
        )
        return sa.func.make_interval(0, 0, 0, 0, 0, 0, seconds, type_=sa.Interval)


class JobQueue:
    """Jobs in the rows of a table, identified by its primary key.

    A job is due from `due_time` on, and has ended when that is NULL. A lease moves `due_time`
    into the future and increments `attempts`, where there is such a column: a job whose process
    dies is due again when its lease ends. That time is also the fencing token: an outcome with
    another `lease_end` is refused, because the job was leased or enqueued again.

    `is_pending`: the condition of the table's partial index over `due_time`, when it is not
    `due_time IS NOT NULL`. `waiting_since`: the start of a job's wait, for `oldest_due`.
    `pauses`: after each failed attempt; with a sequence, a job is dead after its last one.
    `max_age`: a job that fails at this age is dead.
    `group`: a column with a foreign key to a table of groups that share the queue fairly.
    `lanes`: conditions of jobs that are leased apart from the others, by name.
    """

    def __init__(
        self,
        table: sa.Table,
        *,
        due_time: sa.Column[datetime] | None = None,
        attempts: sa.Column[int] | None = None,
        is_pending: sa.ColumnElement[bool] | None = None,
        waiting_since: sa.ColumnElement[datetime] | None = None,
        pauses: Backoff | Sequence[timedelta] = (),
        max_age: timedelta | None = None,
        group: sa.Column[Any] | None = None,
        lanes: Mapping[Hashable, Sequence[sa.ColumnElement[bool]]] | None = None,
    ) -> None:
        self._lanes = {None: (), **(lanes or {})}
        # By lane. Queues are polled all the time: building a statement costs more than running it.
        self._leases: dict[Hashable, Query] = {}
        self._table = table
        self._key = table.primary_key.columns
        self._due_time = table.c.due_time if due_time is None else due_time
        self._attempts = table.c.get("attempts") if attempts is None else attempts
        self._is_pending = self._due_time.is_not(None) if is_pending is None else is_pending
        self._waiting_since = waiting_since
        self._pauses = pauses
        self._max_age = max_age
        self._group = group

    async def lease(
        self,
        connection: AsyncConnection,
        *,
        now: datetime,
        until: datetime,
        limit: int,
        lane: Hashable = None,
    ) -> Sequence[Any]:
        """Takes due jobs until a time, the longest due first; no other process gets them before.

        Of all lanes, or of one. The rows have the table's columns and no order.
        """
        query = self._leases.get(lane)
        if query is None:
            query = self._leases[lane] = Query(self._leasing(self._lanes[lane]))
        [leased] = await run_together(
            connection, [query.statement(now=now, until=until, limit=limit)]
        )
        return query.rows(leased)

    def _leasing(self, where: Sequence[sa.ColumnElement[bool]]) -> sa.UpdateBase:
        time, count = self._due_time.type, sa.Integer()
        due = self._due(
            sa.bindparam("now", type_=time), sa.bindparam("limit", type_=count), where, 1, ()
        )
        return self._taking(due, sa.bindparam("until", type_=time), (), (), {})

    async def lease_where(
        self,
        connection: AsyncConnection,
        *,
        now: datetime,
        until: datetime | sa.ColumnElement[datetime],
        limit: int,
        where: Sequence[sa.ColumnElement[bool]] = (),
        joined_on: Sequence[sa.ColumnElement[bool]] = (),
        returning: Sequence[sa.ColumnElement[Any]] = (),
        per_group: int = 1,
        busy_groups: Sequence[Any] = (),
        **values: Any,
    ) -> Sequence[sa.Row[Any]]:
        """Takes due jobs as `lease` does, with conditions of the call.

        `where` selects jobs. `joined_on` joins other tables for `returning`, which defaults to
        the table's columns. `values` are written as well. With groups, at most `per_group`
        jobs of each are taken, and none of `busy_groups`.
        """
        due = self._due(now, limit, where, per_group, busy_groups)
        leased = await connection.execute(self._taking(due, until, joined_on, returning, values))
        return leased.all()

    def _taking(
        self,
        due: sa.CTE,
        until: Any,
        joined_on: Sequence[sa.ColumnElement[bool]],
        returning: Sequence[sa.ColumnElement[Any]],
        values: Mapping[str, Any],
    ) -> sa.UpdateBase:
        attempts = {} if self._attempts is None else {self._attempts.name: self._attempts + 1}
        return (
            sa.update(self._table)
            .where(*(column == due.c[column.name] for column in self._key), *joined_on)
            .values({self._due_time.name: until, **values, **attempts})
            .returning(*(returning or self._table.c))
        )

    async def reschedule(
        self,
        connection: AsyncConnection,
        *key: Any,
        due_time: datetime | None,
        lease_end: datetime | None = None,
        **values: Any,
    ) -> bool:
        """Makes a job due at another time, or ends it with None, and writes `values`.

        False when the lease was lost, or the job has ended.
        """
        statement = (
            sa.update(self._table)
            .where(*self._is(key), self._is_pending)
            .values({self._due_time.name: due_time, **values})
        )
        if lease_end is not None:
            statement = statement.where(self._due_time == lease_end)
        return (await connection.execute(statement)).rowcount == 1

    async def delete(self, connection: AsyncConnection, *key: Any) -> None:
        """Ends a job whose table keeps no record of it."""
        await connection.execute(sa.delete(self._table).where(*self._is(key)))

    def retry_time(
        self, attempt: int, *, now: datetime, age: timedelta = timedelta(0), jitter: float = 0.0
    ) -> datetime | None:
        """When a job is due again after its `attempt`-th failure; None when it is dead.

        `jitter`, 0-1, lengthens the pause by up to a tenth: jobs that failed together are
        not attempted together again.
        """
        if self._max_age is not None and age >= self._max_age:
            return None
        if isinstance(self._pauses, Backoff):
            pause = self._pauses.after(attempt)
        elif attempt <= len(self._pauses):
            pause = self._pauses[attempt - 1]
        else:
            return None
        return now + pause * (1 + jitter * _MAX_JITTER)

    async def oldest_due(self, connection: AsyncConnection) -> datetime | None:
        """Since when the job that waits longest has waited; None without pending jobs."""
        since = self._table.c.create_time if self._waiting_since is None else self._waiting_since
        oldest: datetime | None = await connection.scalar(
            sa.select(sa.func.min(since)).where(self._is_pending)
        )
        return oldest

    def _due(
        self,
        now: Any,
        limit: Any,
        where: Sequence[sa.ColumnElement[bool]],
        per_group: int,
        busy_groups: Sequence[Any],
    ) -> sa.CTE:
        due = (
            sa.select(*self._key)
            .where(self._is_pending, self._due_time <= now, *where)
            .order_by(self._due_time)
            # NO KEY UPDATE: rows that only a foreign key's check has locked are not skipped.
            .with_for_update(skip_locked=True, key_share=True)
        )
        if self._group is None:
            return due.limit(limit).cte("due")
        # One look into the index for each group, however many jobs a group has.
        [group_id] = [key.column for key in self._group.foreign_keys]
        of_group = due.where(self._group == group_id).limit(per_group).lateral("of_group")
        return (
            sa.select(of_group)
            .select_from(group_id.table.join(of_group, sa.true()))
            .where(group_id.not_in(busy_groups))
            .limit(limit)
            .cte("due")
        )

    def _is(self, key: Sequence[Any]) -> list[sa.ColumnElement[bool]]:
        return [column == value for column, value in zip(self._key, key, strict=True)]


class Wakeup:
    """Ends the idle wait of a loop in this process, because a job was enqueued and committed."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def ring(self) -> None:
        self._event.set()

    async def wait(self, seconds: float) -> None:
        """Returns when rung, also when that happened before this call, or after `seconds`."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._event.wait()
        self._event.clear()


async def run_forever(
    name: str,
    turn: Callable[[], Awaitable[int]],
    *,
    idle_seconds: float,
    wake: Wakeup | None = None,
) -> None:
    """Repeats `turn` until cancelled: at once while it returns a number of jobs or True.

    Else it waits for a wake-up, at most `idle_seconds`: other processes enqueue jobs too, and
    leases end. A turn that fails is logged, counted and repeated after a pause.
    """
    wakeup = wake or Wakeup()

    async def turn_and_wait() -> None:
        if not await turn():
            await wakeup.wait(idle_seconds)

    await forever(name, turn_and_wait)


class Workers:
    """Runs jobs as tasks, at most `size` at a time: a job that hangs holds up no other.

    The end of a task wakes the loop when more jobs may be due. Leaving the block cancels
    the tasks; their jobs are due again when their leases end.
    """

    def __init__(self, wake: Wakeup, *, size: int, per_group: int | None = None) -> None:
        self._wake = wake
        self._size = size
        self._per_group = per_group
        self._running: dict[asyncio.Task[None], Any] = {}
        self._has_more = False

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        for task in self._running:
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)

    @property
    def busy_groups(self) -> list[Any]:
        """The groups that have `per_group` tasks or more."""
        counts = Counter(self._running.values())
        return [group for group, count in counts.items() if count >= (self._per_group or 0)]

    async def fill(
        self,
        lease: Callable[[int], Awaitable[Sequence[_J]]],
        run: Callable[[_J], Coroutine[Any, Any, None]],
        *,
        group: Callable[[_J], Hashable] = lambda _: None,
    ) -> int:
        """Leases as many jobs as there are free places and starts them. Returns how many."""
        free = self._size - len(self._running)
        jobs = await lease(free) if free > 0 else ()
        self._has_more = len(jobs) >= free
        for job in jobs:
            task = asyncio.create_task(run(job))
            self._running[task] = group(job)
            task.add_done_callback(self._ended)
        return len(jobs)

    async def join(self) -> None:
        """Returns when no task is running."""
        while self._running:
            await asyncio.wait(list(self._running))

    def _ended(self, task: asyncio.Task[None]) -> None:
        del self._running[task]
        # With groups, a lease leaves out the jobs of busy ones: there may always be more.
        # Without, half of the places are filled with one lease.
        is_half_free = self._has_more and len(self._running) <= self._size // 2
        if self._per_group is not None or is_half_free:
            self._wake.ring()
        if not task.cancelled() and (error := task.exception()) is not None:
            level = logging.WARNING if is_outage(error) else logging.ERROR
            _log.log(level, "a job ended without an outcome, its lease ends later", exc_info=error)
