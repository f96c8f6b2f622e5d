"""Lists of events: filters, text, keyset pages, and how many there are."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from datetime import datetime, timedelta
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc import events, search, stock_levels
from booking_svc.events import Event, Status
from booking_svc.ports import Left
from booking_svc.tables import events as events_table
from mesh.paging import from_token, to_token

COUNTED_EXACTLY = 1_000
"""Up to here the number of events is counted with each page."""

TOTAL_LIFETIME = timedelta(seconds=10)
"""Beyond, a count is so old at most: counting 100,000 rows takes longer than the page."""

_TOTALS_KEPT = 1_000
_UNDATED = "infinity"


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
    left: Left


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
    matching = await _matching(connection, filters)
    wanted = events.selected.where(matching)
    if after is not None:
        start, event_id = after
        wanted = wanted.where(
            sa.tuple_(events_table.c.sort_time, events_table.c.event_id)
            > sa.tuple_(
                sa.cast(sa.literal(start, sa.Text), sa.DateTime(timezone=True)),
                sa.literal(UUID(event_id), sa.UUID()),
            )
        )
    rows = (
        await connection.execute(
            wanted.order_by(events_table.c.sort_time, events_table.c.event_id).limit(page_size + 1)
        )
    ).all()
    found = [events.from_row(row) for row in rows[:page_size]]
    lefts = await stock_levels.lefts(connection, events=found)
    more = len(rows) > page_size
    return Page(
        tuple(Listed(event, lefts[event.event_id]) for event in found),
        _token(found, scope) if more else "",
        await _count(connection, filters, matching, totals, now),
    )


def _token(found: Sequence[Event], scope: str) -> str:
    last = found[-1]
    start = _UNDATED if last.start_time is None else last.start_time.isoformat()
    return to_token(start, str(last.event_id), scope=scope)


async def _matching(connection: AsyncConnection, filters: Filters) -> sa.ColumnElement[bool]:
    table = events_table.c
    if filters.status is None:
        matching = table.current_status != sa.literal_column("'DRAFT'")
    else:
        matching = table.current_status == filters.status
    if filters.starts_after is not None:
        matching &= (table.sort_time >= filters.starts_after) & table.start_time.is_not(None)
    if filters.starts_before is not None:
        matching &= table.sort_time < filters.starts_before
    if filters.production_id is not None:
        matching &= table.production_id == filters.production_id
    if filters.venue_id is not None:
        matching &= table.venue_id == filters.venue_id
    if filters.query:
        matching &= await _found(connection, filters.query)
    return matching


async def _found(connection: AsyncConnection, query: str) -> sa.ColumnElement[bool]:
    """What holds for the events that a text finds: by their ids, when they are not many.

    The planner does not know how rare a word is, and with the other filters it would walk
    through all events in their order to find the few.
    """
    table = events_table.c
    condition = await search.condition(connection, query=query, column=table.search)
    ids = (
        await connection.scalars(
            sa.select(table.event_id).where(condition).limit(COUNTED_EXACTLY + 1)
        )
    ).all()
    if len(ids) > COUNTED_EXACTLY:
        return condition
    return table.event_id == sa.any_(sa.literal(list(ids), postgresql.ARRAY(sa.UUID())))


async def _count(
    connection: AsyncConnection,
    filters: Filters,
    matching: sa.ColumnElement[bool],
    totals: Totals,
    now: datetime,
) -> int:
    known = totals.get(filters, now)
    if known is not None:
        return known
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
