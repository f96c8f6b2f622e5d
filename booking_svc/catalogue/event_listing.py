"""Lists of events: filters, full-text search, keyset pages and total counts."""

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
"""Totals up to this number are counted for each page."""

MAX_UPCOMING = 20
"""How many events a production shows."""

TOTAL_LIFETIME = timedelta(seconds=10)
"""Age limit of a larger total: counting 100,000 rows takes longer than reading the page."""

_MAX_CACHED_TOTALS = 1_000
_UNDATED = "infinity"
_LISTED = [status for status in Status if status is not Status.DRAFT]

_Columns = sa.ColumnCollection[str, sa.ColumnElement[Any]]


@dataclass(frozen=True, slots=True)
class Filters:
    """Conditions on the events of a list; None means no condition."""

    status: Status | None = None
    starts_after: datetime | None = None
    starts_before: datetime | None = None
    production_id: UUID | None = None
    venue_id: UUID | None = None
    query: str = ""


@dataclass(frozen=True, slots=True)
class ListedEvent:
    event: Event
    availability: Availability


@dataclass(frozen=True, slots=True)
class Page:
    events: tuple[ListedEvent, ...]
    next_page_token: str
    total_size: int


class Totals:
    """Caches large totals by filters, for TOTAL_LIFETIME. One instance per process."""

    def __init__(self) -> None:
        self._totals: OrderedDict[Filters, tuple[int, datetime]] = OrderedDict()

    def get(self, filters: Filters, now: datetime) -> int | None:
        count, count_time = self._totals.get(filters, (0, None))
        return count if count_time is not None and now - count_time < TOTAL_LIFETIME else None

    def put(self, filters: Filters, count: int, now: datetime) -> None:
        self._totals[filters] = (count, now)
        self._totals.move_to_end(filters)
        while len(self._totals) > _MAX_CACHED_TOTALS:
            self._totals.popitem(last=False)


async def list_page(
    connection: AsyncConnection,
    *,
    filters: Filters,
    page_size: int,
    page_token: str,
    totals: Totals,
    now: datetime,
    shows_drafts: bool = False,
) -> Page:
    """A page of events by start time, events without one last.

    Drafts are listed with their status as filter only, and only if `shows_drafts`, for staff.
    Raises VALIDATION_FAILED for a page token of another list or of other filters.
    """
    if filters.status is Status.DRAFT and not shows_drafts:
        return Page((), "", 0)
    scope = f"events {astuple(filters)}"
    after = from_token(page_token, 2, scope=scope)
    text = await search.condition(connection, query=filters.query)
    cached_total = totals.get(filters, now)
    search_result = None
    if filters.query and cached_total is None:
        search_result = await _search_first(connection, filters, text, after, page_size + 1)
    if search_result is None:
        matching = sa.and_(_matching(events_table.c, filters), text)
        on_page: sa.ColumnElement[bool] = matching & _after(events_table.c, after)
        total = cached_total or await _count(connection, filters, matching, totals, now)
    else:
        on_page, total = search_result
    rows = (
        await connection.execute(
            events.selected.where(on_page)
            .order_by(events_table.c.sort_time, events_table.c.event_id)
            .limit(page_size + 1)
        )
    ).all()
    shown = [events.from_row(row) for row in rows[:page_size]]
    return Page(
        await with_availability(connection, shown),
        _token(shown[-1], scope) if len(rows) > page_size else "",
        total,
    )


async def upcoming(
    connection: AsyncConnection, *, production_id: UUID, now: datetime
) -> tuple[ListedEvent, ...]:
    """The next MAX_UPCOMING events of a production, by start time."""
    table = events_table.c
    rows = await connection.execute(
        events.selected.where(
            table.production_id == production_id,
            table.sort_time >= now,
            table.current_status.in_(_LISTED),
            events.is_to_come(now),
        )
        .order_by(table.sort_time, table.event_id)
        .limit(MAX_UPCOMING)
    )
    return await with_availability(connection, [events.from_row(row) for row in rows])


