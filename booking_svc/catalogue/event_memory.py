"""Events and the terms of seats in the memory of this process, as they were last read.

An event may have changed since. Who acts on one tests its revision in the transaction that writes,
and refuses nothing because of it (bookings/placement.py). The type and
the price modifier of a seat never change.
"""

from collections import OrderedDict
from collections.abc import Collection, Mapping
from datetime import datetime, timedelta
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.catalogue.events import Event
from booking_svc.catalogue.tables import seats
from booking_svc.catalogue.venues import SeatTerms

_MOST_EVENTS = 1_000
# Of all auditoriums together: about 25 MB.
_MOST_SEATS = 250_000
_UUID_BYTES = 16
_FRESH = timedelta(seconds=1)

SeatsByKey = Mapping[bytes, SeatTerms]
"""The terms of all seats of an auditorium, by the 16 bytes of the seat's id."""


class EventMemory:
    """The events and auditoriums that were used last."""

    def __init__(self, *, most_events: int = _MOST_EVENTS, most_seats: int = _MOST_SEATS) -> None:
        self._most_events = most_events
        self._most_seats = most_seats
        self._events: OrderedDict[UUID, Event] = OrderedDict()
        self._read_times: dict[UUID, datetime] = {}
        self._seats: OrderedDict[UUID, SeatsByKey] = OrderedDict()

    def event(self, event_id: UUID) -> Event | None:
        event = self._events.get(event_id)
        if event is not None:
            self._events.move_to_end(event_id)
        return event

    def is_fresh(self, event_id: UUID, now: datetime) -> bool:
        """Whether the event was read within the last second."""
        read_time = self._read_times.get(event_id)
        return read_time is not None and now - read_time < _FRESH

    def remember(
        self, event_id: UUID, event: Event | None, read_time: datetime | None = None
    ) -> None:
        """Keeps an event as it was just read; None if it does not exist."""
        self._events.pop(event_id, None)
        self._read_times.pop(event_id, None)
        if event is not None:
            self._events[event_id] = event
            if read_time is not None:
                self._read_times[event_id] = read_time
            while len(self._events) > self._most_events:
                oldest, _ = self._events.popitem(last=False)
                self._read_times.pop(oldest, None)

    def seat_terms(
        self, event: Event, seat_ids: Collection[UUID]
    ) -> Mapping[UUID, SeatTerms] | None:
        """The terms of seats of the event's auditorium; None if one of them is not known."""
        if not seat_ids:
            return {}
        known = self._seats.get(event.auditorium_id) if event.auditorium_id else None
        if known is None:
            return None
        terms = {seat_id: known[key] for seat_id in seat_ids if (key := seat_id.bytes) in known}
        return terms if len(terms) == len(seat_ids) else None

    def remember_seats(self, auditorium_id: UUID, terms: SeatsByKey) -> None:
        """Keeps all seats of an auditorium, unless there are too many."""
        self._seats.pop(auditorium_id, None)
        if len(terms) > self._most_seats:
            return
        self._seats[auditorium_id] = terms
        while sum(map(len, self._seats.values())) > self._most_seats:
            self._seats.popitem(last=False)


async def read_seat_terms(connection: AsyncConnection, auditorium_id: UUID) -> SeatsByKey:
    """The terms of all seats of an auditorium, in a few large values: a row each takes longer."""
    ids = sa.func.string_agg(sa.func.uuid_send(seats.c.seat_id), sa.literal(b""))
    rows = await connection.execute(
        sa.select(seats.c.seat_type, seats.c.price_modifier, ids.label("ids"))
        .where(seats.c.auditorium_id == auditorium_id)
        .group_by(seats.c.seat_type, seats.c.price_modifier)
    )
    return {
        row.ids[start : start + _UUID_BYTES]: terms
        for row in rows
        for terms in [SeatTerms(row.seat_type, row.price_modifier)]
        for start in range(0, len(row.ids), _UUID_BYTES)
    }
