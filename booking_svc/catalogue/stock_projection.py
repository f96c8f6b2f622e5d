"""Stock levels of all events, copied from the ledger's change stream, for lists.

They lag the ledger, which alone decides sales. The availability of one event is in availability.py.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.catalogue import event_status
from booking_svc.catalogue.events import Event, Status
from booking_svc.catalogue.tables import events as events_table
from booking_svc.catalogue.tables import stock_levels
from booking_svc.clients.ports import Availability, StockChange
from mesh.db.pipeline import FORCE_INDEX_SCANS, Statement, array, columns, run_together


async def availability_of(
    connection: AsyncConnection, *, events: Sequence[Event]
) -> Mapping[UUID, Availability]:
    """The copied availability of some events, without seats."""
    ids = sa.literal([event.event_id for event in events], postgresql.ARRAY(sa.UUID()))
    rows = await connection.execute(
        sa.select(stock_levels).where(stock_levels.c.event_id == sa.any_(ids))
    )
    levels: dict[UUID, dict[UUID, tuple[int, int, int]]] = defaultdict(dict)
    for row in rows:
        levels[row.event_id][row.pool_id] = (row.capacity, row.available, row.version)
    return {event.event_id: _availability(event, levels[event.event_id]) for event in events}


async def apply(
    connection: AsyncConnection, changes: Sequence[StockChange], now: datetime
) -> Collection[UUID]:
    """Applies changes of the ledger's stream, except those older than the stored levels.

    Also updates what events and offers copy from the levels: capacities and `is_sold_out`.
    Returns the events that became SOLD_OUT.
    """
    latest = {(change.event_id, pool.pool_id): pool for change in changes for pool in change.pools}
    if not latest:
        return ()
    levels = [
        (*key, pool.capacity, pool.available, pool.version)
        for key, pool in latest.items()
        if not pool.removed
    ]
    removed = [key for key, pool in latest.items() if pool.removed]
    event_ids = {event_id for event_id, _ in latest}
    return await _run(
        connection,
        [Statement(_STORE, columns(levels, 5)), Statement(_DELETE, columns(removed, 2))],
        event_ids,
        now,
    )


async def update_events(
    connection: AsyncConnection, *, event_ids: Collection[UUID], now: datetime
) -> Collection[UUID]:
    """Copies the stored levels to the events' and offers' columns that depend on them.

    Returns the events that became SOLD_OUT.
    """
    return await _run(connection, [], event_ids, now)


async def _run(
    connection: AsyncConnection,
    stores: Sequence[Statement],
    event_ids: Collection[UUID],
    now: datetime,
) -> Collection[UUID]:
    """Runs the statements and those of `update_events` in one round trip."""
    ids = array(sorted(event_ids))
    copies = [Statement(_COPY_CAPACITIES, (ids,)), Statement(_COPY_SUMS, (ids,))]
    *_, updated = await run_together(connection, [FORCE_INDEX_SCANS, *stores, *copies])
    if not updated.rows:
        return ()
    table = events_table.c
    statuses = await connection.execute(
        sa.update(events_table)
        .where(table.event_id.in_([event_id for event_id, _ in updated.rows]))
        .values(**event_status.derived_columns(now))
        .returning(table.event_id, table.current_status)
    )
    sold = {event_id for event_id, is_sold in updated.rows if is_sold}
    return {
        event_id for event_id, status in statuses if status == Status.SOLD_OUT and event_id in sold
    }


# An event that does not exist yet is skipped: it is inserted with its own levels.
_STORE = """
INSERT INTO stock_levels AS stored (event_id, pool_id, capacity, available, version)
SELECT level.* FROM unnest(%s::uuid[], %s::uuid[], %s::int[], %s::int[], %s::bigint[])
    AS level (event_id, pool_id, capacity, available, version)
JOIN events USING (event_id) ORDER BY level.event_id, level.pool_id
ON CONFLICT (event_id, pool_id) DO UPDATE SET capacity = excluded.capacity,
    available = excluded.available, version = excluded.version
WHERE stored.version < excluded.version
"""

_DELETE = """
DELETE FROM stock_levels
WHERE (event_id, pool_id) IN (SELECT * FROM unnest(%s::uuid[], %s::uuid[]))
"""

_COPY_CAPACITIES = """
UPDATE offers SET capacity = level.capacity FROM stock_levels AS level
WHERE offers.event_id = ANY (%s::uuid[]) AND level.event_id = offers.event_id
  AND level.pool_id = offers.pool_id AND offers.capacity <> level.capacity
"""

# Only pools that have an offer count.
_COPY_SUMS = """
UPDATE events SET is_sold_out = sums.is_sold_out, total_capacity = sums.capacity
FROM (
    SELECT event_id, sum(capacity) AS capacity, sum(available) <= 0 AS is_sold_out
    FROM stock_levels AS level WHERE event_id = ANY (%s::uuid[]) AND EXISTS (
        SELECT 1 FROM offers
        WHERE offers.event_id = level.event_id AND offers.pool_id = level.pool_id
    ) GROUP BY event_id
) AS sums JOIN events AS old USING (event_id)
WHERE events.event_id = sums.event_id
  AND (events.is_sold_out <> sums.is_sold_out OR events.total_capacity <> sums.capacity)
RETURNING events.event_id, events.is_sold_out AND NOT old.is_sold_out
"""


def _availability(event: Event, levels: Mapping[UUID, tuple[int, int, int]]) -> Availability:
    return Availability(
        version=sum(version for _, _, version in levels.values()),
        offers={offer.offer_id: levels.get(offer.pool_id, (0, 0, 0))[1] for offer in event.offers},
        seats={},
        capacity=sum(capacity for capacity, _, _ in levels.values()),
        available=sum(available for _, available, _ in levels.values()),
    )
