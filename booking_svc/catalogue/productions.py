"""Productions. Events with the same production are its dates."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.catalogue import events, search_index
from booking_svc.catalogue.tables import events as events_table
from booking_svc.catalogue.tables import productions
from mesh.errors import DomainError, Reason
from mesh.ids import new_id
from mesh.paging import from_token, to_token

_SCOPE = "productions"
# Without those of the search.
_COLUMNS = [column for column in productions.c if column.name not in ("search", "name_search")]
_IS_LISTED = productions.c.delete_time.is_(None)


@dataclass(frozen=True, slots=True)
class Production:
    """`duration_minutes` is None and texts are empty where nothing is known."""

    production_id: UUID
    title: str
    description: str
    duration_minutes: int | None
    poster_url: str
    age_rating: str
    language: str
    tags: tuple[str, ...]
    create_time: datetime
    update_time: datetime
    delete_time: datetime | None


@dataclass(frozen=True, slots=True)
class ProductionPage:
    """Productions by title. `next_page_token` is empty on the last page."""

    productions: tuple[Production, ...]
    next_page_token: str
    total_size: int


async def create(
    connection: AsyncConnection, *, values: Mapping[str, Any], now: datetime
) -> Production:
    """Adds a production; `values` has the fields that staff set, by name."""
    row = await connection.execute(
        sa.insert(productions)
        .values(production_id=new_id(), create_time=now, update_time=now, **values)
        .returning(*_COLUMNS)
    )
    created = _production(row.one())
    await search_index.index(connection, productions, created.production_id)
    return created


async def get(connection: AsyncConnection, *, production_id: UUID) -> Production:
    """A production, also a deleted one. Raises PRODUCTION_NOT_FOUND."""
    rows = await connection.execute(
        sa.select(*_COLUMNS).where(productions.c.production_id == production_id)
    )
    return _existing(rows.one_or_none(), production_id)


async def require(connection: AsyncConnection, production_id: UUID | None) -> None:
    """Keeps a production, if there is an id, from being deleted until the transaction ends.

    Raises PRODUCTION_NOT_FOUND.
    """
    if production_id is None:
        return
    rows = await connection.execute(
        sa.select(*_COLUMNS)
        .where(productions.c.production_id == production_id, _IS_LISTED)
        .with_for_update(read=True)
    )
    _existing(rows.one_or_none(), production_id)


async def list_page(
    connection: AsyncConnection, *, page_size: int, page_token: str
) -> ProductionPage:
    """A page of productions by title. Raises VALIDATION_FAILED for a page token of another list."""
    query = sa.select(*_COLUMNS).where(_IS_LISTED)
    after = from_token(page_token, 2, scope=_SCOPE)
    if after is not None:
        title, production_id = after
        query = query.where(
            sa.tuple_(productions.c.title, productions.c.production_id)
            > sa.tuple_(sa.literal(title), sa.literal(UUID(production_id), sa.UUID()))
        )
    query = query.order_by(productions.c.title, productions.c.production_id)
    rows = (await connection.execute(query.limit(page_size + 1))).all()
    shown = tuple(map(_production, rows[:page_size]))
    total = await connection.execute(
        sa.select(sa.func.count()).select_from(productions).where(_IS_LISTED)
    )
    return ProductionPage(
        shown,
        to_token(shown[-1].title, str(shown[-1].production_id), scope=_SCOPE)
        if len(rows) > page_size
        else "",
        total.scalar_one(),
    )


async def update(
    connection: AsyncConnection, *, production_id: UUID, values: Mapping[str, Any], now: datetime
) -> Production:
    """Changes the fields in `values`. Raises PRODUCTION_NOT_FOUND."""
    rows = await connection.execute(
        sa.update(productions)
        .where(productions.c.production_id == production_id, _IS_LISTED)
        .values(update_time=now, **values)
        .returning(*_COLUMNS)
    )
    updated = _existing(rows.one_or_none(), production_id)
    await search_index.index(connection, productions, production_id)
    return updated


async def delete(connection: AsyncConnection, *, production_id: UUID, now: datetime) -> None:
    """Marks a production as deleted. Raises PRODUCTION_NOT_FOUND, or EVENT_STATE_INVALID."""
    # Excludes `require`: no event can be added between the check and the commit.
    locked = await connection.execute(
        sa.select(*_COLUMNS)
        .where(productions.c.production_id == production_id, _IS_LISTED)
        .with_for_update()
    )
    _existing(locked.one_or_none(), production_id)
    await events.refuse_to_come(
        connection, events_table.c.production_id == production_id, owner="production", now=now
    )
    await connection.execute(
        sa.update(productions)
        .where(productions.c.production_id == production_id)
        .values(delete_time=now)
    )


def _existing(row: sa.Row[Any] | None, production_id: UUID) -> Production:
    if row is None:
        raise DomainError(
            Reason.PRODUCTION_NOT_FOUND, "no such production", production_id=production_id
        )
    return _production(row)


def _production(row: sa.Row[Any]) -> Production:
    return Production(
        row.production_id,
        row.title,
        row.description,
        row.duration_minutes,
        row.poster_url,
        row.age_rating,
        row.language,
        tuple(row.tags),
        row.create_time,
        row.update_time,
        row.delete_time,
    )
