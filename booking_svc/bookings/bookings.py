"""What a booking is, and how it is read. How it changes is state_machine.py's."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.bookings import customers
from booking_svc.bookings.tables import (
    booking_changes,
    booking_items,
    booking_refunds,
    booking_timeline,
    bookings,
)
from booking_svc.catalogue import cancellation_policy
from booking_svc.catalogue.cancellation_policy import Policy
from mesh.db.pipeline import Query, Statement, array, run_together
from mesh.errors import DomainError, Reason
from mesh.money import Money
from mesh.paging import from_token, to_token


class Status(StrEnum):
    HELD = "HELD"
    PENDING_PAYMENT = "PENDING_PAYMENT"
    CONFIRMED = "CONFIRMED"
    COMPLETED = "COMPLETED"
    EXPIRED = "EXPIRED"
    CANCELLED = "CANCELLED"
    FAILED = "FAILED"


class PaymentStatus(StrEnum):
    CREATED = "CREATED"
    CAPTURED = "CAPTURED"
    FAILED = "FAILED"
    VOIDED = "VOIDED"
    REFUNDED = "REFUNDED"


class Actor(StrEnum):
    """Who can change a booking."""

    CUSTOMER = "CUSTOMER"
    STAFF = "STAFF"
    ORGANISER = "ORGANISER"
    SYSTEM = "SYSTEM"


@dataclass(frozen=True, slots=True)
class By:
    """Who changes a booking. Customers and staff have a user id."""

    actor: Actor
    user_id: UUID | None = None


SYSTEM = By(Actor.SYSTEM)


@dataclass(frozen=True, slots=True)
class Item:
    offer_id: UUID
    seat_id: UUID | None
    quantity: int
    unit_price: Money


@dataclass(frozen=True, slots=True)
class Payment:
    payment_id: UUID
    provider: str
    status: PaymentStatus
    payment_url: str | None
    # Of an embedded payment, which has an empty URL.
    client_secret: str | None = field(default=None, repr=False)


class RefundStatus(StrEnum):
    """A CANCELLED refund is not made: the money was returned in another way."""

    PENDING = "PENDING"
    PROCESSED = "PROCESSED"
    FAILED = "FAILED"
    SETTLED_ELSEWHERE = "SETTLED_ELSEWHERE"
    CANCELLED = "CANCELLED"


@dataclass(frozen=True, slots=True)
class Refund:
    """A refund of a payment, from the moment it is promised."""

    refund_id: UUID
    payment_id: UUID
    amount: Money
    status: RefundStatus
    reason: str


class ChangeState(StrEnum):
    """PENDING_PAYMENT waits for the price difference. The first two states are open."""

    PENDING_PAYMENT = "PENDING_PAYMENT"
    EXCHANGING = "EXCHANGING"
    DONE = "DONE"
    REFUSED = "REFUSED"
    EXPIRED = "EXPIRED"
    CANCELLED = "CANCELLED"


@dataclass(frozen=True, slots=True)
class PendingChange:
    """A change that waits for the payment of its price difference."""

    change_id: UUID
    event_id: UUID
    difference: Money
    expire_time: datetime
    payment_id: UUID
    provider: str
    payment_url: str | None
    client_secret: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class TimelineEntry:
    """`failure_code` is the provider's code of a declined attempt to pay."""

    time: datetime
    status: Status
    reason: str
    actor: Actor
    failure_code: str | None = None


@dataclass(frozen=True, slots=True)
class Booking:
    booking_id: UUID
    event_id: UUID
    customer_id: UUID
    status: Status
    items: tuple[Item, ...]
    total: Money
    hold_expire_time: datetime
    reservation_id: UUID
    payment: Payment | None
    refunds: tuple[Refund, ...]
    cancellation_policy: Policy
    timeline: tuple[TimelineEntry, ...]
    create_time: datetime
    update_time: datetime
    confirm_time: datetime | None
    max_refund_percent: int = 100
    attendees: tuple[str, ...] = ()
    note: str = ""
    change: PendingChange | None = None

    @property
    def was_declined(self) -> bool:
        """Whether an attempt to pay was declined. Needs the timeline."""
        return any(entry.failure_code is not None for entry in self.timeline)


