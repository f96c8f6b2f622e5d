"""Venues, and auditoriums with their seats. Events in them belong to events.py."""

from collections import Counter
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from datetime import datetime
from itertools import groupby
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.catalogue import time_zones
from booking_svc.catalogue.tables import auditoriums, seats, venues
from mesh.errors import DomainError, FieldViolation, Reason, invalid
from mesh.ids import new_id
from mesh.paging import from_token, to_token


@dataclass(frozen=True, slots=True)
class Venue:
    venue_id: UUID
    name: str
    time_zone: str
    address: str


@dataclass(frozen=True, slots=True)
class Seat:
    """`seat_type` is REGULAR, PREMIUM or WHEELCHAIR; x and y are positions on the map."""

    seat_id: UUID
    number: str
    seat_type: str
    x: float | None
    y: float | None


@dataclass(frozen=True, slots=True)
class Row:
    label: str
    seats: tuple[Seat, ...]


@dataclass(frozen=True, slots=True)
class Auditorium:
    auditorium_id: UUID
    venue_id: UUID
    name: str
    rows: tuple[Row, ...]


_VENUES = sa.select(venues.c.venue_id, venues.c.name, venues.c.time_zone, venues.c.address)


async def create_venue(
    connection: AsyncConnection, *, name: str, time_zone: str, address: str, now: datetime
) -> Venue:
    """Adds a venue. Raises VALIDATION_FAILED for an unknown time zone."""
    if violations := time_zones.violations("venue.time_zone", time_zone):
        raise invalid(*violations)
    venue = Venue(new_id(), name, time_zone, address)
    await connection.execute(
        venues.insert().values(
            venue_id=venue.venue_id,
            name=name,
            time_zone=time_zone,
            address=address,
            create_time=now,
        )
    )
    return venue


async def get_venue(connection: AsyncConnection, *, venue_id: UUID) -> Venue:
    """Raises VENUE_NOT_FOUND."""
    rows = await connection.execute(_VENUES.where(venues.c.venue_id == venue_id))
    row = rows.one_or_none()
    if row is None:
        raise DomainError(Reason.VENUE_NOT_FOUND, "no such venue", venue_id=venue_id)
    return Venue(*row)


@dataclass(frozen=True, slots=True)
class VenuePage:
    """Venues by name. `next_page_token` is empty on the last page."""

    venues: tuple[Venue, ...]
    next_page_token: str
    total_size: int


async def list_venues(connection: AsyncConnection, *, page_size: int, page_token: str) -> VenuePage:
    """A page of venues by name. Raises VALIDATION_FAILED for a page token of another list."""
    after = from_token(page_token, 2, scope="venues")
    query = _VENUES
    if after is not None:
        name, venue_id = after
        query = query.where(
            sa.tuple_(venues.c.name, venues.c.venue_id)
            > sa.tuple_(sa.literal(name), sa.literal(UUID(venue_id), sa.UUID()))
        )
    query = query.order_by(venues.c.name, venues.c.venue_id).limit(page_size + 1)
    rows = (await connection.execute(query)).all()
    shown = tuple(Venue(*row) for row in rows[:page_size])
    total = await connection.execute(sa.select(sa.func.count()).select_from(venues))
    more = len(rows) > page_size
    return VenuePage(
        shown,
        to_token(shown[-1].name, str(shown[-1].venue_id), scope="venues") if more else "",
        total.scalar_one(),
    )


