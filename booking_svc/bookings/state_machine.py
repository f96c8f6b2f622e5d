"""The life of a booking: every move between its states, and what each one owes.

A move is tested and made under the booking's row lock, and happens at most once. Calls
to other services belong to saga.py and steps.py; here is what one transaction does.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from types import MappingProxyType
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.bookings import outbox, pricing
from booking_svc.bookings.bookings import (
    SYSTEM,
    Actor,
    Booking,
    By,
    Item,
    Payment,
    PaymentStatus,
    Status,
    TimelineEntry,
    get,
)
from booking_svc.bookings.outbox import Change
from booking_svc.bookings.saga_steps import StepKind, enqueue
from booking_svc.bookings.tables import booking_items, booking_timeline, bookings
from booking_svc.catalogue.events import Event
from mesh.errors import DomainError, Reason
from mesh.ids import new_id
from mesh.money import Money

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

LIVE = (Status.HELD, Status.PENDING_PAYMENT, Status.CONFIRMED)
"""States in which a booking has places, or money that is about to become places."""

UNPAID = (Status.HELD, Status.PENDING_PAYMENT)
"""States in which places are held and no money has come."""

# How long a payment's event may take before reconciliation.py asks for it.
FIRST_CHECK = timedelta(seconds=60)
_CHECKOUT = "checkout"
# Longer than any step's try.
_STALLED = timedelta(seconds=60)


def placed(
    *,
    booking_id: UUID,
    event: Event,
    customer_id: UUID,
    items: tuple[Item, ...],
    hold_expire_time: datetime,
    provider: str | None,
    now: datetime,
) -> Booking:
    """A new booking, not yet written: HELD, or PENDING_PAYMENT at once when a provider is named.

    Its id is its reservation's, too.
    """
    booking = Booking(
        booking_id=booking_id,
        event_id=event.event_id,
        customer_id=customer_id,
        status=Status.HELD,
        items=items,
        total=pricing.total(items, event.currency_code),
        hold_expire_time=hold_expire_time,
        reservation_id=booking_id,
        payment=None,
        refunds=(),
        cancellation_policy=event.cancellation_policy,
        timeline=(TimelineEntry(now, Status.HELD, "placed", Actor.CUSTOMER),),
        create_time=now,
        update_time=now,
        confirm_time=None,
    )
    if provider is None:
        return booking
    begun = TimelineEntry(now, Status.PENDING_PAYMENT, _CHECKOUT, Actor.CUSTOMER)
    return replace(
        booking,
        status=Status.PENDING_PAYMENT,
        payment=Payment(new_id(), provider, PaymentStatus.CREATED, None),
        timeline=(*booking.timeline, begun),
    )


async def insert_items(
    connection: AsyncConnection, *, booking_id: UUID, items: Sequence[Item]
) -> None:
    """Writes the items of a booking that has none (any more)."""
    await connection.execute(
        booking_items.insert(),
        [
            {
                "booking_id": booking_id,
                "item_index": index,
                "offer_id": item.offer_id,
                "seat_id": item.seat_id,
                "quantity": item.quantity,
                "unit_price_minor": item.unit_price.amount_minor,
            }
            for index, item in enumerate(items)
        ],
    )


async def begin_payment(
    connection: AsyncConnection,
    *,
    booking: Booking,
    payment_id: UUID,
    provider: str,
    hold_expire_time: datetime,
    by: By,
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
        "payment_check_time": now + FIRST_CHECK,
        "hold_expire_time": hold_expire_time,
    }
    if booking.status is Status.PENDING_PAYMENT:
        await _update(connection, booking.booking_id, now=now, **columns)
        return changed
    return await move(
        connection,
        booking=changed,
        to=Status.PENDING_PAYMENT,
        reason=_CHECKOUT,
        by=by,
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
    return with_page(booking, url, now)


def with_page(booking: Booking, url: str, now: datetime) -> Booking:
    """The booking with a page where its payment is paid."""
    if booking.payment is None:
        raise ValueError(f"booking {booking.booking_id} has no payment")
    return replace(booking, payment=replace(booking.payment, payment_url=url), update_time=now)


async def set_payment_status(
    connection: AsyncConnection, *, booking: Booking, status: PaymentStatus, now: datetime
) -> Booking:
    """Records what became of the booking's payment. The booking must be locked."""
    if booking.payment is None:
        raise ValueError(f"booking {booking.booking_id} has no payment")
    columns: dict[str, object] = {"payment_status": status}
    if status in (PaymentStatus.CAPTURED, PaymentStatus.REFUNDED):
        columns["payment_check_time"] = None
    await _update(connection, booking.booking_id, now=now, **columns)
    return replace(booking, payment=replace(booking.payment, status=status), update_time=now)


