"""What the staff does to events, across the catalogue and the ledger.

No transaction is open during a call to stock_svc. Between any two steps the process may
die: the catalogue never names stock that the ledger does not know, and stock that no event
sells is taken out again (unwanted_stock.py).
"""

from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from uuid import UUID

import sqlalchemy as sa
from psycopg.errors import ForeignKeyViolation
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.catalogue import (
    event_creation,
    event_status,
    event_update,
    events,
    orphaned_stock,
    stock_projection,
    venues,
)
from booking_svc.catalogue.event_creation import NewEvent, Plan
from booking_svc.catalogue.event_update import ChangePlan, EventChange
from booking_svc.catalogue.events import Event, Status
from booking_svc.catalogue.tables import event_cancellations, offers
from booking_svc.catalogue.tables import events as events_table
from booking_svc.catalogue.tables import stock_levels as levels_table
from booking_svc.clients.ports import Availability, Stock
from mesh.clock import Clock
from mesh.db.database import Database
from mesh.db.idempotent import IdempotentWrites, Key, Store
from mesh.errors import DomainError, Reason

Encode = Callable[[Event, Availability], bytes]
"""An event as the client gets it."""

# Longer than a change of the stock can take.
_CHANGING = timedelta(seconds=15)


class EventCommands:
    """`on_change` hears of each event that was changed or removed, once that is durable."""

    def __init__(
        self,
        *,
        database: Database,
        writes: IdempotentWrites,
        stock: Stock,
        clock: Clock,
        on_change: Callable[[UUID], None] = lambda _: None,
    ) -> None:
        self._database = database
        self._writes = writes
        self._stock = stock
        self._clock = clock
        self._on_change = on_change

    async def create(self, *, new: NewEvent, key: Key | None, encode: Encode) -> bytes:
        """Puts an event on sale, once per key. Returns it as `encode` makes it.

        Raises VALIDATION_FAILED that names every fault, AUDITORIUM_NOT_FOUND, SHOWTIME_OVERLAP.
        """
        return await self._writes.run_steps_once(
            key, lambda store: self._create(new, encode, store)
        )

    async def _create(self, new: NewEvent, encode: Encode, store: Store) -> bytes:
        now = self._clock()
        async with self._database.transaction() as connection:
            plan = await event_creation.plan(connection, new=new, now=now)
            await orphaned_stock.schedule_removal(
                connection,
                event_id=plan.event.event_id,
                due_time=now + orphaned_stock.CREATING,
                taken=False,
            )
        # Stock first: dying in between leaves stock that no event sells, and not the reverse.
        await self._stock.define(
            event_id=plan.event.event_id,
            pools=plan.pools,
            offers=plan.offers,
            seats=plan.seats,
            per_customer_limit=plan.event.per_customer_limit,
        )
        try:
            return await self._insert(plan, encode, store)
        except DomainError:
            async with self._database.transaction() as connection:
                await orphaned_stock.remove_now(connection, event_id=plan.event.event_id, now=now)
            raise

    async def _insert(self, plan: Plan, encode: Encode, store: Store) -> bytes:
        event, now = plan.event, self._clock()
        answer = encode(event, plan.availability())
        async with self._database.transaction() as connection:
            await orphaned_stock.keep(connection, event_id=event.event_id)
            await events.insert(connection, event=event, capacities=plan.capacities(), now=now)
            await store(connection, event.event_id, answer)
        return answer

    async def update(
        self, *, event_id: UUID, change: EventChange, etag: str | None
    ) -> tuple[Event, Availability]:
        """Changes an event, in the catalogue and in the ledger.

        Raises EVENT_NOT_FOUND, EVENT_CHANGED, EVENT_STATE_INVALID, SHOWTIME_OVERLAP, or
        VALIDATION_FAILED that names every fault.
        """
        now = self._clock()
        async with self._database.transaction() as connection:
            event = await events.get(connection, event_id=event_id, lock=True)
            await _refuse_stale(connection, event, etag, now)
            plan = event_update.plan(
                event,
                change=change,
                seat_types=await _seat_types(connection, event),
                now=now,
            )
            if plan.changes_stock:
                await _prepare(connection, plan, now)
            else:
                await _write(connection, plan.event, now)
        changed = await self._change_stock(plan) if plan.changes_stock else plan.event
        self._on_change(event_id)
        return changed, await self._stock.availability(event_id=event_id, with_seats=False)

    async def _change_stock(self, plan: ChangePlan) -> Event:
        """The ledger agrees, or nothing changes."""
        event_id = plan.event.event_id
        try:
            await self._stock.update(
                event_id=event_id,
                pools=plan.pools,
                offers=plan.offers,
                add_seats=plan.add_seats,
                remove_seat_ids=plan.remove_seat_ids,
                per_customer_limit=plan.per_customer_limit,
            )
        except DomainError as refusal:
            async with self._database.transaction() as connection:
                await _release(connection, event_id)
            if refusal.reason is Reason.VALIDATION_FAILED:
                raise plan.in_the_request(refusal) from None
            raise
        left = await self._stock.availability(event_id=event_id, with_seats=False)
        now = self._clock()
        async with self._database.transaction() as connection:
            event = await events.get(connection, event_id=event_id, lock=True)
            if event.revision != plan.event.revision - 1:
                raise _changed(event)
            await _write(connection, plan.event, now)
            await _release(connection, event_id)
            await _keep_levels(connection, plan.event, left)
            await stock_projection.follow(connection, event_ids=[event_id], now=now)
            return await events.get(connection, event_id=event_id)

    async def delete(self, *, event_id: UUID) -> None:
        """Removes an event that was never booked. Raises EVENT_NOT_FOUND, EVENT_STATE_INVALID."""
        now = self._clock()
        async with self._database.transaction() as connection:
            # For all of it, also for keys: nobody may book it from now on.
            locked = await connection.execute(
                sa.select(events_table.c.event_id)
                .where(events_table.c.event_id == event_id)
                .with_for_update()
            )
            if locked.one_or_none() is None:
                raise DomainError(Reason.EVENT_NOT_FOUND, "no such event", event_id=event_id)
            try:
                for table in (offers, levels_table, event_cancellations, events_table):
                    await connection.execute(sa.delete(table).where(table.c.event_id == event_id))
            except sa.exc.IntegrityError as error:
                # A booking refers to the event by a foreign key.
                if isinstance(error.orig, ForeignKeyViolation):
                    raise DomainError(
                        Reason.EVENT_STATE_INVALID, "the event has bookings: cancel it instead"
                    ) from None
                raise
            # A buyer who holds places already cannot book them any more, and they lapse.
            await orphaned_stock.schedule_removal(
                connection, event_id=event_id, due_time=now, taken=True
            )
        self._on_change(event_id)

    async def set_status(
        self, *, event_id: UUID, to: Status, reason: str = ""
    ) -> tuple[Event, Availability]:
        """Does what the staff says. Raises EVENT_NOT_FOUND or EVENT_STATE_INVALID."""
        async with self._database.reading() as connection:
            await events.get(connection, event_id=event_id)
        left = await self._stock.availability(event_id=event_id, with_seats=False)
        async with self._database.transaction() as connection:
            event = await event_status.set_status(
                connection,
                event_id=event_id,
                to=to,
                available=left.available,
                reason=reason,
                now=self._clock(),
            )
        self._on_change(event_id)
        return event, left


