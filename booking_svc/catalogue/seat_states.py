"""The states of all seats of an auditorium as one string: a letter for each seat, in map order.

The order is that of GetAuditorium. Seats are only ever added to an auditorium, so that the length
of the string tells which seats it is about.
"""

import time
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.catalogue.tables import auditoriums, seats
from mesh import coalescing
from mesh.db.database import Database

LETTERS = {"AVAILABLE": "A", "HELD": "H", "SOLD": "S", "BLOCKED": "B"}
NOT_ON_SALE = "-"

# Of all auditoriums together: about 30 MB.
_MOST_SEATS = 400_000
_UUID_BYTES = 16

Order = Sequence[UUID]
"""The ids of an auditorium's seats, in the order of GetAuditorium."""


@dataclass(slots=True)
class _Known:
    order: Order
    update_time: datetime | None
    checked_at: float


class SeatOrders:
    """The orders of the auditoriums that were used last, in the memory of this process."""

    def __init__(self, database: Database, *, most_seats: int = _MOST_SEATS) -> None:
        self._database = database
        self._most_seats = most_seats
        self._known: OrderedDict[UUID, _Known] = OrderedDict()
        self._readings = coalescing.reads("seat orders", self._read_all)

    async def of(self, auditorium_id: UUID | None, *, max_age_seconds: float) -> Order:
        """The order of an auditorium's seats; empty without an auditorium.

        Seats that were added within `max_age_seconds` may be missing.
        """
        if auditorium_id is None:
            return ()
        known = self._known.get(auditorium_id)
        if known is None or time.monotonic() - known.checked_at >= max_age_seconds:
            return await self._readings.submit(auditorium_id)
        self._known.move_to_end(auditorium_id)
        return known.order

    async def _read_all(self, auditorium_ids: Sequence[UUID]) -> Sequence[Order | Exception]:
        async with self._database.reading() as connection:
            orders = {
                auditorium_id: await self._read(connection, auditorium_id)
                for auditorium_id in set(auditorium_ids)
            }
        return [orders[auditorium_id] for auditorium_id in auditorium_ids]

    async def _read(self, connection: AsyncConnection, auditorium_id: UUID) -> Order:
        """Reads the seats if the auditorium has changed since."""
        now = time.monotonic()
        update_time = await connection.scalar(
            sa.select(auditoriums.c.update_time).where(auditoriums.c.auditorium_id == auditorium_id)
        )
        known = self._known.get(auditorium_id)
        if known is None or known.update_time != update_time:
            # Before the seats were read: a later change is found by the next check.
            known = _Known(await _read_order(connection, auditorium_id), update_time, now)
        known.checked_at = now
        self._known[auditorium_id] = known
        self._known.move_to_end(auditorium_id)
        while sum(len(other.order) for other in self._known.values()) > self._most_seats:
            self._known.popitem(last=False)
        return known.order


def written(order: Order, states: Mapping[UUID, str]) -> str:
    """The string of an event's seats, whose states are given by seat id."""
    return "".join(
        [LETTERS[state] if (state := states.get(seat)) else NOT_ON_SALE for seat in order]
    )


async def _read_order(connection: AsyncConnection, auditorium_id: UUID) -> Order:
    """All seats in one large value: a row each takes longer."""
    joined = await connection.scalar(
        sa.select(
            sa.func.string_agg(
                sa.func.uuid_send(seats.c.seat_id),
                postgresql.aggregate_order_by(
                    sa.literal(b""), seats.c.row_index, seats.c.seat_index
                ),
            )
        ).where(seats.c.auditorium_id == auditorium_id)
    )
    ids: bytes = joined or b""
    return tuple(
        UUID(bytes=ids[start : start + _UUID_BYTES]) for start in range(0, len(ids), _UUID_BYTES)
    )
