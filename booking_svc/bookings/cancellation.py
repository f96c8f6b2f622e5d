"""Cancellation of bookings: by the customer or the staff, or by the organiser of an event.

One transaction each; steps release the places and refund. What a policy grants is decided in
catalogue/cancellation_policy.py.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.bookings import (
    bookings,
    modification_store,
    pricing,
    refund_requests,
    refunds,
    state_machine,
)
from booking_svc.bookings.bookings import Actor, Booking, By, ChangeState, Item, Status
from booking_svc.bookings.dependencies import Dependencies
from booking_svc.bookings.pricing import RequestedItem
from booking_svc.bookings.tables import bookings as bookings_table
from booking_svc.catalogue import cancellation_policy, event_moves, events
from booking_svc.catalogue.cancellation_policy import Preview, Terms
from booking_svc.catalogue.events import StaffStatus
from mesh.clock import rfc3339
from mesh.db.idempotent import Key
from mesh.errors import DomainError, FieldViolation, Reason, invalid
from mesh.money import Money

# Of an event that has a start and no end, as in completion.py.
_LENGTH = timedelta(hours=24)


ENDED = {
    Status.COMPLETED: "the event is over: the booking cannot be cancelled or changed any more",
    Status.EXPIRED: "the booking was not paid in time and has ended: place another",
    Status.FAILED: "the payment failed and the booking has ended: place another",
    Status.CANCELLED: "the booking is cancelled: place another",
}
"""What a booking's state says to a request to cancel or change it."""


@dataclass(frozen=True, slots=True)
class StaffRefund:
    """The refund that staff decide, in place of the policy's: one of the two is set."""

    percent: int | None
    amount: Money | None


@dataclass(frozen=True, slots=True)
class Progress:
    """The bookings of an event that one batch has cancelled, and those still to cancel."""

    cancelled: int
    remaining: int


async def cancel_booking(
    deps: Dependencies,
    *,
    key: Key | None,
    booking_id: UUID,
    owner: UUID | None,
    by: By,
    reason: str,
    encode: Callable[[Booking], bytes],
    staff_refund: StaffRefund | None = None,
) -> bytes:
    """Cancels a booking once per key, as `cancel` does. Returns the answer of `encode`."""
    now = deps.clock()

    async def effect(connection: AsyncConnection) -> tuple[UUID, bytes]:
        booking = await cancel(
            connection,
            booking_id=booking_id,
            owner=owner,
            by=by,
            reason=reason,
            staff_refund=staff_refund,
            now=now,
        )
        return booking_id, encode(booking)

    answer = await deps.writes.run_once(key, effect)
    await refund_requests.send(deps, booking_id)
    deps.on_steps_enqueued()
    return answer


async def cancel(
    connection: AsyncConnection,
    *,
    booking_id: UUID,
    owner: UUID | None,
    by: By,
    reason: str,
    now: datetime,
    staff_refund: StaffRefund | None = None,
) -> Booking:
    """Cancels a booking: free of charge when unpaid, by its policy when confirmed.

    Staff can cancel until the event ends, and decide the refund.
    Raises BOOKING_NOT_FOUND, ALREADY_CANCELLED, CANCELLATION_CLOSED (with its deadline),
    BOOKING_STATE_INVALID, or VALIDATION_FAILED for a refund of more than is left.
    """
    booking = await bookings.get(connection, booking_id=booking_id, owner=owner, lock=True)
    await _cancel_change(connection, booking, now)
    reason = reason or f"cancelled by the {by.actor.lower()}"
    if booking.status in state_machine.UNPAID:
        return await state_machine.end_unpaid(
            connection, booking=booking, to=Status.CANCELLED, reason=reason, by=by, now=now
        )
    terms = await terms_of(connection, booking, now)
    await refuse_if_too_late(connection, booking, terms, by=by, now=now)
    refund = await refund_of(connection, booking, booking.total, terms, staff_refund)
    return await _end_confirmed(connection, booking, refund, by=by, reason=reason, now=now)


