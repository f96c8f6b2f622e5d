"""Domain events about events that are sold out, which follow from the ledger's change stream."""

from collections.abc import Collection, Sequence
from datetime import datetime
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.catalogue import events, outbox, stock_projection
from booking_svc.catalogue.outbox import SoldOut
from booking_svc.clients.ports import StockChange


async def apply(connection: AsyncConnection, changes: Sequence[StockChange], now: datetime) -> None:
    """Applies changes of the ledger's stream to the stock levels, and announces what is sold out."""
    await announce(connection, await stock_projection.apply(connection, changes, now), now)


async def announce(connection: AsyncConnection, event_ids: Collection[UUID], now: datetime) -> None:
    """Writes the domain event of each of some events that have just been sold out."""
    if not event_ids:
        return
    known = (await events.get_all(connection, event_ids)).values()
    stock = await stock_projection.availability_of(connection, events=list(known))
    for event in known:
        await outbox.append(
            connection, event=event, stock=stock[event.event_id], change=SoldOut(), now=now
        )
