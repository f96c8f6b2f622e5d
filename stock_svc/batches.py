"""Batches of calls, each in a transaction of its own: the edge that commits them.

A batch that meets a database error is tried again, then split in halves, until what fails
fails alone: each call gets a true answer.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.clock import Clock
from mesh.coalescing import Coalescer
from mesh.database import Database
from mesh.errors import DomainError, Reason
from mesh.status import cause_of, from_database
from stock_svc import moving, reserving
from stock_svc.moving import Moved, Order
from stock_svc.reservation import Reservation
from stock_svc.reserving import RacedError

MAX_BATCH = 256
MAX_QUEUED = 4096
# Two at once: one waits for the disk while the other computes.
MAX_IN_FLIGHT = 2
# Below the deadline of an RPC, so that its callers learn the outcome.
_SECONDS = 4.5
_ATTEMPTS = 2
_MAX_PAUSE_SECONDS = 0.02

_T = TypeVar("_T")
_R = TypeVar("_R")
_Work = Callable[[AsyncConnection, Sequence[_T], datetime], Awaitable[list[_R | DomainError]]]

_log = logging.getLogger(__name__)


def reserving_together(database: Database, clock: Clock) -> Coalescer[Reservation, Reservation]:
    """Gathers the requests of concurrent calls into batches."""

    async def send(wanted: Sequence[Reservation]) -> Sequence[Reservation | Exception]:
        return await reserve_each(database, wanted, clock=clock)

    return _coalescer("reserve", send)


def moving_together(database: Database, clock: Clock) -> Coalescer[Order, Moved]:
    """The same for what becomes of reservations."""

    async def send(orders: Sequence[Order]) -> Sequence[Moved | Exception]:
        return await _each(database, orders, _move, clock=clock)

    return _coalescer("move", send)


async def reserve_each(
    database: Database, wanted: Sequence[Reservation], *, clock: Clock
) -> list[Reservation | DomainError]:
    """The outcome of each request, in order; what failed by a bug or by the database is an
    outcome too."""
    return await _each(database, wanted, _reserve, clock=clock)


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
    return await reserving.reserve_all(connection, wanted, now=now)


async def _move(
    connection: AsyncConnection, orders: Sequence[Order], now: datetime
) -> list[Moved | DomainError]:
    return await moving.move_all(connection, orders, now=now)


async def _each(
    database: Database, calls: Sequence[_T], work: _Work[_T, _R], *, clock: Clock
) -> list[_R | DomainError]:
    """A commit whose answer was lost is safe to repeat: a call finds what it has done."""
    failure: Exception = RuntimeError("never tried")
    for attempt in range(_ATTEMPTS):
        if attempt:
            # Else two batches that have met would meet again.
            await asyncio.sleep(random.random() * _MAX_PAUSE_SECONDS)
        try:
            async with database.transaction() as connection:
                return await work(connection, calls, clock())
        except (sa.exc.SQLAlchemyError, RacedError, RuntimeError) as error:
            failure = error
    if len(calls) == 1:
        return [_refusal(failure)]
    _log.warning(
        "a batch failed and is split",
        extra={"calls": len(calls), "error": type(failure).__name__},
    )
    middle = len(calls) // 2
    return [
        *await _each(database, calls[:middle], work, clock=clock),
        *await _each(database, calls[middle:], work, clock=clock),
    ]


def _refusal(failure: Exception) -> DomainError:
    if isinstance(failure, RacedError):
        return DomainError(
            Reason.OVERLOADED, "the request's reservation keeps changing", retry_after_seconds=1
        )
    if isinstance(failure, sa.exc.SQLAlchemyError):
        known = from_database(failure)
        if known is not None:
            _log.warning("the database refused a call", extra={"cause": cause_of(failure)})
            return known
    _log.error("a call of a batch failed by a bug", exc_info=failure)
    return DomainError(Reason.INTERNAL, "internal error")