# The first letters of a booking's id, as mails show it.
_ID = re.compile("[0-9a-f]{8,32}")


@dataclass(frozen=True, slots=True)
class Page:
    bookings: tuple[Booking, ...]
    next_page_token: str
    total_size: int


def _listed(table: sa.Table, order: sa.Column[Any], *columns: str) -> sa.ScalarSelect[Any]:
    """A booking's rows of another table, in order, as lists of the columns' values."""
    values = sa.func.json_build_array(*(table.c[column] for column in columns))
    rows = sa.func.json_agg(postgresql.aggregate_order_by(values, order.asc()))
    return (
        sa.select(sa.func.coalesce(rows, sa.text("'[]'::json")))
        .where(table.c.booking_id == bookings.c.booking_id)
        .scalar_subquery()
    )


# Subqueries of the booking's statement: separate statements would take three times as long.
_ITEMS = _listed(
    booking_items,
    booking_items.c.item_index,
    *("offer_id", "seat_id", "quantity", "unit_price_minor"),
)
_REFUNDS = _listed(
    booking_refunds,
    booking_refunds.c.refund_id,
    *("refund_id", "payment_id", "amount_minor", "currency_code", "status", "reason"),
)
_CHANGE = (
    sa.select(
        sa.func.json_build_array(
            *(
                booking_changes.c[column]
                for column in (
                    "change_id",
                    "to_event_id",
                    "difference_minor",
                    "expire_time",
                    "payment_id",
                    "payment_provider",
                    "payment_url",
                    "payment_client_secret",
                )
            )
        )
    )
    .where(booking_changes.c.booking_id == bookings.c.booking_id)
    .where(booking_changes.c.state == ChangeState.PENDING_PAYMENT)
    .scalar_subquery()
)
_TIMELINE = _listed(
    booking_timeline,
    booking_timeline.c.entry_id,
    *("time", "status", "reason", "actor", "failure_code"),
)

_WITH_TIMELINE = sa.select(
    bookings,
    _ITEMS.label("items"),
    _REFUNDS.label("refunds"),
    _CHANGE.label("change"),
    _TIMELINE.label("timeline"),
)
_ANY_OF = Query(
    _WITH_TIMELINE.where(
        bookings.c.booking_id
        == sa.any_(sa.bindparam("booking_ids", type_=postgresql.ARRAY(sa.UUID())))
    )
)
# In the order of the ids: two callers that lock the same bookings wait for each other in one order.
_LOCK = """
SELECT booking_id FROM bookings WHERE booking_id = ANY (%s::uuid[]) ORDER BY booking_id FOR UPDATE
"""


async def get(
    connection: AsyncConnection,
    *,
    booking_id: UUID,
    owner: UUID | None = None,
    lock: bool = False,
) -> Booking:
    """A booking with items and timeline. `owner` limits it to one customer's bookings.

    `lock` locks its row until the transaction ends.
    Raises BOOKING_NOT_FOUND, also for a booking of another customer.
    """
    by_id = await get_all(connection, [booking_id], lock=lock)
    booking = by_id.get(booking_id)
    if booking is None or owner not in (None, booking.customer_id):
        raise not_found(booking_id)
    return booking


async def get_all(
    connection: AsyncConnection, booking_ids: Collection[UUID], *, lock: bool = False
) -> Mapping[UUID, Booking]:
    """The bookings among `booking_ids` that exist, as `get` returns them."""
    reading = _ANY_OF.statement(booking_ids=list(booking_ids))
    # Two statements: one that waits for a lock reads other tables as of its start.
    locking = [Statement(_LOCK, [array(booking_ids)])] if lock else []
    *_, result = await run_together(connection, [*locking, reading])
    rows = _ANY_OF.rows(result)
    return {row.booking_id: _from_row(row, row.timeline) for row in rows}


def not_found(booking_id: UUID) -> DomainError:
    return DomainError(Reason.BOOKING_NOT_FOUND, "no such booking", booking_id=booking_id)


async def exists(connection: AsyncConnection, *, booking_id: UUID) -> bool:
    row = await connection.execute(sa.select(1).where(bookings.c.booking_id == booking_id))
    return row.first() is not None


