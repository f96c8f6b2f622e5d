"""What a booking is, and how it is read. How it changes is in lifecycle.py."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc import cancellation
from booking_svc.money import Money
from booking_svc.tables import booking_items, booking_timeline, bookings
from mesh.errors import DomainError, Reason
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


@dataclass(frozen=True, slots=True)
class Refund:
    refund_id: UUID
    amount: Money
    status: str


@dataclass(frozen=True, slots=True)
class TimelineEntry:
    time: datetime
    status: Status
    reason: str


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
    refund: Refund | None
    cancellation_policy: cancellation.Policy
    timeline: tuple[TimelineEntry, ...]
    create_time: datetime
    update_time: datetime
    confirm_time: datetime | None


@dataclass(frozen=True, slots=True)
class Page:
    bookings: tuple[Booking, ...]
    next_page_token: str
    total_size: int


async def get(
    connection: AsyncConnection,
    *,
    booking_id: UUID,
    owner: UUID | None = None,
    lock: bool = False,
) -> Booking:
    """A booking with items and timeline; `owner` None sees everybody's.

    With `lock` the row stays locked until the transaction ends.
    Raises BOOKING_NOT_FOUND, also for another owner's.
    """
    wanted = sa.select(bookings).where(bookings.c.booking_id == booking_id)
    if owner is not None:
        wanted = wanted.where(bookings.c.customer_id == owner)
    if lock:
        wanted = wanted.with_for_update()
    row = (await connection.execute(wanted)).one_or_none()
    if row is None:
        raise DomainError(Reason.BOOKING_NOT_FOUND, "no such booking", booking_id=booking_id)
    return (await _complete(connection, [row], with_timeline=True))[0]


async def list_page(
    connection: AsyncConnection,
    *,
    customer_id: UUID | None = None,
    event_id: UUID | None = None,
    status: Status | None = None,
    page_size: int,
    page_token: str,
) -> Page:
    """A page of bookings, newest first, without their timelines."""
    matching: sa.ColumnElement[bool] = sa.true()
    if customer_id is not None:
        matching &= bookings.c.customer_id == customer_id
    if event_id is not None:
        matching &= bookings.c.event_id == event_id
    if status is not None:
        matching &= bookings.c.status == status
    total = await connection.execute(
        sa.select(sa.func.count()).select_from(bookings).where(matching)
    )
    after = from_token(page_token, 1)
    # UUIDv7 sorts by the time of making.
    beyond = sa.true() if after is None else bookings.c.booking_id < sa.cast(after[0], sa.Uuid)
    rows = (
        await connection.execute(
            sa.select(bookings)
            .where(matching, beyond)
            .order_by(bookings.c.booking_id.desc())
            .limit(page_size + 1)
        )
    ).all()
    shown = rows[:page_size]
    more = len(rows) > page_size
    return Page(
        tuple(await _complete(connection, shown, with_timeline=False)),
        to_token(str(shown[-1].booking_id)) if more else "",
        total.scalar_one(),
    )


async def _complete(
    connection: AsyncConnection, rows: Sequence[sa.Row[tuple[object, ...]]], *, with_timeline: bool
) -> list[Booking]:
    booking_ids = [row.booking_id for row in rows]
    items: dict[UUID, list[Item]] = {booking_id: [] for booking_id in booking_ids}
    timelines: dict[UUID, list[TimelineEntry]] = {booking_id: [] for booking_id in booking_ids}
    currency = {row.booking_id: row.currency_code for row in rows}
    for item in await _of(connection, booking_items, booking_ids, booking_items.c.item_index):
        price = Money(currency[item.booking_id], item.unit_price_minor)
        items[item.booking_id].append(Item(item.offer_id, item.seat_id, item.quantity, price))
    if with_timeline:
        for entry in await _of(
            connection, booking_timeline, booking_ids, booking_timeline.c.entry_id
        ):
            timelines[entry.booking_id].append(
                TimelineEntry(entry.time, Status(entry.status), entry.reason)
            )
    return [
        _from_row(row, tuple(items[row.booking_id]), tuple(timelines[row.booking_id]))
        for row in rows
    ]


async def _of(
    connection: AsyncConnection,
    table: sa.Table,
    booking_ids: Collection[UUID],
    order: sa.Column[int],
) -> Sequence[sa.Row[tuple[object, ...]]]:
    if not booking_ids:
        return []
    found = await connection.execute(
        sa.select(table).where(table.c.booking_id.in_(booking_ids)).order_by(order)
    )
    return found.all()


def _from_row(
    row: sa.Row[tuple[object, ...]], items: tuple[Item, ...], timeline: tuple[TimelineEntry, ...]
) -> Booking:
    currency = row.currency_code
    return Booking(
        booking_id=row.booking_id,
        event_id=row.event_id,
        customer_id=row.customer_id,
        status=Status(row.status),
        items=items,
        total=Money(currency, row.total_minor),
        hold_expire_time=row.hold_expire_time,
        reservation_id=row.reservation_id,
        payment=None
        if row.payment_id is None
        else Payment(
            row.payment_id, row.payment_provider, PaymentStatus(row.payment_status), row.payment_url
        ),
        refund=None
        if row.refund_id is None
        else Refund(row.refund_id, Money(currency, row.refund_minor), row.refund_status),
        cancellation_policy=cancellation.from_json(row.cancellation_policy),
        timeline=timeline,
        create_time=row.create_time,
        update_time=row.update_time,
        confirm_time=row.confirm_time,
    )