async def preview(
    connection: AsyncConnection,
    *,
    booking_id: UUID,
    owner: UUID | None,
    now: datetime,
    keep: Sequence[RequestedItem] | None = None,
) -> Preview:
    """What `cancel` would do now, or an update that keeps only the items `keep`.

    Raises as these do, except CANCELLATION_CLOSED.
    """
    booking = await bookings.get(connection, booking_id=booking_id, owner=owner)
    if booking.status in state_machine.UNPAID:
        nothing = Money(0, booking.total.currency_code)
        return Preview(
            False, nothing, 0, "not paid: cancellation is free", booking.hold_expire_time
        )
    terms = await terms_of(connection, booking, now)
    removed = booking.total if keep is None else split_items(booking, keep)[1]
    refund = await refund_of(connection, booking, removed, terms, None)
    return Preview(refund.amount_minor > 0, refund, terms.percent, _explain(terms), terms.deadline)


async def terms_of(connection: AsyncConnection, booking: Booking, now: datetime) -> Terms:
    """The refund terms of a confirmed booking.

    A full refund once its event is cancelled, and for some days after it has moved.
    Raises ALREADY_CANCELLED, or BOOKING_STATE_INVALID in any other state.
    """
    if booking.status is Status.CANCELLED:
        raise DomainError(Reason.ALREADY_CANCELLED, "the booking is already cancelled")
    if booking.status is not Status.CONFIRMED or booking.confirm_time is None:
        raise DomainError(
            Reason.BOOKING_STATE_INVALID,
            ENDED.get(
                booking.status,
                "only a confirmed booking can be moved: cancel it at no cost, and place another",
            ),
            status=booking.status,
        )
    event = await events.get(connection, event_id=booking.event_id)
    if event.staff_status is StaffStatus.CANCELLED:
        # Also for a customer who cancels before event_cancellation.py does.
        return Terms(True, 100, None)
    booked_time = await modification_store.rescheduled_time(connection, booking=booking)
    until = await event_moves.full_refund_until(
        connection, event=event, booked_time=booked_time or booking.create_time, now=now
    )
    if until is not None:
        return Terms(True, 100, until)
    terms = cancellation_policy.terms(
        booking.cancellation_policy,
        start_time=event.start_time,
        confirm_time=booking.confirm_time,
        now=now,
    )
    return replace(terms, percent=min(terms.percent, booking.max_refund_percent))


async def refund_of(
    connection: AsyncConnection,
    booking: Booking,
    returned: Money,
    terms: Terms,
    staff_refund: StaffRefund | None,
) -> Money:
    """The refund for items or a price difference that a booking returns, `returned`.

    The policy's percentage, or what staff decide; at most what is left beyond the price of the
    items that the booking keeps. Raises VALIDATION_FAILED for a higher amount by staff.
    """
    left = await refunds.refundable(
        connection,
        booking=booking,
        keep_minor=booking.total.amount_minor - returned.amount_minor,
    )
    if staff_refund is not None and staff_refund.amount is not None:
        amount = staff_refund.amount
        if amount.currency_code != left.currency_code:
            raise invalid(
                FieldViolation("refund_amount.currency_code", f"must be {left.currency_code}")
            )
        if not 0 <= amount.amount_minor <= left.amount_minor:
            raise invalid(
                FieldViolation(
                    "refund_amount.amount_minor",
                    f"must be 0 to {left.amount_minor}, what is left of the payments",
                )
            )
        return amount
    if staff_refund is not None and staff_refund.percent is not None:
        terms = replace(terms, percent=staff_refund.percent)
    minor = terms.refund_minor(returned.amount_minor)
    return Money(min(minor, left.amount_minor), left.currency_code)


async def refuse_if_too_late(
    connection: AsyncConnection, booking: Booking, terms: Terms, *, by: By, now: datetime
) -> None:
    """Raises CANCELLATION_CLOSED: for customers by the policy, for staff after the event."""
    if by.actor is not Actor.STAFF:
        refuse_if_closed(terms)
        return
    event = await events.get(connection, event_id=booking.event_id)
    end = event.end_time or (event.start_time and event.start_time + _LENGTH)
    if end is not None and now >= end:
        refuse_if_closed(Terms(False, 0, end))


def refuse_if_closed(terms: Terms) -> None:
    """Raises CANCELLATION_CLOSED with its deadline."""
    if not terms.is_open:
        raise DomainError(
            Reason.CANCELLATION_CLOSED,
            "the cancellation policy no longer allows to cancel or change the booking",
            deadline=rfc3339(terms.deadline) if terms.deadline else "",
        )


