"""What other services learn of stock: messages of the change stream, written to the outbox.

Translates to the contract as a servicer does; the ledger hands it plain values.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from boxoffice.stock.v1 import stock_change_service_pb2, stock_service_pb2
from mesh.db import outbox
from mesh.db.outbox import NewEvent
from stock_svc import tables
from stock_svc.states import SeatState

# Of seats in one message, so that a stadium's change stays below what gRPC lets through.
_SEATS_AT_ONCE = 1_000


@dataclass(frozen=True, slots=True)
class PoolNow:
    """A pool's counters after a change."""

    event_id: UUID
    pool_id: UUID
    capacity: int
    held: int
    sold: int
    version: int
    removed: bool = False


@dataclass(frozen=True, slots=True)
class SeatNow:
    """A seat's state after a change; None when the seat is gone."""

    event_id: UUID
    seat_id: UUID
    state: SeatState | None


async def publish(
    connection: AsyncConnection,
    *,
    pools: Sequence[PoolNow],
    seats: Sequence[SeatNow],
    versions: Mapping[UUID, int],
    now: datetime,
) -> None:
    """Writes down what the transaction has changed; `versions` are those of the events.

    The caller holds the locks of the pools and of the seats' pools, so that the changes
    of one pool stand in their order.
    """
    await outbox.append(connection, tables.outbox, messages(pools, seats, versions), now=now)


def messages(
    pools: Sequence[PoolNow], seats: Sequence[SeatNow], versions: Mapping[UUID, int]
) -> list[NewEvent]:
    """One message for each event, or several when very many seats changed."""
    found = []
    for event_id in sorted({p.event_id for p in pools} | {s.event_id for s in seats}):
        its_seats = [_seat(seat) for seat in seats if seat.event_id == event_id]
        its_pools = [_pool(pool) for pool in pools if pool.event_id == event_id]
        for start in range(0, max(len(its_seats), 1), _SEATS_AT_ONCE):
            change = stock_change_service_pb2.StockChange(
                event_id=str(event_id),
                version=versions.get(event_id, 0),
                pools=its_pools,
                seats=its_seats[start : start + _SEATS_AT_ONCE],
            )
            found.append(NewEvent(event_id, "stock_change", change.SerializeToString()))
    return found


def _pool(pool: PoolNow) -> stock_change_service_pb2.StockChange.PoolChange:
    return stock_change_service_pb2.StockChange.PoolChange(
        pool_id=str(pool.pool_id),
        capacity=pool.capacity,
        held=pool.held,
        sold=pool.sold,
        version=pool.version,
        removed=pool.removed,
    )


def _seat(seat: SeatNow) -> stock_change_service_pb2.StockChange.SeatChange:
    states = stock_service_pb2.Stock.SeatLeft.State
    return stock_change_service_pb2.StockChange.SeatChange(
        seat_id=str(seat.seat_id),
        state=states.STATE_UNSPECIFIED if seat.state is None else states.Value(seat.state),
    )
