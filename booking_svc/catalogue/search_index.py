"""The columns `search` and `name_search` of productions and venues, and of rows without them.

Events are written with theirs (events.py).
"""

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

# The name first.
_TEXTS = {
    events: (events.c.name, events.c.description, sa.func.coalesce(events.c.venue_name, "")),
    productions: (
        productions.c.title,
        productions.c.description,
        sa.func.array_to_string(productions.c.tags, " "),
    ),
    venues: (venues.c.name, venues.c.address),
}
_AT_ONCE = 500


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
    words = {row_id: (search.words_of(*texts), texts[0]) for row_id, *texts in rows}
    if not words:
        return 0
    columns = {
        name: sa.func.array_to_tsvector(sa.bindparam(f"{name}_", type_=postgresql.ARRAY(sa.Text)))
        for name in ("search", "name_search")
    }
    await connection.execute(
        sa.update(table).where(IDS[table] == sa.bindparam("row_id")).values(**columns),
        [
            {"row_id": row_id, "search_": all_words, "name_search_": search.words_of(name)}
            for row_id, (all_words, name) in words.items()
        ],
    )
    await search.learn(
        connection, words=list({word for all_words, _ in words.values() for word in all_words})
    )
    return len(words)
