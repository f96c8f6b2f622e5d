"""Calls that come at once are gathered into batches, each in a transaction of its own."""

from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import TypeVar

from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.clock import Clock
from mesh.coalescing import Coalescer
from mesh.db.batches import commit_each
from mesh.db.database import Database
from mesh.errors import DomainError
from stock_svc import reserve, transitions
from stock_svc.reservation import Reservation
from stock_svc.transitions import Moved, Order

MAX_BATCH = 256
MAX_QUEUED = 4096
# Two at once: one waits for the disk while the other computes.
MAX_IN_FLIGHT = 2
# Below the deadline of an RPC, so that its callers learn the outcome.
_SECONDS = 4.5

_T = TypeVar("_T")
_R = TypeVar("_R")


def reserving_together(database: Database, clock: Clock) -> Coalescer[Reservation, Reservation]:
    """Gathers the requests of concurrent calls into batches."""

    async def send(wanted: Sequence[Reservation]) -> Sequence[Reservation | Exception]:
        return await reserve_each(database, wanted, clock=clock)

    return _coalescer("reserve", send)


def moving_together(database: Database, clock: Clock) -> Coalescer[Order, Moved]:
    """The same for what becomes of reservations."""

    async def send(orders: Sequence[Order]) -> Sequence[Moved | Exception]:
        return await commit_each(database, orders, _move, clock=clock)

    return _coalescer("move", send)


async def reserve_each(
    database: Database, wanted: Sequence[Reservation], *, clock: Clock
) -> list[Reservation | DomainError]:
    """The outcome of each request, in order; what failed by a bug or by the database is an
    outcome too."""
    return await commit_each(database, wanted, _reserve, clock=clock)


def _coalescer(
    name: str, send: Callable[[Sequence[_T]], Awaitable[Sequence[_R | Exception]]]
) -> Coalescer[_T, _R]:
    return Coalescer(
        name,
        send,
        max_batch=MAX_BATCH,
        max_in_flight=MAX_IN_FLIGHT,
        max_queued=MAX_QUEUED,
        seconds=_SECONDS,
    )


async def _reserve(
    connection: AsyncConnection, wanted: Sequence[Reservation], now: datetime
) -> list[Reservation | DomainError]:
    return await reserve.reserve_all(connection, wanted, now=now)


async def _move(
    connection: AsyncConnection, orders: Sequence[Order], now: datetime
) -> list[Moved | DomainError]:
    return await transitions.move_all(connection, orders, now=now)
