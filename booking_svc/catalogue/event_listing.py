"""Lists of events: filters, text, keyset pages, and how many there are."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.catalogue import events, search, stock_projection
from booking_svc.catalogue.events import Event, Status
from booking_svc.catalogue.tables import events as events_table
from booking_svc.clients.ports import Availability
from mesh.paging import from_token, to_token

COUNTED_EXACTLY = 1_000
"""Up to here the number of events is counted with each page."""

TOTAL_LIFETIME = timedelta(seconds=10)
"""Beyond, a count is so old at most: counting 100,000 rows takes longer than the page."""

_TOTALS_KEPT = 1_000
_UNDATED = "infinity"
_LISTED = [status for status in Status if status is not Status.DRAFT]

_Columns = sa.ColumnCollection[str, sa.ColumnElement[Any]]


@dataclass(frozen=True, slots=True)
class Filters:
    """What must hold for the events of a list."""

    status: Status | None = None
    starts_after: datetime | None = None
    starts_before: datetime | None = None
    production_id: UUID | None = None
    venue_id: UUID | None = None
    query: str = ""


@dataclass(frozen=True, slots=True)
class Listed:
    event: Event
    left: Availability


@dataclass(frozen=True, slots=True)
class Page:
    events: tuple[Listed, ...]
    next_page_token: str
    total_size: int


class Totals:
    """How many events there were for some filters a moment ago. One per process."""

    def __init__(self) -> None:
        self._known: OrderedDict[Filters, tuple[int, datetime]] = OrderedDict()

    def get(self, filters: Filters, now: datetime) -> int | None:
        count, counted = self._known.get(filters, (0, None))
        return count if counted is not None and now - counted < TOTAL_LIFETIME else None

    def put(self, filters: Filters, count: int, now: datetime) -> None:
        self._known[filters] = (count, now)
        self._known.move_to_end(filters)
        while len(self._known) > _TOTALS_KEPT:
            self._known.popitem(last=False)


async def list_page(
    connection: AsyncConnection,
    *,
    filters: Filters,
    page_size: int,
    page_token: str,
    totals: Totals,
    now: datetime,
) -> Page:
    """A page of events by their start, the undated last.

    Raises VALIDATION_FAILED for a token that is not of this list with these filters.
    """
    scope = f"events {astuple(filters)}"
    after = from_token(page_token, 2, scope=scope)
    text = await search.condition(connection, query=filters.query)
    known = totals.get(filters, now)
    few = None
    if filters.query and known is None:
        few = await _few(connection, filters, text, after, page_size + 1)
    if few is None:
        matching = sa.and_(_matching(events_table.c, filters), text)
        wanted: sa.ColumnElement[bool] = matching & _after(events_table.c, after)
        total = known or await _count(connection, filters, matching, totals, now)
    else:
        wanted, total = few
    rows = (
        await connection.execute(
            events.selected.where(wanted)
            .order_by(events_table.c.sort_time, events_table.c.event_id)
            .limit(page_size + 1)
        )
    ).all()
    found = [events.from_row(row) for row in rows[:page_size]]
    availability_of = await stock_projection.availability_of(connection, events=found)
    more = len(rows) > page_size
    return Page(
        tuple(Listed(event, availability_of[event.event_id]) for event in found),
        _token(found, scope) if more else "",
        total,
    )


def _token(found: Sequence[Event], scope: str) -> str:
    last = found[-1]
    start = _UNDATED if last.start_time is None else last.start_time.isoformat()
    return to_token(start, str(last.event_id), scope=scope)


def _after(of: _Columns, after: Sequence[str] | None) -> sa.ColumnElement[bool]:
    """What comes after the last event of the page before."""
    if after is None:
        return sa.true()
    start, event_id = after
    return sa.tuple_(of.sort_time, of.event_id) > sa.tuple_(
        sa.cast(sa.literal(start, sa.Text), sa.DateTime(timezone=True)),
        sa.literal(UUID(event_id), sa.UUID()),
    )


def _matching(of: _Columns, filters: Filters) -> sa.ColumnElement[bool]:
    """What the filters say, without their text."""
    statuses = _LISTED if filters.status is None else [filters.status]
    matching: sa.ColumnElement[bool] = of.current_status.in_(statuses)
    if filters.starts_after is not None:
        # As the index has it, which says of the undated that they start never.
        dated = of.sort_time < sa.literal_column(f"'{_UNDATED}'::timestamptz")
        matching &= (of.sort_time >= filters.starts_after) & dated
    if filters.starts_before is not None:
        matching &= of.sort_time < filters.starts_before
    if filters.production_id is not None:
        matching &= of.production_id == filters.production_id
    if filters.venue_id is not None:
        matching &= of.venue_id == filters.venue_id
    return matching


async def _few(
    connection: AsyncConnection,
    filters: Filters,
    text: sa.ColumnElement[bool],
    after: Sequence[str] | None,
    limit: int,
) -> tuple[sa.ColumnElement[bool], int] | None:
    """The next events by their ids, and how many there are in all; None when the text finds
    too many.

    The text alone comes first: the planner does not know how rare a word is, and would walk
    through all events in their order, or of a status, to find the few.
    """
    table = events_table.c
    found = (
        sa.select(
            table.event_id,
            table.sort_time,
            table.current_status,
            table.production_id,
            table.venue_id,
        )
        .where(text)
        .limit(COUNTED_EXACTLY + 1)
        .cte("found")
        .prefix_with("MATERIALIZED")
    )
    matching = _matching(found.c, filters)
    page = (
        sa.select(found.c.event_id)
        .where(matching, _after(found.c, after))
        .order_by(found.c.sort_time, found.c.event_id)
        .limit(limit)
    )
    count = sa.func.count()
    ids, of_text, total = (
        await connection.execute(
            sa.select(
                sa.func.array(page.scalar_subquery()), count, count.filter(matching)
            ).select_from(found)
        )
    ).one()
    if of_text > COUNTED_EXACTLY:
        return None
    return table.event_id == sa.any_(sa.literal(ids, postgresql.ARRAY(sa.UUID()))), total


async def _count(
    connection: AsyncConnection,
    filters: Filters,
    matching: sa.ColumnElement[bool],
    totals: Totals,
    now: datetime,
) -> int:
    some = sa.select(sa.literal(1)).select_from(events_table).where(matching)
    counted = await connection.scalar(
        sa.select(sa.func.count()).select_from(some.limit(COUNTED_EXACTLY + 1).subquery())
    )
    if counted is None or counted <= COUNTED_EXACTLY:
        return counted or 0
    total = (
        await connection.execute(
            sa.select(sa.func.count()).select_from(events_table).where(matching)
        )
    ).scalar_one()
    totals.put(filters, total, now)
    return int(total)