async def with_availability(
    connection: AsyncConnection, shown: Sequence[Event]
) -> tuple[ListedEvent, ...]:
    """The events as a list shows them."""
    availability_of = await stock_projection.availability_of(connection, events=shown)
    return tuple(ListedEvent(event, availability_of[event.event_id]) for event in shown)


def _token(last: Event, scope: str) -> str:
    start = _UNDATED if last.start_time is None else last.start_time.isoformat()
    return to_token(start, str(last.event_id), scope=scope)


def _after(columns: _Columns, after: Sequence[str] | None) -> sa.ColumnElement[bool]:
    """Events after the last one of the previous page."""
    if after is None:
        return sa.true()
    start, event_id = after
    return sa.tuple_(columns.sort_time, columns.event_id) > sa.tuple_(
        sa.cast(sa.literal(start, sa.Text), sa.DateTime(timezone=True)),
        sa.literal(UUID(event_id), sa.UUID()),
    )


def _matching(columns: _Columns, filters: Filters) -> sa.ColumnElement[bool]:
    """Events that match the filters, apart from the full-text query."""
    statuses = _LISTED if filters.status is None else [filters.status]
    matching: sa.ColumnElement[bool] = columns.current_status.in_(statuses)
    matching &= columns.delete_time.is_(None)
    if filters.starts_after is not None:
        # The index sorts events without a start time at infinity.
        dated = columns.sort_time < sa.literal_column(f"'{_UNDATED}'::timestamptz")
        matching &= (columns.sort_time >= filters.starts_after) & dated
    if filters.starts_before is not None:
        matching &= columns.sort_time < filters.starts_before
    if filters.production_id is not None:
        matching &= columns.production_id == filters.production_id
    if filters.venue_id is not None:
        matching &= columns.venue_id == filters.venue_id
    return matching


async def _search_first(
    connection: AsyncConnection,
    filters: Filters,
    text: sa.ColumnElement[bool],
    after: Sequence[str] | None,
    limit: int,
) -> tuple[sa.ColumnElement[bool], int] | None:
    """The page's events by id and the total; None when the text matches over COUNTED_EXACTLY.

    Evaluates the text before the other filters: the planner cannot estimate how rare a word is,
    and would scan all events in list order, or all of one status.
    """
    table = events_table.c
    text_matches = (
        sa.select(
            table.event_id,
            table.sort_time,
            table.current_status,
            table.production_id,
            table.venue_id,
            table.delete_time,
        )
        .where(text)
        .limit(COUNTED_EXACTLY + 1)
        .cte("text_matches")
        .prefix_with("MATERIALIZED")
    )
    matching = _matching(text_matches.c, filters)
    page = (
        sa.select(text_matches.c.event_id)
        .where(matching, _after(text_matches.c, after))
        .order_by(text_matches.c.sort_time, text_matches.c.event_id)
        .limit(limit)
    )
    count = sa.func.count()
    ids, text_match_count, total = (
        await connection.execute(
            sa.select(
                sa.func.array(page.scalar_subquery()), count, count.filter(matching)
            ).select_from(text_matches)
        )
    ).one()
    if text_match_count > COUNTED_EXACTLY:
        return None
    return table.event_id == sa.any_(sa.literal(ids, postgresql.ARRAY(sa.UUID()))), total


async def _count(
    connection: AsyncConnection,
    filters: Filters,
    matching: sa.ColumnElement[bool],
    totals: Totals,
    now: datetime,
) -> int:
    rows = sa.select(sa.literal(1)).select_from(events_table).where(matching)
    count = await connection.scalar(
        sa.select(sa.func.count()).select_from(rows.limit(COUNTED_EXACTLY + 1).subquery())
    )
    if count is None or count <= COUNTED_EXACTLY:
        return count or 0
    total = (
        await connection.execute(
            sa.select(sa.func.count()).select_from(events_table).where(matching)
        )
    ).scalar_one()
    totals.put(filters, total, now)
    return int(total)
