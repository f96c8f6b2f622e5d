"""The events of the change stream: counters and seats after a transaction, as messages.

The ledger writes them to the outbox; servicers/stock_changes.py streams them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from uuid import UUID

from boxoffice.stock.v1.stock_change_service_pb2 import StockChange
from boxoffice.stock.v1.stock_service_pb2 import Stock
from mesh.db.outbox import NewEvent
from mesh.observability import request_context
from stock_svc.reservations import SeatState
from stock_svc.tables import Key

# So that the message about a stadium stays below gRPC's limit for messages.
_SEATS_PER_MESSAGE = 1_000


@dataclass(frozen=True, slots=True)
class PoolCounters:
    """A pool's counters; `version` is the number of its movements.

    `open_places` is how many of the free places anybody can reserve, None for all of them.
    """

    event_id: UUID
    pool_id: UUID
    capacity: int
    held: int
    sold: int
    version: int
    open_places: int | None = None
    removed: bool = False

    @property
    def free(self) -> int:
        return self.capacity - self.held - self.sold

    @property
    def kept(self) -> int:
        """The free places that only the waiting list can reserve."""
        return 0 if self.open_places is None else self.free - self.open_places


def messages(
    pools: Sequence[PoolCounters],
    seats: Mapping[Key, SeatState | None],
    versions: Mapping[UUID, int],
) -> list[NewEvent]:
    """One message for each event, or several when more than 1,000 of its seats changed.

    All are as after the change; a seat's state is None when it was removed. The caller holds the
    locks of the pools and of the seats' pools, so that the changes of one pool are in order.
    """
    origin = request_context.origin()
    events = []
    for event_id in sorted({pool.event_id for pool in pools} | {key[0] for key in seats}):
        pool_changes = [_pool_change(pool) for pool in pools if pool.event_id == event_id]
        seat_changes = [_seat_change(key[1], seats[key]) for key in seats if key[0] == event_id]
        for start in range(0, max(len(seat_changes), 1), _SEATS_PER_MESSAGE):
            change = StockChange(
                event_id=str(event_id),
                version=versions.get(event_id, 0),
                pools=pool_changes,
                seats=seat_changes[start : start + _SEATS_PER_MESSAGE],
            )
            events.append(NewEvent(event_id, "stock_change", change.SerializeToString(), origin))
    return events


def _pool_change(pool: PoolCounters) -> StockChange.PoolChange:
    return StockChange.PoolChange(
        pool_id=str(pool.pool_id),
        capacity=pool.capacity,
        held=pool.held,
        sold=pool.sold,
        version=pool.version,
        removed=pool.removed,
        kept=pool.kept,
    )


def _seat_change(seat_id: UUID, state: SeatState | None) -> StockChange.SeatChange:
    states = Stock.SeatLeft.State
    return StockChange.SeatChange(
        seat_id=str(seat_id),
        state=states.STATE_UNSPECIFIED if state is None else states.Value(state),
    )
