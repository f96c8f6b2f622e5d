"""Concurrent calls are gathered into batches, each in a transaction of its own."""

from collections.abc import Sequence
from typing import TypeVar

from mesh.clock import Clock
from mesh.coalescing import Coalescer
from mesh.db.batches import Work, commit_each
from mesh.db.database import Database
from stock_svc.reservations import Reservation
from stock_svc.reserve import reserve_all
from stock_svc.transitions import Moved, Order, move_all

MAX_BATCH = 256
MAX_QUEUED = 4096
# One batch waits for the disk while the other computes.
MAX_IN_FLIGHT = 2
# Less than the deadline of an RPC, so that its callers receive the outcome.
_SECONDS = 4.5

_T = TypeVar("_T")
_R = TypeVar("_R")


def coalesced_reserve(database: Database, clock: Clock) -> Coalescer[Reservation, Reservation]:
    """Gathers concurrent requests into batches for `reserve_all`."""
    return _coalescer("reserve", reserve_all, database, clock)


def coalesced_move(database: Database, clock: Clock) -> Coalescer[Order, Moved]:
    """Gathers concurrent orders into batches for `move_all`."""
    return _coalescer("move", move_all, database, clock)


def _coalescer(
    name: str, work: Work[_T, _R], database: Database, clock: Clock
) -> Coalescer[_T, _R]:
    async def send(calls: Sequence[_T]) -> Sequence[_R | Exception]:
        return await commit_each(database, calls, work, clock=clock)

    return Coalescer(
        name,
        send,
        max_batch=MAX_BATCH,
        max_in_flight=MAX_IN_FLIGHT,
        max_queued=MAX_QUEUED,
        seconds=_SECONDS,
    )
