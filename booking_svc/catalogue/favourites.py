"""Events that users have marked."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.catalogue import event_listing, events
from booking_svc.catalogue.event_listing import Page
from booking_svc.catalogue.events import Status
from booking_svc.catalogue.tables import events as events_table
from booking_svc.catalogue.tables import favourites
from mesh.db.pipeline import FORCE_INDEX_SCANS, Statement, columns, run_together
from mesh.paging import from_token, to_token


async def add(connection: AsyncConnection, *, user_id: UUID, event_id: UUID, now: datetime) -> None:
    """Raises EVENT_NOT_FOUND, also for a draft."""
    listed = sa.select(
        sa.literal(user_id, sa.UUID()), events_table.c.event_id, sa.literal(now)
    ).where(events_table.c.event_id == event_id, events_table.c.current_status != Status.DRAFT)
    listed = listed.where(events_table.c.delete_time.is_(None))
    added = await connection.execute(
        postgresql.insert(favourites)
        .from_select(["user_id", "event_id", "create_time"], listed)
        .on_conflict_do_update(
            index_elements=["user_id", "event_id"],
            set_={"create_time": favourites.c.create_time},
        )
        .returning(favourites.c.event_id)
    )
    if added.one_or_none() is None:
        raise events.not_found(event_id)


async def remove(connection: AsyncConnection, *, user_id: UUID, event_id: UUID) -> None:
    await connection.execute(
        sa.delete(favourites).where(
            favourites.c.user_id == user_id, favourites.c.event_id == event_id
        )
    )


async def erase(connection: AsyncConnection, *, user_id: UUID) -> None:
    """Removes all marks of an erased account."""
    await connection.execute(sa.delete(favourites).where(favourites.c.user_id == user_id))


MARKED = """
SELECT requested.number
FROM unnest(%s::int[], %s::uuid[], %s::uuid[]) AS requested (number, user_id, event_id)
JOIN favourites USING (user_id, event_id)
"""


async def marked(
    connection: AsyncConnection, *, keys: Sequence[tuple[UUID, UUID]]
) -> frozenset[int]:
    """The positions of the pairs of a user and an event that the user has marked."""
    numbered = [(number, *key) for number, key in enumerate(keys)]
    _, result = await run_together(
        connection, [FORCE_INDEX_SCANS, Statement(MARKED, columns(numbered, 3))]
    )
    return frozenset(number for (number,) in result.rows)


async def list_page(
    connection: AsyncConnection, *, user_id: UUID, page_size: int, page_token: str
) -> Page:
    """A page of a user's events. Raises VALIDATION_FAILED for a page token of another list."""
    is_marked = favourites.c.user_id == user_id
    is_listed = events_table.c.delete_time.is_(None)
    query = (
        events.selected.add_columns(favourites.c.create_time.label("mark_time"))
        .join(favourites, favourites.c.event_id == events_table.c.event_id)
        .where(is_marked, is_listed)
    )
    scope = f"favourites of {user_id}"
    if (after := from_token(page_token, 2, scope=scope)) is not None:
        mark_time, event_id = after
        query = query.where(
            sa.tuple_(favourites.c.create_time, favourites.c.event_id)
            < sa.tuple_(
                sa.literal(datetime.fromisoformat(mark_time)),
                sa.literal(UUID(event_id), sa.UUID()),
            )
        )
    query = query.order_by(favourites.c.create_time.desc(), favourites.c.event_id.desc())
    rows = (await connection.execute(query.limit(page_size + 1))).all()
    shown = rows[:page_size]
    total = await connection.execute(
        sa.select(sa.func.count()).join_from(favourites, events_table).where(is_marked, is_listed)
    )
    return Page(
        await event_listing.with_availability(connection, [events.from_row(row) for row in shown]),
        to_token(shown[-1].mark_time.isoformat(), str(shown[-1].event_id), scope=scope)
        if len(rows) > page_size
        else "",
        total.scalar_one(),
    )
