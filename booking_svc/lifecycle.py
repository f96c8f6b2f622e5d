"""The life of a booking: every move between its states, and what each one owes.

A move is tested and made under the booking's row lock, and happens at most once. Calls
to other services belong to saga.py and steps.py; here is what one transaction does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from enum import StrEnum
from types import MappingProxyType
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc import cancellation
from booking_svc.bookings import (
    Booking,
    Payment,
    PaymentStatus,
    Refund,
    Status,
    TimelineEntry,
    get,
)
from booking_svc.tables import booking_items, booking_steps, booking_timeline, bookings
from mesh.errors import DomainError, Reason

MOVES: dict[Status, frozenset[Status]] = {
    Status.HELD: frozenset(
        # CONFIRMED straight away: a booking of total 0 needs no payment.
        {Status.PENDING_PAYMENT, Status.CONFIRMED, Status.EXPIRED, Status.CANCELLED}
    ),
    Status.PENDING_PAYMENT: frozenset(
        {Status.CONFIRMED, Status.EXPIRED, Status.CANCELLED, Status.FAILED}
    ),
    Status.CONFIRMED: frozenset({Status.COMPLETED, Status.CANCELLED}),
    Status.COMPLETED: frozenset(),
    # A late payment whose places could be had again.
    Status.EXPIRED: frozenset({Status.CONFIRMED}),
    Status.FAILED: frozenset({Status.CONFIRMED}),
    Status.CANCELLED: frozenset(),
}

UNPAID = (Status.HELD, Status.PENDING_PAYMENT)
"""States in which places are held and no money has come."""


class StepKind(StrEnum):
    """What a booking can owe to another service; see steps.py."""

    CONFIRM = "CONFIRM"
    RELEASE = "RELEASE"
    VOID = "VOID"
    REFUND = "REFUND"


async def insert(connection: AsyncConnection, *, booking: Booking, reason: str) -> Booking:
    """Writes a new booking with its items and the first entry of its timeline."""
    await connection.execute(
        bookings.insert().values(
            booking_id=booking.booking_id,
            event_id=booking.event_id,
            customer_id=booking.customer_id,
            status=booking.status,
            currency_code=booking.total.currency_code,
            total_minor=booking.total.amount_minor,
            hold_expire_time=booking.hold_expire_time,
            reservation_id=booking.reservation_id,
            cancellation_policy=cancellation.to_json(booking.cancellation_policy),
            create_time=booking.create_time,
            update_time=booking.update_time,
        )
    )
    await connection.execute(
        booking_items.insert(),
        [
            {
                "booking_id": booking.booking_id,
                "item_index": index,
                "offer_id": item.offer_id,
                "seat_id": item.seat_id,
                "quantity": item.quantity,
                "unit_price_minor": item.unit_price.amount_minor,
            }
            for index, item in enumerate(booking.items)
        ],
    )
    entry = await _note(
        connection, booking.booking_id, booking.status, reason=reason, now=booking.create_time
    )
    return replace(booking, timeline=(entry,))


async def begin_payment(
    connection: AsyncConnection,
    *,
    booking: Booking,
    payment_id: UUID,
    provider: str,
    hold_expire_time: datetime,
    now: datetime,
) -> Booking:
    """HELD → PENDING_PAYMENT; or another try with a new payment while none has a page yet.

    The booking must be locked.
    """
    payment = Payment(payment_id, provider, PaymentStatus.CREATED, None)
    changed = replace(booking, payment=payment, hold_expire_time=hold_expire_time)
    columns: dict[str, object] = {
        "payment_id": payment_id,
        "payment_provider": provider,
        "payment_status": PaymentStatus.CREATED,
        "payment_url": None,
        "hold_expire_time": hold_expire_time,
    }
    if booking.status is Status.PENDING_PAYMENT:
        await _update(connection, booking.booking_id, now=now, **columns)
        return changed
    return await move(
        connection,
        booking=changed,
        to=Status.PENDING_PAYMENT,
        reason="checkout",
        now=now,
        columns=columns,
    )


async def set_payment_url(
    connection: AsyncConnection, *, booking: Booking, url: str, now: datetime
) -> Booking:
    """Stores where the booking's payment is paid, unless another one has taken its place."""
    if booking.payment is None:
        raise ValueError(f"booking {booking.booking_id} has no payment")
    stored = await connection.execute(
        sa.update(bookings)
        .where(bookings.c.booking_id == booking.booking_id)
        .where(bookings.c.payment_id == booking.payment.payment_id)
        .values(payment_url=url, update_time=now)
    )
    if stored.rowcount == 0:
        return await get(connection, booking_id=booking.booking_id)
    return replace(booking, payment=replace(booking.payment, payment_url=url), update_time=now)


async def set_payment_status(
    connection: AsyncConnection, *, booking: Booking, status: PaymentStatus, now: datetime
) -> Booking:
    """Records what became of the booking's payment. The booking must be locked."""
    if booking.payment is None:
        raise ValueError(f"booking {booking.booking_id} has no payment")
    await _update(connection, booking.booking_id, now=now, payment_status=status)
    return replace(booking, payment=replace(booking.payment, status=status), update_time=now)


