"""The columns `search` and `name_search` of productions and venues, and of rows without them.

Events are written with theirs (events.py).
"""

from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.catalogue import search
from booking_svc.catalogue.tables import events, productions, venues
from mesh.db.database import Database

IDS: dict[sa.Table, sa.Column[UUID]] = {
    events: events.c.event_id,
    productions: productions.c.production_id,
    venues: venues.c.venue_id,
}
"""What can be searched, with the column of the id."""

# The name first. Of events only the name: all versions write their other words.
_TEXTS = {
    events: (events.c.name,),
    productions: (
        productions.c.title,
        productions.c.description,
        sa.func.array_to_string(productions.c.tags, " "),
    ),
    venues: (venues.c.name, venues.c.address),
}
# Bookings may wait for the rows of a batch.
_AT_ONCE = 100


async def index(connection: AsyncConnection, table: sa.Table, row_id: UUID) -> None:
    """Indexes a row that was written in the same transaction."""
    await _index(connection, table, IDS[table] == row_id)


async def index_missing(database: Database) -> int:
    """Indexes the rows that a version without these columns has written. Returns how many."""
    indexed = 0
    for table in IDS:
        count = _AT_ONCE
        while count == _AT_ONCE:
            async with database.transaction() as connection:
                count = await _index(connection, table, table.c.name_search.is_(None))
            indexed += count
    return indexed


async def _index(
    connection: AsyncConnection, table: sa.Table, selected: sa.ColumnElement[bool]
) -> int:
    """Indexes up to _AT_ONCE rows; those that another transaction changes are left to it."""
    rows = await connection.execute(
        sa.select(IDS[table], *_TEXTS[table])
        .where(selected)
        .limit(_AT_ONCE)
        .with_for_update(key_share=True, skip_locked=True)
    )
    texts_of = {row_id: texts for row_id, *texts in rows}
    if not texts_of:
        return 0
    columns = {"name_search": _vector("name_words")}
    values: list[dict[str, Any]] = [
        {"row_id": row_id, "name_words": search.words_of(texts[0])}
        for row_id, texts in texts_of.items()
    ]
    if table is not events:
        columns["search"] = _vector("words")
        for value in values:
            value["words"] = search.words_of(*texts_of[value["row_id"]])
        await search.learn(
            connection, words=list({word for value in values for word in value["words"]})
        )
    await connection.execute(
        sa.update(table).where(IDS[table] == sa.bindparam("row_id")).values(columns), values
    )
    return len(values)


def _vector(name: str) -> sa.ColumnElement[object]:
    return sa.func.array_to_tsvector(sa.bindparam(name, type_=postgresql.ARRAY(sa.Text)))