@dataclass(frozen=True, slots=True)
class Filter:
    """Which bookings a list has; None and an empty query leave a condition out.

    `query` is the beginning of a booking's id, or words of the customer's name and address.
    """

    customer_id: UUID | None = None
    event_id: UUID | None = None
    status: Status | None = None
    created_after: datetime | None = None
    created_before: datetime | None = None
    query: str = ""

    def condition(self) -> sa.ColumnElement[bool]:
        columns = bookings.c
        conditions = [
            columns[name] == value
            for name in ("customer_id", "event_id", "status")
            if (value := getattr(self, name)) is not None
        ]
        if self.created_after is not None:
            conditions.append(columns.create_time >= self.created_after)
        if self.created_before is not None:
            conditions.append(columns.create_time < self.created_before)
        if self.query.strip():
            named = _named(self.query)
            if named is None:
                named = columns.customer_id.in_(customers.named(self.query))
            conditions.append(named)
        return sa.and_(sa.true(), *conditions)


def _named(query: str) -> sa.ColumnElement[bool] | None:
    """The bookings whose id is or begins with a text; None for another text."""
    digits = query.strip().lower().replace("-", "")
    if not _ID.fullmatch(digits):
        return None
    return bookings.c.booking_id.between(UUID(digits.ljust(32, "0")), UUID(digits.ljust(32, "f")))


async def list_page(
    connection: AsyncConnection, *, matches: Filter, page_size: int, page_token: str
) -> Page:
    """A page of bookings, newest first, without their timelines."""
    matching, scope = matches.condition(), repr(matches)
    total = await connection.execute(
        sa.select(sa.func.count()).select_from(bookings).where(matching)
    )
    key = from_token(page_token, 1, scope=scope)
    after = None if key is None else UUID(key[0])
    # UUIDv7 ids sort by creation time.
    beyond = sa.true() if after is None else bookings.c.booking_id < after
    rows = (
        await connection.execute(
            sa.select(
                bookings,
                _ITEMS.label("items"),
                _REFUNDS.label("refunds"),
                _CHANGE.label("change"),
            )
            .where(matching, beyond)
            .order_by(bookings.c.booking_id.desc())
            .limit(page_size + 1)
        )
    ).all()
    shown = rows[:page_size]
    more = len(rows) > page_size
    return Page(
        tuple(_from_row(row, ()) for row in shown),
        to_token(str(shown[-1].booking_id), scope=scope) if more else "",
        total.scalar_one(),
    )


def _from_row(row: sa.Row[Any], timeline: Sequence[Sequence[Any]]) -> Booking:
    currency = row.currency_code
    return Booking(
        booking_id=row.booking_id,
        event_id=row.event_id,
        customer_id=row.customer_id,
        status=Status(row.status),
        items=tuple(
            Item(UUID(offer), UUID(seat) if seat else None, quantity, Money(price, currency))
            for offer, seat, quantity, price in row.items
        ),
        total=Money(row.total_minor, currency),
        hold_expire_time=row.hold_expire_time,
        reservation_id=row.reservation_id,
        payment=None
        if row.payment_id is None
        else Payment(
            row.payment_id,
            row.payment_provider,
            PaymentStatus(row.payment_status),
            row.payment_url,
            row.payment_client_secret,
        ),
        refunds=tuple(
            Refund(UUID(refund), UUID(payment), Money(amount, code), RefundStatus(status), reason)
            for refund, payment, amount, code, status, reason in row.refunds
        ),
        cancellation_policy=cancellation_policy.from_json(row.cancellation_policy),
        timeline=tuple(
            TimelineEntry(datetime.fromisoformat(time), Status(status), reason, Actor(actor), code)
            for time, status, reason, actor, code in timeline
        ),
        create_time=row.create_time,
        update_time=row.update_time,
        confirm_time=row.confirm_time,
        max_refund_percent=row.max_refund_percent,
        attendees=tuple(row.attendees),
        note=row.note,
        change=None if row.change is None else _change(row.change, currency),
    )


def _change(values: Sequence[Any], currency: str) -> PendingChange:
    change_id, event_id, difference, expire_time, payment_id, provider, *page = values
    return PendingChange(
        UUID(change_id),
        UUID(event_id),
        Money(difference, currency),
        datetime.fromisoformat(expire_time),
        UUID(payment_id),
        provider,
        *page,
    )
