"""Venues, and auditoriums with their seats. Events in them belong to events.py."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from itertools import groupby
from typing import Any, Generic, TypeVar
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.catalogue import events, search_index, time_zones
from booking_svc.catalogue.tables import auditoriums, seats, venues
from booking_svc.catalogue.tables import events as events_table
from mesh.errors import DomainError, FieldViolation, Reason, invalid
from mesh.ids import new_id
from mesh.paging import from_token, to_token

_T = TypeVar("_T")

MAX_SEATS = 100_000
"""Of an auditorium."""

# Without those of the search.
_VENUE = [column for column in venues.c if column.name not in ("search", "name_search")]

_AUDITORIUMS = sa.select(
    auditoriums,
    sa.select(sa.func.count())
    .select_from(seats)
    .where(seats.c.auditorium_id == auditoriums.c.auditorium_id)
    .scalar_subquery()
    .label("seat_count"),
)


@dataclass(frozen=True, slots=True)
class Venue:
    venue_id: UUID
    name: str
    time_zone: str
    address: str
    create_time: datetime
    update_time: datetime
    delete_time: datetime | None


@dataclass(frozen=True, slots=True)
class Seat:
    """`seat_type` is REGULAR, PREMIUM or WHEELCHAIR; x and y are positions on the map."""

    seat_id: UUID
    number: str
    seat_type: str
    x: float | None
    y: float | None
    is_active: bool = True
    price_modifier: int = 0


@dataclass(frozen=True, slots=True)
class SeatTerms:
    """What decides the price of a seat; neither changes. `price_modifier` is in minor units."""

    seat_type: str
    price_modifier: int = 0


@dataclass(frozen=True, slots=True)
class Row:
    """A row; `section` is empty without one."""

    label: str
    seats: tuple[Seat, ...]
    section: str = ""

    @property
    def place(self) -> tuple[str, str]:
        """Section and label, unique in the auditorium."""
        return self.section, self.label


@dataclass(frozen=True, slots=True)
class Auditorium:
    """`rows` are empty in lists."""

    auditorium_id: UUID
    venue_id: UUID
    name: str
    seat_count: int
    rows: tuple[Row, ...]
    create_time: datetime
    update_time: datetime
    delete_time: datetime | None


@dataclass(frozen=True, slots=True)
class SeatChange:
    """Changes of a seat; None keeps a value."""

    seat_id: UUID
    is_active: bool | None
    x: float | None
    y: float | None

    def applied_to(self, seat: Seat) -> Seat:
        return replace(
            seat,
            is_active=seat.is_active if self.is_active is None else self.is_active,
            x=seat.x if self.x is None else self.x,
            y=seat.y if self.y is None else self.y,
        )


@dataclass(frozen=True, slots=True)
class Page(Generic[_T]):
    """Venues or auditoriums by name. `next_page_token` is empty on the last page."""

    resources: tuple[_T, ...]
    next_page_token: str
    total_size: int


async def create_venue(
    connection: AsyncConnection, *, name: str, time_zone: str, address: str, now: datetime
) -> Venue:
    """Adds a venue. Raises VALIDATION_FAILED for an unknown time zone."""
    _refuse_unknown_time_zone(time_zone)
    rows = await connection.execute(
        sa.insert(venues)
        .values(
            venue_id=new_id(),
            name=name,
            time_zone=time_zone,
            address=address,
            create_time=now,
            update_time=now,
        )
        .returning(*_VENUE)
    )
    venue = Venue(**rows.one()._mapping)
    await search_index.index(connection, venues, venue.venue_id)
    return venue


async def get_venue(connection: AsyncConnection, *, venue_id: UUID) -> Venue:
    """A venue, also a deleted one. Raises VENUE_NOT_FOUND."""
    rows = await connection.execute(sa.select(*_VENUE).where(venues.c.venue_id == venue_id))
    return _venue(rows.one_or_none(), venue_id)


async def list_venues(
    connection: AsyncConnection, *, page_size: int, page_token: str
) -> Page[Venue]:
    """A page of venues by name. Raises VALIDATION_FAILED for a page token of another list."""
    rows, token, total = await _page(
        connection, sa.select(*_VENUE), venues.c.venue_id, "venues", page_size, page_token
    )
    return Page(tuple(Venue(**row._mapping) for row in rows), token, total)


async def update_venue(
    connection: AsyncConnection, *, venue_id: UUID, values: Mapping[str, str], now: datetime
) -> Venue:
    """Changes the fields in `values`. Raises VENUE_NOT_FOUND, or VALIDATION_FAILED."""
    if "time_zone" in values:
        _refuse_unknown_time_zone(values["time_zone"])
    rows = await connection.execute(
        sa.update(venues)
        .where(venues.c.venue_id == venue_id, venues.c.delete_time.is_(None))
        .values(update_time=now, **values)
        .returning(*_VENUE)
    )
    venue = _venue(rows.one_or_none(), venue_id)
    await search_index.index(connection, venues, venue_id)
    return venue


async def delete_venue(connection: AsyncConnection, *, venue_id: UUID, now: datetime) -> None:
    """Marks a venue and its auditoriums as deleted.

    Raises VENUE_NOT_FOUND, or EVENT_STATE_INVALID when one has an event to come.
    """
    rows = await connection.execute(
        sa.update(venues)
        .where(venues.c.venue_id == venue_id, venues.c.delete_time.is_(None))
        .values(delete_time=now)
        .returning(*_VENUE)
    )
    _venue(rows.one_or_none(), venue_id)
    auditorium_ids = await connection.scalars(
        sa.select(auditoriums.c.auditorium_id)
        .where(auditoriums.c.venue_id == venue_id, auditoriums.c.delete_time.is_(None))
        .order_by(auditoriums.c.auditorium_id)
    )
    for auditorium_id in auditorium_ids.all():
        await delete_auditorium(connection, auditorium_id=auditorium_id, now=now)


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
    # Locks the venue: it is not deleted before the commit.
    locked = await connection.execute(
        sa.select(*_VENUE)
        .where(venues.c.venue_id == venue_id, venues.c.delete_time.is_(None))
        .with_for_update(read=True)
    )
    _venue(locked.one_or_none(), venue_id)
    auditorium_id = new_id()
    await connection.execute(
        sa.insert(auditoriums).values(
            auditorium_id=auditorium_id,
            venue_id=venue_id,
            name=name,
            create_time=now,
            update_time=now,
        )
    )
    await _insert_seats(connection, auditorium_id, enumerate(rows), {})
    return await get_auditorium(connection, auditorium_id=auditorium_id)


async def get_auditorium(connection: AsyncConnection, *, auditorium_id: UUID) -> Auditorium:
    """An auditorium, also a deleted one. Raises AUDITORIUM_NOT_FOUND."""
    auditorium = (
        await connection.execute(_AUDITORIUMS.where(auditoriums.c.auditorium_id == auditorium_id))
    ).one_or_none()
    if auditorium is None:
        raise _no_auditorium(auditorium_id)
    seat_rows = await connection.execute(
        sa.select(seats)
        .where(seats.c.auditorium_id == auditorium_id)
        .order_by(seats.c.row_index, seats.c.seat_index)
    )
    rows = tuple(
        Row(
            label,
            tuple(
                Seat(
                    seat.seat_id,
                    seat.number,
                    seat.seat_type,
                    seat.x,
                    seat.y,
                    seat.is_active,
                    seat.price_modifier,
                )
                for seat in row
            ),
            section,
        )
        for (section, label), row in groupby(
            seat_rows, key=lambda seat: (str(seat.section), str(seat.row_label))
        )
    )
    return _auditorium(auditorium, rows)


async def list_auditoriums(
    connection: AsyncConnection, *, venue_id: UUID, page_size: int, page_token: str
) -> Page[Auditorium]:
    """A page of a venue's auditoriums by name, without rows.

    Raises VENUE_NOT_FOUND, or VALIDATION_FAILED for a page token of another list.
    """
    await get_venue(connection, venue_id=venue_id)
    rows, token, total = await _page(
        connection,
        _AUDITORIUMS.where(auditoriums.c.venue_id == venue_id),
        auditoriums.c.auditorium_id,
        f"auditoriums of {venue_id}",
        page_size,
        page_token,
    )
    return Page(tuple(_auditorium(row, ()) for row in rows), token, total)


async def rename_auditorium(
    connection: AsyncConnection, *, auditorium_id: UUID, name: str, now: datetime
) -> Auditorium:
    """Raises AUDITORIUM_NOT_FOUND."""
    await _change_auditorium(connection, auditorium_id, name=name, update_time=now)
    return await get_auditorium(connection, auditorium_id=auditorium_id)


async def delete_auditorium(
    connection: AsyncConnection, *, auditorium_id: UUID, now: datetime
) -> None:
    """Marks an auditorium as deleted.

    Raises AUDITORIUM_NOT_FOUND, or EVENT_STATE_INVALID when it has an event to come.
    """
    # Locks the row: `require_auditorium` waits, so no event is added between check and commit.
    await _change_auditorium(connection, auditorium_id, delete_time=now)
    await events.refuse_to_come(
        connection, events_table.c.auditorium_id == auditorium_id, owner="auditorium", now=now
    )


async def venue_of(connection: AsyncConnection, *, auditorium_id: UUID) -> Venue:
    """The venue of an auditorium that is not deleted. Raises AUDITORIUM_NOT_FOUND."""
    rows = await connection.execute(
        sa.select(*_VENUE)
        .join(auditoriums, auditoriums.c.venue_id == venues.c.venue_id)
        .where(auditoriums.c.auditorium_id == auditorium_id, auditoriums.c.delete_time.is_(None))
    )
    row = rows.one_or_none()
    if row is None:
        raise _no_auditorium(auditorium_id)
    return Venue(**row._mapping)


async def require_auditorium(connection: AsyncConnection, auditorium_id: UUID | None) -> None:
    """Keeps an auditorium, if there is an id, from being deleted until the transaction ends.

    Raises AUDITORIUM_NOT_FOUND.
    """
    if auditorium_id is None:
        return
    rows = await connection.execute(
        sa.select(auditoriums.c.auditorium_id)
        .where(auditoriums.c.auditorium_id == auditorium_id, auditoriums.c.delete_time.is_(None))
        .with_for_update(read=True)
    )
    if rows.one_or_none() is None:
        raise _no_auditorium(auditorium_id)


async def add_seats(
    connection: AsyncConnection, *, auditorium_id: UUID, rows: tuple[Row, ...], now: datetime
) -> int:
    """Adds seats at the end of the rows with their labels, or in new rows behind the others.

    Returns the number of seats that the auditorium has then. Raises AUDITORIUM_NOT_FOUND, or
    VALIDATION_FAILED with every seat that exists.
    """
    _refuse_duplicates(rows)
    # Locks the row: another call waits before it reads the seats.
    await _change_auditorium(connection, auditorium_id, update_time=now)
    existing = await get_auditorium(connection, auditorium_id=auditorium_id)
    numbers = {row.place: {seat.number for seat in row.seats} for row in existing.rows}
    violations = [
        FieldViolation(
            f"rows[{index}].seats[{seat_index}].number",
            f"the seat {seat.number!r} exists in row {row.label!r}",
        )
        for index, row in enumerate(rows)
        for seat_index, seat in enumerate(row.seats)
        if seat.number in numbers.get(row.place, ())
    ]
    total = existing.seat_count + sum(len(row.seats) for row in rows)
    if total > MAX_SEATS:
        violations.append(
            FieldViolation("rows", f"the auditorium would have {total:,} of {MAX_SEATS:,} seats")
        )
    if violations:
        raise invalid(*violations)
    row_indexes = {row.place: index for index, row in enumerate(existing.rows)}
    new_places = [row.place for row in rows if row.place not in row_indexes]
    row_indexes |= {place: len(existing.rows) + n for n, place in enumerate(new_places)}
    await _insert_seats(
        connection,
        auditorium_id,
        ((row_indexes[row.place], row) for row in rows),
        {row.place: len(row.seats) for row in existing.rows},
    )
    return total


async def update_seats(
    connection: AsyncConnection,
    *,
    auditorium_id: UUID,
    changes: Sequence[SeatChange],
    now: datetime,
) -> tuple[Seat, ...]:
    """Changes seats and returns them, in the order of the changes.

    Raises AUDITORIUM_NOT_FOUND, or VALIDATION_FAILED with every other seat.
    """
    await _change_auditorium(connection, auditorium_id, update_time=now)
    auditorium = await get_auditorium(connection, auditorium_id=auditorium_id)
    known = {seat.seat_id: seat for row in auditorium.rows for seat in row.seats}
    violations = [
        FieldViolation(f"seats[{index}].seat_id", "is not a seat of this auditorium")
        for index, change in enumerate(changes)
        if change.seat_id not in known
    ]
    counts = Counter(change.seat_id for change in changes)
    violations += [
        FieldViolation(f"seats[{index}].seat_id", f"occurs {counts[change.seat_id]} times")
        for index, change in enumerate(changes)
        if counts[change.seat_id] > 1
    ]
    if violations:
        raise invalid(*violations)
    changed = [change.applied_to(known[change.seat_id]) for change in changes]
    await connection.execute(
        sa.update(seats)
        .where(seats.c.seat_id == sa.bindparam("changed_id"))
        .values(is_active=sa.bindparam("active"), x=sa.bindparam("left"), y=sa.bindparam("front")),
        [
            {
                "changed_id": seat.seat_id,
                "active": seat.is_active,
                "left": seat.x,
                "front": seat.y,
            }
            for seat in changed
        ],
    )
    return tuple(changed)


async def seat_types(
    connection: AsyncConnection,
    *,
    auditorium_id: UUID,
) -> Mapping[UUID, str]:
    """Types of an auditorium's active seats by seat id."""
    rows = await connection.execute(
        sa.select(seats.c.seat_id, seats.c.seat_type)
        .where(seats.c.auditorium_id == auditorium_id, seats.c.is_active)
        .order_by(seats.c.row_index, seats.c.seat_index)
    )
    return {row.seat_id: row.seat_type for row in rows}


