"""How long waiting rooms know which account had a ticket or an admission.

What has no personal data stays with the room: the draw, the steps of admission, the counts.
"""

from datetime import datetime, timedelta
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.catalogue.events import StaffStatus
from booking_svc.catalogue.tables import events
from booking_svc.queueing.tables import queue_accounts, queue_admissions, waiting_rooms
from mesh.db.database import Database

RETENTION = timedelta(days=30)
"""From the end of the event, or of its sale if that is later."""

_BATCH = 5_000


async def delete_old(database: Database, *, now: datetime) -> int:
    """Deletes the accounts and admissions of events that are over, in short transactions.

    Returns how many rows.
    """
    total = 0
    for table in (queue_accounts, queue_admissions):
        deleted = _BATCH
        while deleted == _BATCH:
            async with database.transaction() as connection:
                deleted = await _delete_batch(connection, table, before=now - RETENTION)
            total += deleted
    return total


async def erase(connection: AsyncConnection, *, user_id: UUID) -> None:
    """Forgets an erased account. A ticket that it was admitted with stays used."""
    rooms = sa.select(waiting_rooms.c.event_id)
    await connection.execute(
        sa.delete(queue_accounts).where(
            queue_accounts.c.event_id.in_(rooms), queue_accounts.c.user_id == user_id
        )
    )
    await connection.execute(
        sa.update(queue_admissions)
        .where(queue_admissions.c.event_id.in_(rooms), queue_admissions.c.user_id == user_id)
        .values(user_id=sa.func.gen_random_uuid())
    )


async def _delete_batch(connection: AsyncConnection, table: sa.Table, *, before: datetime) -> int:
    event = events.c
    over = (
        sa.select(waiting_rooms.c.event_id)
        .join_from(waiting_rooms, events)
        .where(
            sa.or_(
                event.delete_time < before,
                sa.and_(event.status == StaffStatus.CANCELLED, event.update_time < before),
                sa.and_(
                    event.sale_end_time < before,
                    sa.or_(event.end_time.is_(None), event.end_time < before),
                ),
            )
        )
    )
    old = (
        sa.select(table.c.event_id, table.c.user_id).where(table.c.event_id.in_(over)).limit(_BATCH)
    )
    result = await connection.execute(
        sa.delete(table).where(sa.tuple_(table.c.event_id, table.c.user_id).in_(old))
    )
    return result.rowcount
