"""AUTO: steers how many admitted visitors may be active, by what PlaceBooking really does.

Additive increase, multiplicative decrease, as TCP's congestion control: while bookings are placed
quickly the target grows step by step; slow or refused ones cut it by a third at once. Each process
adds the counts of its calls to a row in the database, and the one that admits takes those of all.
"""

from dataclasses import dataclass

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.queueing.tables import queue_sales
from mesh.db.database import Database
from mesh.errors import Reason
from mesh.ids import new_id

LEAST_TARGET = 5.0
MOST_TARGET = 100_000.0
INTERVAL_SECONDS = 5.0
"""Time between two decisions: long enough to see the effect of one."""

_SLOW_SECONDS = 1.0
_MOST_REFUSED = 0.02
# That is, the 95th percentile. Counts add up over processes; percentiles do not.
_MOST_SLOW = 0.05
_INCREASE = 10.0
_INCREASE_SHARE = 0.05
_DECREASE = 0.7
# Of a target that is not used, more would not be noticed.
_USED_SHARE = 0.8

# What the mesh refuses because it is busy; all else is about the request or the stock.
BUSY = frozenset({Reason.OVERLOADED, Reason.DEADLINE_EXCEEDED, Reason.DEPENDENCY_UNAVAILABLE})


@dataclass(frozen=True, slots=True)
class Sales:
    """PlaceBooking calls in an interval: all, those refused as `busy`, and the `slow` ones."""

    calls: int = 0
    busy: int = 0
    slow: int = 0


class SalesMonitor:
    """Counts the calls of this process until `store` has added them to its row."""

    def __init__(self) -> None:
        self._process_id = new_id()
        self._sales = Sales()

    def add(self, seconds: float, refusal: Reason | None) -> None:
        self._count(Sales(1, int(refusal in BUSY), int(seconds > _SLOW_SECONDS)))

    async def store(self, database: Database) -> None:
        """Adds the counts to those in the database. Writes nothing without a call."""
        sales, self._sales = self._sales, Sales()
        if not sales.calls:
            return
        added = postgresql.insert(queue_sales).values(
            process_id=self._process_id, calls=sales.calls, busy=sales.busy, slow=sales.slow
        )
        columns = queue_sales.c
        try:
            async with database.transaction() as connection:
                await connection.execute(
                    added.on_conflict_do_update(
                        index_elements=["process_id"],
                        set_={
                            "calls": columns.calls + added.excluded.calls,
                            "busy": columns.busy + added.excluded.busy,
                            "slow": columns.slow + added.excluded.slow,
                        },
                    )
                )
        except sa.exc.SQLAlchemyError:
            self._count(sales)
            raise

    def _count(self, sales: Sales) -> None:
        self._sales = Sales(
            self._sales.calls + sales.calls,
            self._sales.busy + sales.busy,
            self._sales.slow + sales.slow,
        )


async def take_sales(connection: AsyncConnection) -> Sales:
    """The calls of all processes since the last time, which are counted once."""
    columns = queue_sales.c
    rows = await connection.execute(
        sa.delete(queue_sales).returning(columns.calls, columns.busy, columns.slow)
    )
    counts = [(row.calls, row.busy, row.slow) for row in rows]
    return Sales(*(sum(column) for column in zip(*counts, strict=True))) if counts else Sales()


def next_target(target: float, *, active: int, sales: Sales) -> float:
    """The number of active visitors to aim at.

    Without a call nothing is known and nothing changes.
    """
    if not sales.calls:
        return target
    if sales.busy > _MOST_REFUSED * sales.calls or sales.slow > _MOST_SLOW * sales.calls:
        return max(LEAST_TARGET, target * _DECREASE)
    if active < _USED_SHARE * target:
        return target
    return min(MOST_TARGET, target + max(_INCREASE, _INCREASE_SHARE * target))