async def seats_of_any(
    connection: AsyncConnection, seat_ids: Collection[UUID]
) -> Mapping[UUID, tuple[UUID, SeatTerms]]:
    """Auditorium and terms of each existing seat, in any auditorium, by seat id.

    Also of retired seats: an event may still sell one.
    """
    if not seat_ids:
        return {}
    ids = sa.bindparam("ids", list(seat_ids), postgresql.ARRAY(postgresql.UUID(as_uuid=True)))
    rows = await connection.execute(
        sa.select(
            seats.c.seat_id, seats.c.auditorium_id, seats.c.seat_type, seats.c.price_modifier
        ).where(seats.c.seat_id == sa.any_(ids))
    )
    return {
        row.seat_id: (row.auditorium_id, SeatTerms(row.seat_type, row.price_modifier))
        for row in rows
    }


async def _page(
    connection: AsyncConnection,
    query: sa.Select[Any],
    id_column: sa.Column[UUID],
    scope: str,
    page_size: int,
    page_token: str,
) -> tuple[Sequence[sa.Row[Any]], str, int]:
    """The rows of a page that are not deleted, by name; the next page's token; the total."""
    table: sa.FromClause = id_column.table
    listed = query.where(table.c.delete_time.is_(None))
    total = await connection.execute(
        sa.select(sa.func.count()).select_from(listed.with_only_columns(id_column).subquery())
    )
    if (after := from_token(page_token, 2, scope=scope)) is not None:
        name, last_id = after
        listed = listed.where(
            sa.tuple_(table.c.name, id_column)
            > sa.tuple_(sa.literal(name), sa.literal(UUID(last_id), sa.UUID()))
        )
    rows = (
        await connection.execute(listed.order_by(table.c.name, id_column).limit(page_size + 1))
    ).all()
    shown = rows[:page_size]
    token = ""
    if len(rows) > page_size:
        last = shown[-1]
        token = to_token(last.name, str(getattr(last, id_column.name)), scope=scope)
    return shown, token, total.scalar_one()


