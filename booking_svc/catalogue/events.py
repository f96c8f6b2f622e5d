"""Events and their offers: their values, their status, and their rows.

Field rules are in event_rules.py, lists in event_listing.py, status changes in event_status.py.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.catalogue import cancellation_policy, search
from booking_svc.catalogue.cancellation_policy import Policy
from booking_svc.catalogue.tables import events, offers, stock_levels
from mesh.clock import rfc3339
from mesh.db.database import constraint_of
from mesh.db.pipeline import Statement, array, run_together
from mesh.errors import DomainError, Reason
from mesh.money import Money

_OVERLAP_CONSTRAINT = "events_no_overlap_excl"


class StaffStatus(StrEnum):
    """The status that the staff sets, in the column `status`. `Event.status_at` derives the rest."""

    DRAFT = "DRAFT"
    OPEN = "UPCOMING"
    PAUSED = "PAUSED"
    CANCELLED = "CANCELLED"


class Status(StrEnum):
    """The status of an event as clients see it."""

    DRAFT = "DRAFT"
    UPCOMING = "UPCOMING"
    ON_SALE = "ON_SALE"
    SOLD_OUT = "SOLD_OUT"
    PAUSED = "PAUSED"
    ENDED = "ENDED"
    CANCELLED = "CANCELLED"


@dataclass(frozen=True, slots=True)
class Offer:
    offer_id: UUID
    name: str
    price: Money
    pool_id: UUID
    capacity: int | None
    seat_type: str | None
    per_customer_limit: int
    max_per_booking: int


@dataclass(frozen=True, slots=True)
class Event:
    """An event. `staff_status` is set by the staff; `status_at` is what clients see."""

    event_id: UUID
    name: str
    description: str
    production_id: UUID | None
    auditorium_id: UUID | None
    venue_id: UUID | None
    venue_name: str | None
    time_zone: str
    start_time: datetime | None
    end_time: datetime | None
    sale_start_time: datetime
    sale_end_time: datetime | None
    staff_status: StaffStatus
    currency_code: str
    offers: tuple[Offer, ...]
    cancellation_policy: Policy
    total_capacity: int
    revision: int
    create_time: datetime
    update_time: datetime
    # Across all offers; None means no limit.
    per_customer_limit: int | None = None
    delete_time: datetime | None = None
    # Customers need an admission to place bookings.
    has_waiting_room: bool = False

    @property
    def etag(self) -> str:
        """Differs after every change. The ETag header has it in quotes."""
        return str(self.revision)

    def status_at(self, now: datetime, *, available: int) -> Status:
        """The event's status, from the sale window and the available stock."""
        if self.staff_status in (StaffStatus.CANCELLED, StaffStatus.DRAFT):
            return Status(self.staff_status)
        if self.sale_end_time is not None and now >= self.sale_end_time:
            return Status.ENDED
        if self.staff_status is StaffStatus.PAUSED:
            return Status.PAUSED
        if now < self.sale_start_time:
            return Status.UPCOMING
        return Status.ON_SALE if available > 0 else Status.SOLD_OUT

    def next_transition_after(self, now: datetime) -> datetime | None:
        """When the status changes next by time; None when time changes it no more."""
        if self.staff_status in (StaffStatus.CANCELLED, StaffStatus.DRAFT):
            return None
        if self.staff_status is StaffStatus.OPEN and now < self.sale_start_time:
            return self.sale_start_time
        if self.sale_end_time is not None and now < self.sale_end_time:
            return self.sale_end_time
        return None

    @property
    def is_draft(self) -> bool:
        return self.staff_status is StaffStatus.DRAFT

    def refuse_unless_visible(self, *, to_staff: bool) -> None:
        """Raises EVENT_NOT_FOUND for a draft, which exists for staff only."""
        if self.is_draft and not to_staff:
            raise not_found(self.event_id)

    def refuse_unless_on_sale(self, now: datetime) -> None:
        """Raises SALE_NOT_ACTIVE with the sale's times, unless the sale is open."""
        status = self.status_at(now, available=1)
        if status is not Status.ON_SALE:
            raise DomainError(
                Reason.SALE_NOT_ACTIVE,
                "the sale is not open",
                starts=rfc3339(self.sale_start_time),
                ends=rfc3339(self.sale_end_time) if self.sale_end_time else "",
                status=status,
            )