async def set_refund(
    connection: AsyncConnection, *, booking: Booking, refund: Refund, now: datetime
) -> Booking:
    """Records the refund of the booking's payment. The booking must be locked."""
    await _update(
        connection,
        booking.booking_id,
        now=now,
        refund_id=refund.refund_id,
        refund_minor=refund.amount.amount_minor,
        refund_status=refund.status,
    )
    return replace(booking, refund=refund, update_time=now)


async def move(
    connection: AsyncConnection,
    *,
    booking: Booking,
    to: Status,
    reason: str,
    now: datetime,
    reservation_id: UUID | None = None,
    columns: Mapping[str, object] = MappingProxyType({}),
) -> Booking:
    """Moves a locked booking to another state and notes it in the timeline.

    `columns` are further ones to set, which `booking` shows already.

    Raises BOOKING_STATE_INVALID for a move that MOVES does not have.
    """
    if to not in MOVES[booking.status]:
        raise DomainError(
            Reason.BOOKING_STATE_INVALID,
            f"a booking that is {booking.status} cannot become {to}",
            status=booking.status,
        )
    changes: dict[str, object] = {**columns, "status": to}
    if to is Status.CONFIRMED:
        changes["confirm_time"] = now
    if reservation_id is not None:
        changes["reservation_id"] = reservation_id
    await _update(connection, booking.booking_id, now=now, **changes)
    entry = await _note(connection, booking.booking_id, to, reason=reason, now=now)
    return replace(
        booking,
        status=to,
        confirm_time=now if to is Status.CONFIRMED else booking.confirm_time,
        reservation_id=reservation_id or booking.reservation_id,
        timeline=(*booking.timeline, entry),
        update_time=now,
    )


async def note(
    connection: AsyncConnection, *, booking: Booking, reason: str, now: datetime
) -> None:
    """Adds to the timeline without a change of state."""
    await _note(connection, booking.booking_id, booking.status, reason=reason, now=now)


async def end_unpaid(
    connection: AsyncConnection, *, booking: Booking, to: Status, reason: str, now: datetime
) -> Booking:
    """Ends a locked booking that nobody paid, and owes the release of its places.

    Raises BOOKING_STATE_INVALID for a booking whose payment was captured.
    """
    if booking.payment is not None and booking.payment.status is PaymentStatus.CAPTURED:
        raise DomainError(
            Reason.BOOKING_STATE_INVALID,
            "the booking is paid and about to be confirmed",
            status=booking.status,
        )
    ended = await move(connection, booking=booking, to=to, reason=reason, now=now)
    await owe(connection, booking.booking_id, StepKind.RELEASE, booking.reservation_id, now=now)
    if booking.payment is not None:
        await owe(
            connection, booking.booking_id, StepKind.VOID, booking.payment.payment_id, now=now
        )
    return ended


async def lapsed(connection: AsyncConnection, *, now: datetime, limit: int) -> Sequence[UUID]:
    """Unpaid bookings whose hold is over, oldest first."""
    found = await connection.execute(
        _lapsed(now).order_by(bookings.c.hold_expire_time).limit(limit)
    )
    return found.scalars().all()


async def expire(connection: AsyncConnection, *, booking_id: UUID, now: datetime) -> bool:
    """Ends a booking whose hold is over. False when it is not, any more, or is worked on."""
    locked = await connection.execute(
        _lapsed(now).where(bookings.c.booking_id == booking_id).with_for_update(skip_locked=True)
    )
    if locked.one_or_none() is None:
        return False
    booking = await get(connection, booking_id=booking_id)
    await end_unpaid(
        connection, booking=booking, to=Status.EXPIRED, reason="not paid in time", now=now
    )
    return True


async def owe(
    connection: AsyncConnection,
    booking_id: UUID,
    kind: StepKind,
    subject_id: UUID,
    *,
    now: datetime,
) -> None:
    """Writes down a step to be taken once this transaction is durable; owing it twice is once."""
    await connection.execute(
        postgresql.insert(booking_steps)
        .values(
            booking_id=booking_id, kind=kind, subject_id=subject_id, due_time=now, create_time=now
        )
        .on_conflict_do_nothing()
    )


def _lapsed(now: datetime) -> sa.Select[UUID]:
    return (
        sa.select(bookings.c.booking_id)
        .where(bookings.c.status.in_(UNPAID))
        .where(bookings.c.hold_expire_time <= now)
        .where(bookings.c.payment_status.is_distinct_from(PaymentStatus.CAPTURED))
    )


async def _update(
    connection: AsyncConnection, booking_id: UUID, *, now: datetime, **changes: object
) -> None:
    await connection.execute(
        sa.update(bookings)
        .where(bookings.c.booking_id == booking_id)
        .values(update_time=now, **changes)
    )


async def _note(
    connection: AsyncConnection, booking_id: UUID, status: Status, *, reason: str, now: datetime
) -> TimelineEntry:
    await connection.execute(
        booking_timeline.insert().values(
            booking_id=booking_id, time=now, status=status, reason=reason
        )
    )
    return TimelineEntry(now, status, reason)
