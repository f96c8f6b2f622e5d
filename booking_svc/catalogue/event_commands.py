"""Commands of the staff on events: each changes the catalogue and the stock ledger.

No transaction is open during a call to stock_svc. The process may stop between any two steps:
an event always has its stock in the ledger, and orphaned_stock.py removes stock without an event.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import datetime, timedelta
from uuid import UUID

import sqlalchemy as sa
from psycopg.errors import ForeignKeyViolation
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.catalogue import (
    event_cancellations,
    event_creation,
    event_moves,
    event_status,
    event_update,
    events,
    orphaned_stock,
    outbox,
    productions,
    sold_out,
    stock_projection,
    venues,
)
from booking_svc.catalogue.event_creation import NewEvent, Plan
from booking_svc.catalogue.event_moves import Schedule
from booking_svc.catalogue.event_update import ChangePlan, EventChange
from booking_svc.catalogue.events import Event, StaffStatus, Status
from booking_svc.catalogue.outbox import Cancelled, Changed, Created
from booking_svc.catalogue.tables import event_cancellations as cancellations_table
from booking_svc.catalogue.tables import events as events_table
from booking_svc.catalogue.tables import offers
from booking_svc.catalogue.tables import stock_levels as levels_table
from booking_svc.catalogue.venues import Venue
from booking_svc.clients.ports import Availability, Limits, Payments, Stock
from mesh.clock import Clock
from mesh.db.database import Database
from mesh.db.idempotent import IdempotentWrites, Key, Store
from mesh.errors import DomainError, Reason
from mesh.money import CURRENCIES

Encode = Callable[[Event, Availability], bytes]
"""Serialises an event for the client."""

# Longer than a change of stock can take: the servicer ends it after 9.5 seconds.
_CHANGE_LOCK = timedelta(seconds=15)


class EventCommands:
    """`on_change` is called after the commit with the id of each changed or deleted event."""

    def __init__(
        self,
        *,
        database: Database,
        writes: IdempotentWrites,
        stock: Stock,
        payments: Payments,
        clock: Clock,
        on_change: Callable[[UUID], None] = lambda _: None,
    ) -> None:
        self._database = database
        self._writes = writes
        self._stock = stock
        self._payments = payments
        self._clock = clock
        self._on_change = on_change

    async def create(self, *, new: NewEvent, key: Key | None, encode: Encode) -> bytes:
        """Creates an event with its stock, once per key. Returns it as `encode` serialises it.

        Raises VALIDATION_FAILED with every violation, AUDITORIUM_NOT_FOUND, PRODUCTION_NOT_FOUND,
        SHOWTIME_OVERLAP, or DEPENDENCY_UNAVAILABLE when defining the stock took too long.
        """
        return await self._writes.run_steps_once(
            key, lambda store: self._create(new, encode, store)
        )

    async def _create(self, new: NewEvent, encode: Encode, store: Store) -> bytes:
        limits = await self._limits(new.currency_code)
        now = self._clock()
        async with self._database.transaction() as connection:
            plan = await event_creation.plan(connection, new=new, limits=limits, now=now)
            await productions.require(connection, new.production_id)
            await orphaned_stock.schedule_removal(
                connection,
                event_id=plan.event.event_id,
                due_time=now + orphaned_stock.CREATING,
                taken=False,
            )
        # Stock first: a crash in between leaves stock without an event, which is removed later.
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
            await productions.require(connection, event.production_id)
            await venues.require_auditorium(connection, event.auditorium_id)
            await orphaned_stock.keep(connection, event_id=event.event_id)
            await events.insert(connection, event=event, capacities=plan.capacities(), now=now)
            await outbox.append(
                connection, event=event, stock=plan.availability(), change=Created(), now=now
            )
            await store(connection, event.event_id, answer)
        return answer

    async def update(
        self, *, event_id: UUID, change: EventChange, etag: str | None
    ) -> tuple[Event, Availability]:
        """Changes an event in the catalogue and its stock in the ledger.

        Raises EVENT_NOT_FOUND, PRODUCTION_NOT_FOUND, AUDITORIUM_NOT_FOUND, EVENT_CHANGED,
        EVENT_STATE_INVALID, SHOWTIME_OVERLAP, or VALIDATION_FAILED with every violation.
        """
        limits: Limits = {}
        if any(offer.price is not None for offer in change.offers):
            async with self._database.reading() as connection:
                event = await events.get(connection, event_id=event_id)
            limits = await self._limits(event.currency_code)
        now = self._clock()
        async with self._database.transaction() as connection:
            event = await events.get_to_change(connection, event_id=event_id)
            await _refuse_stale(connection, event, etag, now)
            from_venue, to_venue = await _venues(connection, event, change)
            plan = event_update.plan(
                event,
                change=change,
                seat_types=await _seat_types(
                    connection, change.auditorium_id or event.auditorium_id
                ),
                limits=limits,
                now=now,
                from_venue=from_venue,
                to_venue=to_venue,
            )
            await productions.require(connection, change.production_id)
            if plan.changes_stock:
                await _lock_for_stock_change(connection, plan, now)
            else:
                moved = await _write(connection, event, plan.event, now)
                await _announce(connection, event, plan.event, moved, now)
        changed = await self._change_stock(plan) if plan.changes_stock else plan.event
        self._on_change(event_id)
        return changed, await self._stock.availability(event_id=event_id, with_seats=False)

    async def _limits(self, currency_code: str) -> Limits:
        """The providers' limits. An unknown currency is a violation without them."""
        if currency_code not in CURRENCIES:
            return {}
        return await self._payments.limits(currency_code=currency_code)

    async def _change_stock(self, plan: ChangePlan) -> Event:
        """Changes the stock, then the event; neither when the ledger refuses."""
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
                await _unlock(connection, event_id)
            if refusal.reason is Reason.VALIDATION_FAILED:
                raise plan.with_request_fields(refusal) from None
            raise
        availability = await self._stock.availability(event_id=event_id, with_seats=False)
        now = self._clock()
        async with self._database.transaction() as connection:
            event = await events.get(connection, event_id=event_id, lock=True)
            if event.revision != plan.event.revision - 1:
                raise _event_changed(event)
            moved = await _write(connection, event, plan.event, now)
            await _unlock(connection, event_id)
            await _store_levels(connection, plan.event, availability)
            sold_out_ids = await stock_projection.update_events(
                connection, event_ids=[event_id], now=now
            )
            changed = await events.get(connection, event_id=event_id)
            await _announce(connection, event, changed, moved, now)
            await sold_out.announce(connection, sold_out_ids, now)
            return changed

    async def delete(self, *, event_id: UUID) -> None:
        """Deletes an event; one with bookings is kept for them, hidden, once it is cancelled or over.

        Raises EVENT_NOT_FOUND, or EVENT_STATE_INVALID.
        """
        now = self._clock()
        async with self._database.transaction() as connection:
            # The strongest row lock: it also excludes inserts of bookings, which refer to the row.
            await connection.execute(
                sa.select(events_table.c.event_id)
                .where(events_table.c.event_id == event_id)
                .with_for_update()
            )
            event = await events.get_to_change(connection, event_id=event_id)
            if not await _delete_unbooked(connection, event_id):
                await _hide(connection, event, now)
                self._on_change(event_id)
                return
            # A reservation without a booking expires: its booking can no longer be inserted.
            await orphaned_stock.schedule_removal(
                connection, event_id=event_id, due_time=now, taken=True
            )
        self._on_change(event_id)

    async def set_status(
        self, *, event_id: UUID, to: Status, reason: str = ""
    ) -> tuple[Event, Availability]:
        """Changes the status of an event. Raises EVENT_NOT_FOUND or EVENT_STATE_INVALID."""
        async with self._database.reading() as connection:
            await events.get(connection, event_id=event_id)
        availability = await self._stock.availability(event_id=event_id, with_seats=False)
        now = self._clock()
        async with self._database.transaction() as connection:
            before = await events.get_to_change(connection, event_id=event_id)
            event = await event_status.set_status(
                connection,
                event_id=event_id,
                to=to,
                available=availability.available,
                reason=reason,
                now=now,
            )
            if event.revision != before.revision:
                await outbox.append(
                    connection,
                    event=event,
                    stock=availability,
                    change=_change_of_status(before, event, reason),
                    now=now,
                )
        self._on_change(event_id)
        return event, availability