async def insert(
    connection: AsyncConnection, *, event: Event, capacities: Mapping[UUID, int], now: datetime
) -> None:
    """Inserts a planned event; `capacities` are those of its pools.

    Raises SHOWTIME_OVERLAP when the auditorium has another event at that time.
    """
    words = search.words_of(event.name, event.description, event.venue_name or "")
    try:
        await connection.execute(
            events.insert().values(
                event_id=event.event_id,
                currency_code=event.currency_code,
                is_sold_out=False,
                current_status=event.status_at(now, available=1),
                next_transition_time=event.next_transition_after(now),
                create_time=event.create_time,
                **_changeable_columns(event),
                search=search.vector(words),
                name_search=search.vector(search.words_of(event.name)),
            )
        )
    except sa.exc.IntegrityError as error:
        raise _overlap(error, event.auditorium_id) or error from None
    await search.learn(connection, words=words)
    await connection.execute(offers.insert(), _offer_rows(event))
    await connection.execute(
        stock_levels.insert(),
        [
            {
                "event_id": event.event_id,
                "pool_id": pool_id,
                "capacity": capacity,
                "available": capacity,
                "version": 0,
            }
            for pool_id, capacity in capacities.items()
        ],
    )


async def update(connection: AsyncConnection, *, event: Event) -> None:
    """Writes a changed event, whose row the caller has locked.

    The caller also updates the columns derived from clock and stock (event_status.py).
    Raises SHOWTIME_OVERLAP when the auditorium has another event at that time.
    """
    words = search.words_of(event.name, event.description, event.venue_name or "")
    try:
        await connection.execute(
            sa.update(events)
            .where(events.c.event_id == event.event_id)
            .values(
                **_changeable_columns(event),
                search=search.vector(words),
                name_search=search.vector(search.words_of(event.name)),
            )
        )
    except sa.exc.IntegrityError as error:
        raise _overlap(error, event.auditorium_id) or error from None
    await search.learn(connection, words=words)
    rows = postgresql.insert(offers)
    updated = ("name", "price_minor", "capacity", "per_customer_limit", "max_per_booking")
    await connection.execute(
        rows.on_conflict_do_update(
            index_elements=[offers.c.event_id, offers.c.offer_id],
            set_={name: rows.excluded[name] for name in updated},
        ),
        _offer_rows(event),
    )


def _changeable_columns(event: Event) -> dict[str, Any]:
    """The columns that an update may change, with their values."""
    return {
        "name": event.name,
        "description": event.description,
        "production_id": event.production_id,
        "auditorium_id": event.auditorium_id,
        "venue_id": event.venue_id,
        "venue_name": event.venue_name,
        "time_zone": event.time_zone,
        "start_time": event.start_time,
        "end_time": event.end_time,
        "sale_start_time": event.sale_start_time,
        "sale_end_time": event.sale_end_time,
        "status": event.staff_status,
        "cancellation_policy": cancellation_policy.to_json(event.cancellation_policy),
        "total_capacity": event.total_capacity,
        "revision": event.revision,
        "update_time": event.update_time,
        "per_customer_limit": event.per_customer_limit,
    }


def _offer_rows(event: Event) -> list[dict[str, Any]]:
    return [
        {
            "event_id": event.event_id,
            "offer_id": offer.offer_id,
            "offer_index": index,
            "name": offer.name,
            "price_minor": offer.price.amount_minor,
            "pool_id": offer.pool_id,
            "capacity": offer.capacity,
            "seat_type": offer.seat_type,
            "per_customer_limit": offer.per_customer_limit,
            "max_per_booking": offer.max_per_booking,
        }
        for index, offer in enumerate(event.offers)
    ]


def _overlap(error: sa.exc.IntegrityError, auditorium_id: UUID | None) -> DomainError | None:
    """SHOWTIME_OVERLAP, if that constraint failed."""
    if constraint_of(error) != _OVERLAP_CONSTRAINT:
        return None
    return DomainError(
        Reason.SHOWTIME_OVERLAP,
        "another event takes place in this auditorium at that time",
        auditorium_id=auditorium_id,
    )


_OFFER_COLUMNS = (
    "offer_id",
    "name",
    "price_minor",
    "pool_id",
    "capacity",
    "seat_type",
    "per_customer_limit",
    "max_per_booking",
)

# Read with the event in one statement: two statements take twice as long.
_OFFERS = (
    sa.select(
        sa.func.json_agg(
            postgresql.aggregate_order_by(
                sa.func.json_build_array(*(offers.c[name] for name in _OFFER_COLUMNS)),
                offers.c.offer_index.asc(),
            )
        )
    )
    .where(offers.c.event_id == events.c.event_id)
    .scalar_subquery()
    .label("offers")
)

# Without `search` and `sort_time`: the driver has no value for an infinite time.
_COLUMNS = [
    events.c[name]
    for name in (
        "event_id",
        "name",
        "description",
        "production_id",
        "auditorium_id",
        "venue_id",
        "venue_name",
        "time_zone",
        "start_time",
        "end_time",
        "sale_start_time",
        "sale_end_time",
        "status",
        "currency_code",
        "cancellation_policy",
        "total_capacity",
        "revision",
        "create_time",
        "update_time",
        "per_customer_limit",
        "delete_time",
        "has_waiting_room",
    )
]

selected: sa.Select[Any] = sa.select(*_COLUMNS, _OFFERS)
"""Events with their offers, for `from_row`."""