async def _refuse_stale(
    connection: AsyncConnection, event: Event, etag: str | None, now: datetime
) -> None:
    if etag and etag.removeprefix("W/").strip('"') not in ("*", event.etag):
        raise _changed(event)
    until = await connection.scalar(
        sa.select(events_table.c.changing_until).where(events_table.c.event_id == event.event_id)
    )
    if until is not None and until > now:
        raise DomainError(
            Reason.EVENT_CHANGED,
            "the event is being changed by somebody else",
            etag=event.etag,
            retry_after_seconds=1,
        )


def _changed(event: Event) -> DomainError:
    return DomainError(
        Reason.EVENT_CHANGED, "the event has changed: read it again", etag=event.etag
    )


async def _seat_types(connection: AsyncConnection, event: Event) -> Mapping[UUID, str]:
    if event.auditorium_id is None:
        return {}
    return await venues.seat_types(connection, auditorium_id=event.auditorium_id)


async def _prepare(connection: AsyncConnection, plan: ChangePlan, now: datetime) -> None:
    """Nothing but the ledger may refuse from now on, and no other change may begin."""
    async with connection.begin_nested() as trial:
        await events.update(connection, event=plan.event)
        await trial.rollback()
    await connection.execute(
        sa.update(events_table)
        .where(events_table.c.event_id == plan.event.event_id)
        .values(changing_until=now + _CHANGING)
    )


async def _release(connection: AsyncConnection, event_id: UUID) -> None:
    await connection.execute(
        sa.update(events_table)
        .where(events_table.c.event_id == event_id)
        .values(changing_until=None)
    )


async def _write(connection: AsyncConnection, event: Event, now: datetime) -> None:
    await events.update(connection, event=event)
    await connection.execute(
        sa.update(events_table)
        .where(events_table.c.event_id == event.event_id)
        .values(**event_status.derived_columns(now))
    )


async def _keep_levels(connection: AsyncConnection, event: Event, left: Availability) -> None:
    """What the ledger has told at once; its stream tells the rest."""
    rows = postgresql.insert(levels_table)
    own = {offer.pool_id for offer in event.offers}
    await connection.execute(
        rows.on_conflict_do_update(
            index_elements=[levels_table.c.event_id, levels_table.c.pool_id],
            set_={name: rows.excluded[name] for name in ("capacity", "available", "version")},
            where=levels_table.c.version < rows.excluded.version,
        ),
        [
            {
                "event_id": event.event_id,
                "pool_id": pool_id,
                "capacity": pool.capacity,
                "available": pool.available,
                "version": pool.version,
            }
            for pool_id, pool in sorted(left.pools.items())
            if pool_id in own
        ],
    )