async def _insert_seats(
    connection: AsyncConnection,
    auditorium_id: UUID,
    rows: Iterable[tuple[int, Row]],
    seat_counts: Mapping[tuple[str, str], int],
) -> None:
    """Adds rows, given with their index, behind the `seat_counts` seats of the same row."""
    await connection.execute(
        seats.insert(),
        [
            {
                "seat_id": seat.seat_id,
                "auditorium_id": auditorium_id,
                "row_index": row_index,
                "seat_index": seat_counts.get(row.place, 0) + index,
                "section": row.section,
                "row_label": row.label,
                "number": seat.number,
                "seat_type": seat.seat_type,
                "x": seat.x,
                "y": seat.y,
                "is_active": seat.is_active,
                "price_modifier": seat.price_modifier,
            }
            for row_index, row in rows
            for index, seat in enumerate(row.seats)
        ],
    )


async def _change_auditorium(
    connection: AsyncConnection, auditorium_id: UUID, **values: Any
) -> None:
    """Raises AUDITORIUM_NOT_FOUND, also for a deleted one."""
    changed = await connection.execute(
        sa.update(auditoriums)
        .where(auditoriums.c.auditorium_id == auditorium_id, auditoriums.c.delete_time.is_(None))
        .values(**values)
    )
    if changed.rowcount == 0:
        raise _no_auditorium(auditorium_id)