async def get(connection: AsyncConnection, *, event_id: UUID, lock: bool = False) -> Event:
    """An event with its offers. Raises EVENT_NOT_FOUND.

    With `lock` the row stays locked until the transaction ends.
    """
    has_id = events.c.event_id == event_id
    if lock:
        # A separate statement: one that waits for a lock reads other tables as they were before.
        await connection.execute(
            sa.select(events.c.event_id).where(has_id).with_for_update(key_share=True)
        )
    row = (await connection.execute(selected.where(has_id))).one_or_none()
    if row is None:
        raise not_found(event_id)
    return from_row(row)


async def get_to_change(connection: AsyncConnection, *, event_id: UUID) -> Event:
    """An event, locked until the transaction ends. Raises EVENT_NOT_FOUND, also if deleted."""
    event = await get(connection, event_id=event_id, lock=True)
    if event.delete_time is not None:
        raise not_found(event_id)
    return event


async def set_waiting_room(
    connection: AsyncConnection, *, event_id: UUID, exists: bool, now: datetime
) -> None:
    """Notes that an event has a waiting room, or none any more. The caller has locked its row.

    The new revision makes placing read the event again, wherever it is in memory.
    """
    await connection.execute(
        sa.update(events)
        .where(events.c.event_id == event_id)
        .values(has_waiting_room=exists, revision=events.c.revision + 1, update_time=now)
    )


def is_to_come(now: datetime) -> sa.ColumnElement[bool]:
    """Whether an event is neither cancelled nor over; one without a start until its sale ends."""
    end = sa.func.coalesce(events.c.end_time, events.c.start_time)
    return (events.c.current_status != Status.CANCELLED) & sa.case(
        (end.is_(None), events.c.current_status != Status.ENDED), else_=end > now
    )


async def refuse_to_come(
    connection: AsyncConnection,
    selected_by: sa.ColumnElement[bool],
    *,
    owner: str,
    now: datetime,
) -> None:
    """Raises EVENT_STATE_INVALID when a selected event is to come; `owner` is what has them."""
    event_id = await connection.scalar(
        sa.select(events.c.event_id).where(selected_by, is_to_come(now)).limit(1)
    )
    if event_id is not None:
        raise DomainError(
            Reason.EVENT_STATE_INVALID, f"the {owner} has events to come", event_id=event_id
        )


def not_found(event_id: UUID) -> DomainError:
    return DomainError(Reason.EVENT_NOT_FOUND, "no such event", event_id=event_id)


async def get_all(connection: AsyncConnection, event_ids: Collection[UUID]) -> dict[UUID, Event]:
    """The existing ones of some events, by id."""
    ids = sa.bindparam("ids", list(event_ids), postgresql.ARRAY(postgresql.UUID(as_uuid=True)))
    rows = await connection.execute(selected.where(events.c.event_id == sa.any_(ids)))
    return {row.event_id: from_row(row) for row in rows}


async def cancelled_among(
    connection: AsyncConnection, event_ids: Collection[UUID]
) -> frozenset[UUID]:
    """The ids of those events that are cancelled."""
    [result] = await run_together(connection, [Statement(_CANCELLED, [array(event_ids)])])
    return frozenset(event_id for (event_id,) in result.rows)


_CANCELLED = """
SELECT event_id FROM events WHERE event_id = ANY (%s::uuid[]) AND status = 'CANCELLED'
"""


def from_row(row: sa.Row[Any]) -> Event:
    """The event of a row of `selected`."""
    offer_values: Sequence[Sequence[Any]] = row.offers
    return Event(
        event_id=row.event_id,
        name=row.name,
        description=row.description,
        production_id=row.production_id,
        auditorium_id=row.auditorium_id,
        venue_id=row.venue_id,
        venue_name=row.venue_name,
        time_zone=row.time_zone,
        start_time=row.start_time,
        end_time=row.end_time,
        sale_start_time=row.sale_start_time,
        sale_end_time=row.sale_end_time,
        staff_status=StaffStatus(row.status),
        currency_code=row.currency_code,
        offers=tuple(
            Offer(
                UUID(offer_id),
                name,
                Money(price_minor, row.currency_code),
                UUID(pool_id),
                capacity,
                seat_type,
                per_customer_limit,
                max_per_booking,
            )
            for (
                offer_id,
                name,
                price_minor,
                pool_id,
                capacity,
                seat_type,
                per_customer_limit,
                max_per_booking,
            ) in offer_values
        ),
        cancellation_policy=cancellation_policy.from_json(row.cancellation_policy),
        total_capacity=row.total_capacity,
        revision=row.revision,
        create_time=row.create_time,
        update_time=row.update_time,
        per_customer_limit=row.per_customer_limit,
        delete_time=row.delete_time,
        has_waiting_room=row.has_waiting_room,
    )
