"""One search over events, productions and venues, by relevance, with keyset pages.

The order of results is docs/catalogue.md's. The words of a query and of a text are search.py's.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.catalogue import search
from booking_svc.catalogue.events import Status
from booking_svc.catalogue.search import Patterns
from booking_svc.catalogue.search_index import IDS
from booking_svc.catalogue.tables import events, productions, venues
from mesh.paging import from_token, to_token

_OVER = (Status.ENDED, Status.CANCELLED)


@dataclass(frozen=True, slots=True)
class EventResult:
    event_id: UUID
    name: str
    production_id: UUID | None
    venue_name: str | None
    time_zone: str
    start_time: datetime | None
    end_time: datetime | None
    status: Status


@dataclass(frozen=True, slots=True)
class ProductionResult:
    """`duration_minutes` is None and texts are empty where nothing is known."""

    production_id: UUID
    title: str
    duration_minutes: int | None
    poster_url: str
    age_rating: str
    language: str


@dataclass(frozen=True, slots=True)
class VenueResult:
    venue_id: UUID
    name: str
    time_zone: str
    address: str


Result = EventResult | ProductionResult | VenueResult


@dataclass(frozen=True, slots=True)
class Page:
    """A page of results. `next_page_token` is empty on the last page."""

    results: tuple[Result, ...]
    next_page_token: str
    total_size: int


async def list_page(
    connection: AsyncConnection, *, query: str, page_size: int, page_token: str
) -> Page:
    """The most relevant results first. Raises VALIDATION_FAILED for a token of another query."""
    scope = f"search {query}"
    after = from_token(page_token, 3, scope=scope)
    patterns = await search.patterns(connection, query=query)
    if patterns is None:
        return Page((), "", 0)
    rows = (await connection.execute(statement(patterns, after, page_size + 1))).all()
    # A page without results has one row, for the total.
    results = [row for row in rows if row.kind is not None]
    last = results[:page_size][-1] if results else None
    return Page(
        tuple(map(_result, results[:page_size])),
        to_token(str(last.rank), last.sort_name, str(last.id), scope=scope)
        if last is not None and len(results) > page_size
        else "",
        rows[0].total,
    )


def statement(patterns: Patterns, after: Sequence[str] | None, limit: int) -> sa.Select[Any]:
    """The results after those of the key `after`, with the number of all results.

    One statement: the matches of each table by its index, their order, and the page's rows.
    """
    matches = sa.union_all(
        _matches(events, events.c.name, patterns, is_over=_is_over()).where(
            events.c.current_status != Status.DRAFT
        ),
        _matches(productions, productions.c.title, patterns),
        _matches(venues, venues.c.name, patterns),
    ).cte("matches")
    key = (matches.c.rank, matches.c.sort_name, matches.c.id)
    page = sa.select(matches)
    if after is not None:
        rank, name, resource_id = after
        page = page.where(
            sa.tuple_(*key)
            > sa.tuple_(
                sa.literal(int(rank), sa.Integer),
                sa.literal(name, sa.Text),
                sa.literal(UUID(resource_id), sa.UUID()),
            )
        )
    shown = page.order_by(*key).limit(limit).subquery("shown")
    total = sa.select(sa.func.count().label("total")).select_from(matches).subquery("total")
    joined: sa.FromClause = total.outerjoin(shown, sa.true())
    for table, column in IDS.items():
        joined = joined.outerjoin(table, sa.and_(shown.c.kind == table.name, column == shown.c.id))
    return (
        sa.select(
            total.c.total, shown, *(column for columns in _COLUMNS.values() for column in columns)
        )
        .select_from(joined)
        .order_by(shown.c.rank, shown.c.sort_name, shown.c.id)
    )


def _matches(
    table: sa.Table,
    name: sa.ColumnElement[Any],
    patterns: Patterns,
    *,
    is_over: sa.ColumnElement[Any] | None = None,
) -> sa.Select[Any]:
    group = sa.case(
        (search.matches(table.c.name_search, patterns.words), 0),
        (search.matches(table.c.name_search, patterns.prefixes), 2),
        else_=4,
    )
    return sa.select(
        sa.literal_column(f"'{table.name}'").label("kind"),
        IDS[table].label("id"),
        name.label("sort_name"),
        (group if is_over is None else group + is_over).label("rank"),
    ).where(search.matches(table.c.search, patterns.prefixes), table.c.delete_time.is_(None))


def _is_over() -> sa.ColumnElement[Any]:
    return sa.case((events.c.current_status.in_(_OVER), 1), else_=0)


def _labelled(table: sa.Table, *names: str) -> list[sa.ColumnElement[Any]]:
    return [table.c[name].label(f"{table.name}_{name}") for name in names]


_COLUMNS = {
    events.name: _labelled(
        events,
        "event_id",
        "name",
        "production_id",
        "venue_name",
        "time_zone",
        "start_time",
        "end_time",
        "current_status",
    ),
    productions.name: _labelled(
        productions,
        "production_id",
        "title",
        "duration_minutes",
        "poster_url",
        "age_rating",
        "language",
    ),
    venues.name: _labelled(venues, "venue_id", "name", "time_zone", "address"),
}


def _result(row: sa.Row[Any]) -> Result:
    values = [row._mapping[column.name] for column in _COLUMNS[row.kind]]
    if row.kind == events.name:
        values[-1] = Status(values[-1])
        return EventResult(*values)
    return ProductionResult(*values) if row.kind == productions.name else VenueResult(*values)
