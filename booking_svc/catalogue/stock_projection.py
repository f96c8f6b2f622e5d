"""Stock levels of all events, copied from the ledger's change stream, for lists.

They lag the ledger, which alone decides sales. The availability of one event is in availability.py.
"""

from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.catalogue import event_status
from booking_svc.catalogue.events import Event, Status
from booking_svc.catalogue.tables import events as events_table
from booking_svc.catalogue.tables import offers, stock_levels
from booking_svc.clients.ports import Availability, PoolChange, StockChange


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
    new_levels = _rows(latest)
    await connection.execute(
        postgresql.insert(stock_levels)
        .from_select(
            ["event_id", "pool_id", "capacity", "available", "version"],
            # An event that does not exist yet is skipped: it is inserted with its own levels.
            sa.select(new_levels)
            .join(events_table, events_table.c.event_id == new_levels.c.event_id)
            .order_by(new_levels.c.event_id, new_levels.c.pool_id),
        )
        .on_conflict_do_update(
            index_elements=[stock_levels.c.event_id, stock_levels.c.pool_id],
            set_={
                name: sa.literal_column(f"excluded.{name}")
                for name in ("capacity", "available", "version")
            },
            where=stock_levels.c.version < sa.literal_column("excluded.version"),
        )
    )
    removed = [key for key, pool in latest.items() if pool.removed]
    if removed:
        await connection.execute(
            sa.delete(stock_levels).where(
                sa.tuple_(stock_levels.c.event_id, stock_levels.c.pool_id).in_(removed)
            )
        )
    return await update_events(connection, event_ids={event_id for event_id, _ in latest}, now=now)


async def update_events(
    connection: AsyncConnection, *, event_ids: Collection[UUID], now: datetime
) -> Collection[UUID]:
    """Copies the stored levels to the events' and offers' columns that depend on them.

    Returns the events that became SOLD_OUT.
    """
    ids = sa.any_(sa.literal(sorted(event_ids), postgresql.ARRAY(sa.UUID())))
    await connection.execute(
        sa.update(offers)
        .where(offers.c.event_id == ids)
        .where(
            offers.c.event_id == stock_levels.c.event_id,
            offers.c.pool_id == stock_levels.c.pool_id,
            offers.c.capacity.is_not(None),
            offers.c.capacity != stock_levels.c.capacity,
        )
        .values(capacity=stock_levels.c.capacity)
    )
    # Only pools that have an offer count.
    is_sold = sa.exists().where(
        offers.c.event_id == stock_levels.c.event_id, offers.c.pool_id == stock_levels.c.pool_id
    )
    sums = (
        sa.select(
            stock_levels.c.event_id,
            sa.func.sum(stock_levels.c.capacity).label("capacity"),
            (sa.func.sum(stock_levels.c.available) <= 0).label("is_sold_out"),
        )
        .where(stock_levels.c.event_id == ids, is_sold)
        .group_by(stock_levels.c.event_id)
        .subquery()
    )
    table, old = events_table.c, events_table.alias("old").c
    updated = (
        await connection.execute(
            sa.update(events_table)
            .where(table.event_id == sums.c.event_id, table.event_id == old.event_id)
            .where(
                sa.or_(
                    table.is_sold_out != sums.c.is_sold_out,
                    table.total_capacity != sums.c.capacity,
                )
            )
            .values(is_sold_out=sums.c.is_sold_out, total_capacity=sums.c.capacity)
            .returning(table.event_id, table.is_sold_out & ~old.is_sold_out)
        )
    ).all()
    if not updated:
        return ()
    statuses = await connection.execute(
        sa.update(events_table)
        .where(table.event_id.in_([event_id for event_id, _ in updated]))
        .values(**event_status.derived_columns(now))
        .returning(table.event_id, table.current_status)
    )
    sold = {event_id for event_id, is_sold in updated if is_sold}
    return {
        event_id for event_id, status in statuses if status == Status.SOLD_OUT and event_id in sold
    }


def _rows(latest: Mapping[tuple[UUID, UUID], PoolChange]) -> sa.Subquery:
    """The latest change of each pool as rows."""
    keys = [key for key, pool in latest.items() if not pool.removed]
    columns: dict[str, tuple[sa.types.TypeEngine[Any], list[Any]]] = {
        "event_id": (sa.UUID(), [event_id for event_id, _ in keys]),
        "pool_id": (sa.UUID(), [pool_id for _, pool_id in keys]),
        "capacity": (sa.Integer(), [latest[key].capacity for key in keys]),
        "available": (sa.Integer(), [latest[key].available for key in keys]),
        "version": (sa.BigInteger(), [latest[key].version for key in keys]),
    }
    arrays = [sa.literal(values, postgresql.ARRAY(kind)) for kind, values in columns.values()]
    typed = [sa.column(name, kind) for name, (kind, _) in columns.items()]
    rows = sa.func.unnest(*arrays).table_valued(*typed).render_derived()
    return sa.select(rows).subquery()


def _availability(event: Event, levels: Mapping[UUID, tuple[int, int, int]]) -> Availability:
    return Availability(
        version=sum(version for _, _, version in levels.values()),
        offers={offer.offer_id: levels.get(offer.pool_id, (0, 0, 0))[1] for offer in event.offers},
        seats={},
        capacity=sum(capacity for capacity, _, _ in levels.values()),
        available=sum(available for _, available, _ in levels.values()),
    )