async def _delete_unbooked(connection: AsyncConnection, event_id: UUID) -> bool:
    """Deletes the rows of an event; False, and nothing is deleted, if it has bookings."""
    try:
        async with connection.begin_nested():
            for table in (offers, levels_table, cancellations_table, events_table):
                await connection.execute(sa.delete(table).where(table.c.event_id == event_id))
    except sa.exc.IntegrityError as error:
        # Bookings refer to the event by a foreign key.
        if isinstance(error.orig, ForeignKeyViolation):
            return False
        raise
    return True


async def _hide(connection: AsyncConnection, event: Event, now: datetime) -> None:
    """Marks an event with bookings as deleted. Raises EVENT_STATE_INVALID if it is to come."""
    has_id = events_table.c.event_id == event.event_id
    if await connection.scalar(sa.select(events.is_to_come(now)).where(has_id)):
        raise DomainError(
            Reason.EVENT_STATE_INVALID, "the event has bookings and is to come: cancel it first"
        )
    hidden = replace(event, revision=event.revision + 1, update_time=now, delete_time=now)
    await connection.execute(
        sa.update(events_table)
        .where(has_id)
        .values(revision=hidden.revision, update_time=now, delete_time=now)
    )
    stock = await stock_projection.availability_of(connection, events=[hidden])
    await outbox.append(
        connection,
        event=hidden,
        stock=stock[event.event_id],
        change=Changed(("deleteTime",)),
        now=now,
    )