async def create_auditorium(
    connection: AsyncConnection,
    *,
    venue_id: UUID,
    name: str,
    rows: tuple[Row, ...],
    now: datetime,
) -> Auditorium:
    """Adds an auditorium; the seats of `rows` have their ids already.

    Raises VENUE_NOT_FOUND, or VALIDATION_FAILED with every duplicate row label and seat number.
    """
    _refuse_duplicates(rows)
    await get_venue(connection, venue_id=venue_id)
    auditorium = Auditorium(new_id(), venue_id, name, rows)
    await connection.execute(
        auditoriums.insert().values(
            auditorium_id=auditorium.auditorium_id, venue_id=venue_id, name=name, create_time=now
        )
    )
    await connection.execute(
        seats.insert(),
        [
            {
                "seat_id": seat.seat_id,
                "auditorium_id": auditorium.auditorium_id,
                "row_index": row_index,
                "seat_index": seat_index,
                "row_label": row.label,
                "number": seat.number,
                "seat_type": seat.seat_type,
                "x": seat.x,
                "y": seat.y,
            }
            for row_index, row in enumerate(rows)
            for seat_index, seat in enumerate(row.seats)
        ],
    )
    return auditorium


async def get_auditorium(connection: AsyncConnection, *, auditorium_id: UUID) -> Auditorium:
    """Raises AUDITORIUM_NOT_FOUND."""
    auditorium_rows = await connection.execute(
        sa.select(auditoriums.c.venue_id, auditoriums.c.name).where(
            auditoriums.c.auditorium_id == auditorium_id
        )
    )
    auditorium = auditorium_rows.one_or_none()
    if auditorium is None:
        raise DomainError(
            Reason.AUDITORIUM_NOT_FOUND, "no such auditorium", auditorium_id=auditorium_id
        )
    seat_rows = await connection.execute(
        sa.select(seats)
        .where(seats.c.auditorium_id == auditorium_id)
        .order_by(seats.c.row_index, seats.c.seat_index)
    )
    rows = tuple(
        Row(
            label,
            tuple(Seat(seat.seat_id, seat.number, seat.seat_type, seat.x, seat.y) for seat in row),
        )
        for label, row in groupby(seat_rows, key=lambda seat: str(seat.row_label))
    )
    return Auditorium(auditorium_id, auditorium.venue_id, auditorium.name, rows)


async def seat_types(
    connection: AsyncConnection,
    *,
    auditorium_id: UUID,
    seat_ids: Collection[UUID] | None = None,
) -> Mapping[UUID, str]:
    """Seat types of an auditorium by seat id; with `seat_ids` only of those that exist."""
    query = sa.select(seats.c.seat_id, seats.c.seat_type).where(
        seats.c.auditorium_id == auditorium_id
    )
    if seat_ids is not None:
        query = query.where(seats.c.seat_id.in_(seat_ids))
    rows = await connection.execute(query.order_by(seats.c.row_index, seats.c.seat_index))
    return {row.seat_id: row.seat_type for row in rows}


async def seats_of_any(
    connection: AsyncConnection, seat_ids: Collection[UUID]
) -> Mapping[UUID, tuple[UUID, str]]:
    """Auditorium and type of each existing seat, in any auditorium, by seat id."""
    if not seat_ids:
        return {}
    ids = sa.bindparam("ids", list(seat_ids), postgresql.ARRAY(postgresql.UUID(as_uuid=True)))
    rows = await connection.execute(
        sa.select(seats.c.seat_id, seats.c.auditorium_id, seats.c.seat_type).where(
            seats.c.seat_id == sa.any_(ids)
        )
    )
    return {row.seat_id: (row.auditorium_id, row.seat_type) for row in rows}


def _refuse_duplicates(rows: tuple[Row, ...]) -> None:
    labels = Counter(row.label for row in rows)
    violations = [
        FieldViolation(
            f"rows[{index}].label", f"the row {row.label!r} occurs {labels[row.label]} times"
        )
        for index, row in enumerate(rows)
        if labels[row.label] > 1
    ]
    for index, row in enumerate(rows):
        numbers = Counter(seat.number for seat in row.seats)
        violations += [
            FieldViolation(
                f"rows[{index}].seats[{seat_index}].number",
                f"the seat {seat.number!r} occurs {numbers[seat.number]} times in row {row.label!r}",
            )
            for seat_index, seat in enumerate(row.seats)
            if numbers[seat.number] > 1
        ]
    if violations:
        raise invalid(*violations)