def _no_auditorium(auditorium_id: UUID) -> DomainError:
    return DomainError(
        Reason.AUDITORIUM_NOT_FOUND, "no such auditorium", auditorium_id=auditorium_id
    )


def _venue(row: sa.Row[Any] | None, venue_id: UUID) -> Venue:
    if row is None:
        raise DomainError(Reason.VENUE_NOT_FOUND, "no such venue", venue_id=venue_id)
    return Venue(**row._mapping)


def _auditorium(row: sa.Row[Any], rows: tuple[Row, ...]) -> Auditorium:
    return Auditorium(
        row.auditorium_id,
        row.venue_id,
        row.name,
        row.seat_count,
        rows,
        row.create_time,
        row.update_time,
        row.delete_time,
    )


def _refuse_unknown_time_zone(time_zone: str) -> None:
    if violations := time_zones.violations("venue.time_zone", time_zone):
        raise invalid(*violations)


def _refuse_duplicates(rows: tuple[Row, ...]) -> None:
    if violations := duplicate_violations(rows):
        raise invalid(*violations)


def duplicate_violations(rows: tuple[Row, ...]) -> list[FieldViolation]:
    """Rows and seats that occur more than once, as fields of CreateAuditorium."""
    places = Counter(row.place for row in rows)
    violations = [
        FieldViolation(
            f"rows[{index}].label", f"the row {row.label!r} occurs {places[row.place]} times"
        )
        for index, row in enumerate(rows)
        if places[row.place] > 1
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
    return violations