async def _refuse_stale(
    connection: AsyncConnection, event: Event, etag: str | None, now: datetime
) -> None:
    if etag and etag.removeprefix("W/").strip('"') not in ("*", event.etag):
        raise _event_changed(event)
    until = await connection.scalar(
        sa.select(events_table.c.changing_until).where(events_table.c.event_id == event.event_id)
    )
    if until is not None and until > now:
        raise DomainError(
            Reason.EVENT_CHANGED,
            "another change of the event is in progress: try again",
            etag=event.etag,
            retry_after_seconds=1,
        )


def _event_changed(event: Event) -> DomainError:
    return DomainError(
        Reason.EVENT_CHANGED,
        "the event has changed since it was read: read it again",
        etag=event.etag,
    )


async def _seat_types(
    connection: AsyncConnection, auditorium_id: UUID | None
) -> Mapping[UUID, str]:
    if auditorium_id is None:
        return {}
    return await venues.seat_types(connection, auditorium_id=auditorium_id)


async def _venues(
    connection: AsyncConnection, event: Event, change: EventChange
) -> tuple[Venue | None, Venue | None]:
    """The event's venue and that of its new auditorium; None if the auditorium stays."""
    if change.auditorium_id in (None, event.auditorium_id):
        return None, None
    to_venue = await venues.venue_of(connection, auditorium_id=change.auditorium_id)
    if event.venue_id is None:
        return None, to_venue
    return await venues.get_venue(connection, venue_id=event.venue_id), to_venue


async def _lock_for_stock_change(
    connection: AsyncConnection, plan: ChangePlan, now: datetime
) -> None:
    """Checks that the database accepts the change, and locks the event against other changes."""
    async with connection.begin_nested() as trial:
        await events.update(connection, event=plan.event)
        await trial.rollback()
    await connection.execute(
        sa.update(events_table)
        .where(events_table.c.event_id == plan.event.event_id)
        .values(changing_until=now + _CHANGE_LOCK)
    )


async def _unlock(connection: AsyncConnection, event_id: UUID) -> None:
    await connection.execute(
        sa.update(events_table)
        .where(events_table.c.event_id == event_id)
        .values(changing_until=None)
    )


async def _write(
    connection: AsyncConnection, before: Event, after: Event, now: datetime
) -> tuple[Schedule, Schedule] | None:
    """Writes a changed event. Returns the old and the new schedule if it moved."""
    if after.auditorium_id != before.auditorium_id:
        await venues.require_auditorium(connection, after.auditorium_id)
    await events.update(connection, event=after)
    await connection.execute(
        sa.update(events_table)
        .where(events_table.c.event_id == after.event_id)
        .values(**event_status.derived_columns(now))
    )
    return await event_moves.record(connection, before=before, after=after, now=now)


async def _announce(
    connection: AsyncConnection,
    before: Event,
    after: Event,
    moved: tuple[Schedule, Schedule] | None,
    now: datetime,
) -> None:
    """Writes the domain event of a change, unless only the description changed."""
    if fields := outbox.changed_fields(before, after):
        stock = await stock_projection.availability_of(connection, events=[after])
        await outbox.append(
            connection,
            event=after,
            stock=stock[after.event_id],
            change=Changed(fields, moved),
            now=now,
        )


def _change_of_status(before: Event, after: Event, reason: str) -> outbox.Change:
    if after.staff_status is StaffStatus.CANCELLED:
        return Cancelled(reason or event_cancellations.DEFAULT_REASON)
    return Created() if before.is_draft else Changed(("status",))


async def _store_levels(
    connection: AsyncConnection, event: Event, availability: Availability
) -> None:
    """Stores the stock levels at once; later ones come from the ledger's stream."""
    rows = postgresql.insert(levels_table)
    pool_ids = {offer.pool_id for offer in event.offers}
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
            for pool_id, pool in sorted(availability.pools.items())
            if pool_id in pool_ids
        ],
    )