def split_items(booking: Booking, keep: Sequence[RequestedItem]) -> tuple[tuple[Item, ...], Money]:
    """The items to keep, at the prices paid for them, and the total price of the others.

    Raises BOOKING_STATE_INVALID if `keep` has more than the booking.
    """
    to_keep: Counter[tuple[UUID | None, UUID | None]] = Counter()
    for line in keep:
        to_keep[_place(line)] += line.quantity
    kept = []
    for item in booking.items:
        if quantity := min(to_keep[_place(item)], item.quantity):
            kept.append(replace(item, quantity=quantity))
            to_keep[_place(item)] -= quantity
    if +to_keep:
        raise DomainError(
            Reason.BOOKING_STATE_INVALID,
            "items can only be removed from a confirmed booking: place a new booking for more",
            status=booking.status,
        )
    total = booking.total
    rest = pricing.total(kept, total.currency_code)
    return tuple(kept), Money(total.amount_minor - rest.amount_minor, total.currency_code)


async def cancel_for_event(
    connection: AsyncConnection, *, event_id: UUID, reason: str, limit: int, now: datetime
) -> Progress:
    """Cancels up to `limit` live bookings of a cancelled event, with a full refund.

    Call it in one transaction after the other until none remains: locked bookings and those
    whose places are being exchanged are skipped.
    """
    is_live = sa.and_(
        bookings_table.c.event_id == event_id, bookings_table.c.status.in_(state_machine.LIVE)
    )
    booking_ids = await connection.scalars(
        sa.select(bookings_table.c.booking_id)
        .where(is_live)
        .order_by(bookings_table.c.booking_id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    cancelled = 0
    by = By(Actor.ORGANISER)
    for booking_id in booking_ids.all():
        booking = await bookings.get(connection, booking_id=booking_id)
        change = await modification_store.find_open(connection, booking_id=booking_id)
        if change is not None and change.state is ChangeState.EXCHANGING:
            continue
        await _cancel_change(connection, booking, now)
        if booking.status is Status.CONFIRMED:
            await _end_confirmed(connection, booking, booking.total, by=by, reason=reason, now=now)
        else:
            # Paid, and not confirmed yet: the CONFIRM step finds it cancelled.
            booking, refund = await refunds.refund(
                connection, booking=booking, amount=booking.total, reason="cancelled", now=now
            )
            await state_machine.end_unpaid(
                connection,
                booking=booking,
                to=Status.CANCELLED,
                reason=reason,
                by=by,
                now=now,
                even_if_paid=True,
                refund=refund if refund.amount_minor > 0 else None,
            )
        cancelled += 1
    remaining = await connection.scalar(
        sa.select(sa.func.count()).select_from(bookings_table).where(is_live)
    )
    return Progress(cancelled, remaining or 0)


async def _cancel_change(connection: AsyncConnection, booking: Booking, now: datetime) -> None:
    """Cancels the open change of a booking. Raises BOOKING_STATE_INVALID during its exchange."""
    change = await modification_store.find_open(connection, booking_id=booking.booking_id)
    if change is None:
        return
    if change.state is ChangeState.EXCHANGING:
        raise modification_store.in_progress(booking)
    await modification_store.end_unpaid(
        connection, booking=booking, change=change, to=ChangeState.CANCELLED, now=now
    )


async def _end_confirmed(
    connection: AsyncConnection,
    booking: Booking,
    refund: Money,
    *,
    by: By,
    reason: str,
    now: datetime,
) -> Booking:
    booking, refund = await refunds.refund(
        connection, booking=booking, amount=refund, reason="cancelled", now=now
    )
    ended = await state_machine.move(
        connection,
        booking=booking,
        to=Status.CANCELLED,
        reason=reason,
        by=by,
        refund=refund if refund.amount_minor > 0 else None,
        now=now,
    )
    await state_machine.release_places(connection, booking=ended, now=now)
    return ended


def _explain(terms: Terms) -> str:
    if not terms.is_open:
        return "cancellation is closed"
    until = f" until {rfc3339(terms.deadline)}" if terms.deadline else ""
    return f"{terms.percent} % of the price is refunded{until}"


def _place(line: RequestedItem | Item) -> tuple[UUID | None, UUID | None]:
    """What a line is about: a seat, or the places of an offer."""
    return (None, line.seat_id) if line.seat_id else (line.offer_id, None)