async def move(
    connection: AsyncConnection,
    *,
    booking: Booking,
    to: Status,
    reason: str,
    now: datetime,
    by: By = SYSTEM,
    refund: Money | None = None,
    columns: Mapping[str, object] = MappingProxyType({}),
) -> Booking:
    """Moves a locked booking to another state; notes it in the timeline and writes its event.

    `refund` is what goes back, for the event. `columns` are further ones to set, which `booking` shows already.

    Raises BOOKING_STATE_INVALID for a move that MOVES does not have.
    """
    after = moved(booking, to=to, reason=reason, by=by, now=now)
    changes: dict[str, object] = {**columns, "status": to}
    if to is Status.CONFIRMED:
        changes["confirm_time"] = now
    await _update(connection, booking.booking_id, now=now, **changes)
    await _note(connection, booking.booking_id, to, reason, by, now)
    if (change := _change(to, reason, by, refund)) is not None:
        await outbox.append(connection, booking=after, change=change, now=now)
    return after


def moved(booking: Booking, *, to: Status, reason: str, by: By, now: datetime) -> Booking:
    """The booking in another state, not yet written.

    Raises BOOKING_STATE_INVALID for a move that MOVES does not have.
    """
    if to not in MOVES[booking.status]:
        raise DomainError(
            Reason.BOOKING_STATE_INVALID,
            f"a booking that is {booking.status} cannot become {to}",
            status=booking.status,
        )
    return replace(
        booking,
        status=to,
        confirm_time=now if to is Status.CONFIRMED else booking.confirm_time,
        timeline=(*booking.timeline, TimelineEntry(now, to, reason, by.actor)),
        update_time=now,
    )


async def describe(
    connection: AsyncConnection,
    *,
    booking: Booking,
    attendees: Sequence[str],
    note: str | None,
    now: datetime,
) -> None:
    """Says who comes and what else there is to say; nothing given leaves as it is."""
    columns: dict[str, object] = {"attendees": list(attendees)} if attendees else {}
    if note is not None:
        columns["note"] = note
    await _update(connection, booking.booking_id, now=now, **columns)


async def note(
    connection: AsyncConnection, *, booking: Booking, reason: str, now: datetime, by: By = SYSTEM
) -> None:
    """Adds to the timeline without a change of state."""
    await _note(connection, booking.booking_id, booking.status, reason, by, now)


async def end_unpaid(
    connection: AsyncConnection,
    *,
    booking: Booking,
    to: Status,
    reason: str,
    now: datetime,
    by: By = SYSTEM,
    even_if_paid: bool = False,
) -> Booking:
    """Ends a locked booking that nobody paid, and owes the release of its places.

    Raises BOOKING_STATE_INVALID for a booking whose payment was captured, unless that is
    to meet a booking that has ended.
    """
    paid = booking.payment is not None and booking.payment.status is PaymentStatus.CAPTURED
    if paid and not even_if_paid:
        raise DomainError(
            Reason.BOOKING_STATE_INVALID,
            "the booking is paid and about to be confirmed",
            status=booking.status,
        )
    ended = await move(connection, booking=booking, to=to, reason=reason, by=by, now=now)
    await free_places(connection, booking=booking, now=now)
    if booking.payment is not None:
        await enqueue(
            connection, booking.booking_id, StepKind.VOID, booking.payment.payment_id, now=now
        )
    return ended


async def free_places(
    connection: AsyncConnection,
    *,
    booking: Booking,
    now: datetime,
    due_in: timedelta = timedelta(0),
) -> None:
    """Owes the end of the booking's claim in the ledger, whether it is held or sold."""
    await enqueue(
        connection,
        booking.booking_id,
        StepKind.RELEASE,
        booking.reservation_id,
        event_id=booking.event_id,
        now=now,
        due_in=due_in,
    )


async def replace_reservation(
    connection: AsyncConnection, *, booking: Booking, reservation_id: UUID, now: datetime
) -> Booking:
    """Gives a locked booking another claim, not yet made; the one before is freed if it lives.

    Not at once: a process that has stalled may still be at it.
    """
    await free_places(connection, booking=booking, now=now, due_in=_STALLED)
    await _update(connection, booking.booking_id, now=now, reservation_id=reservation_id)
    return replace(booking, reservation_id=reservation_id, update_time=now)


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
    connection: AsyncConnection,
    booking_id: UUID,
    status: Status,
    reason: str,
    by: By,
    now: datetime,
) -> None:
    await connection.execute(
        booking_timeline.insert().values(
            booking_id=booking_id,
            time=now,
            status=status,
            reason=reason,
            actor=by.actor,
            actor_id=by.user_id,
        )
    )


def _change(to: Status, reason: str, by: By, refund: Money | None) -> Change | None:
    """What others are told of a move; nobody waits for the beginning of a checkout."""
    match to:
        case Status.CONFIRMED:
            return outbox.Confirmed(reason)
        case Status.CANCELLED:
            return outbox.Cancelled(by.actor, reason, refund)
        case Status.EXPIRED:
            return outbox.Expired(reason)
        case Status.FAILED:
            return outbox.Failed(reason)
        case Status.COMPLETED:
            return outbox.Completed()
        case _:
            return None
