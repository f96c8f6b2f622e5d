"""Giving bookings up: by the customer or the staff, or by the organiser for a whole event.

One transaction each. What is owed for it, freeing the places and refunding, follows as
steps. What a policy grants is cancellation.py's.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.bookings import (
    bookings,
    modification_store,
    pricing,
    refunds,
    state_machine,
)
from booking_svc.bookings.bookings import Actor, Booking, By, ChangeState, Item, Status
from booking_svc.bookings.pricing import RequestedItem
from booking_svc.bookings.tables import bookings as bookings_table
from booking_svc.catalogue import cancellation_policy, events
from booking_svc.catalogue.cancellation_policy import Preview, Terms
from booking_svc.catalogue.events import StaffStatus
from mesh.clock import rfc3339
from mesh.errors import DomainError, Reason
from mesh.money import Money


@dataclass(frozen=True, slots=True)
class Progress:
    """How many bookings of an event one batch has cancelled, and how many are left."""

    cancelled: int
    left: int


async def cancel(
    connection: AsyncConnection,
    *,
    booking_id: UUID,
    owner: UUID | None,
    by: By,
    reason: str,
    now: datetime,
) -> Booking:
    """Cancels a booking: free of charge when unpaid, by its policy when confirmed.

    Raises BOOKING_NOT_FOUND, ALREADY_CANCELLED, CANCELLATION_CLOSED (with its deadline)
    or BOOKING_STATE_INVALID.
    """
    booking = await bookings.get(connection, booking_id=booking_id, owner=owner, lock=True)
    await _give_up_change(connection, booking, now)
    reason = reason or f"cancelled by the {by.actor.lower()}"
    if booking.status in state_machine.UNPAID:
        return await state_machine.end_unpaid(
            connection, booking=booking, to=Status.CANCELLED, reason=reason, by=by, now=now
        )
    granted = await terms_of(connection, booking, now)
    refuse_if_closed(granted)
    refund = _refund(booking, granted)
    return await _end_confirmed(connection, booking, refund, by=by, reason=reason, now=now)


async def preview(
    connection: AsyncConnection,
    *,
    booking_id: UUID,
    owner: UUID | None,
    now: datetime,
    keep: Sequence[RequestedItem] | None = None,
) -> Preview:
    """What `cancel` would do now, or giving up all items but those to `keep`.

    Raises as these do, except when the policy refuses.
    """
    booking = await bookings.get(connection, booking_id=booking_id, owner=owner)
    if booking.status in state_machine.UNPAID:
        nothing = Money(0, booking.total.currency_code)
        return Preview(False, nothing, 0, "not paid: cancelling is free", booking.hold_expire_time)
    granted = await terms_of(connection, booking, now)
    given_up = booking.total if keep is None else given_up_by(booking, keep)[1]
    refund = Money(granted.refund_minor(given_up.amount_minor), given_up.currency_code)
    return Preview(
        refund.amount_minor > 0, refund, granted.percent, _explain(granted), granted.deadline
    )


async def terms_of(connection: AsyncConnection, booking: Booking, now: datetime) -> Terms:
    """What a confirmed booking is granted: all of it once its event is cancelled, else by its policy.

    Raises ALREADY_CANCELLED or BOOKING_STATE_INVALID for one in any other state.
    """
    if booking.status is Status.CANCELLED:
        raise DomainError(Reason.ALREADY_CANCELLED, "the booking is cancelled already")
    if booking.status is not Status.CONFIRMED or booking.confirm_time is None:
        raise DomainError(
            Reason.BOOKING_STATE_INVALID,
            f"a booking that is {booking.status} cannot be cancelled or changed",
            status=booking.status,
        )
    event = await events.get(connection, event_id=booking.event_id)
    if event.staff_status is StaffStatus.CANCELLED:
        # Whoever is quicker than event_cancellation.py must not be worse off.
        return Terms(True, 100, None)
    granted = cancellation_policy.terms(
        booking.cancellation_policy,
        start_time=event.start_time,
        confirm_time=booking.confirm_time,
        now=now,
    )
    return replace(granted, percent=min(granted.percent, booking.max_refund_percent))


def refuse_if_closed(granted: Terms) -> None:
    """Raises CANCELLATION_CLOSED with its deadline."""
    if not granted.is_open:
        raise DomainError(
            Reason.CANCELLATION_CLOSED,
            "the cancellation policy refuses at this time",
            deadline=rfc3339(granted.deadline) if granted.deadline else "",
        )


def given_up_by(booking: Booking, keep: Sequence[RequestedItem]) -> tuple[tuple[Item, ...], Money]:
    """The items that stay at the prices they were bought at, and the price of the others.

    Raises BOOKING_STATE_INVALID when more is to be kept than there is.
    """
    wanted: Counter[tuple[UUID | None, UUID | None]] = Counter()
    for line in keep:
        wanted[_place(line)] += line.quantity
    kept = []
    for item in booking.items:
        if quantity := min(wanted[_place(item)], item.quantity):
            kept.append(replace(item, quantity=quantity))
            wanted[_place(item)] -= quantity
    if +wanted:
        raise DomainError(
            Reason.BOOKING_STATE_INVALID,
            "a confirmed booking can only become smaller: book more places in another booking",
            status=booking.status,
        )
    total = booking.total
    left = pricing.total(kept, total.currency_code)
    return tuple(kept), Money(total.amount_minor - left.amount_minor, total.currency_code)


def _place(line: RequestedItem | Item) -> tuple[UUID | None, UUID | None]:
    """What a line is about: a seat, or the places of an offer."""
    return (None, line.seat_id) if line.seat_id else (line.offer_id, None)


async def cancel_for_event(
    connection: AsyncConnection, *, event_id: UUID, reason: str, limit: int, now: datetime
) -> Progress:
    """Cancels up to `limit` live bookings of an event in full, for the organiser.

    All that was paid goes back. Call it, a transaction each, until none is left: bookings
    that are being worked on are passed over, and a crash in between loses nothing. New
    ones must not come up any more: the event is CANCELLED first.
    """
    is_live = sa.and_(
        bookings_table.c.event_id == event_id, bookings_table.c.status.in_(state_machine.LIVE)
    )
    found = await connection.execute(
        sa.select(bookings_table.c.booking_id)
        .where(is_live)
        .order_by(bookings_table.c.booking_id)
        .limit(limit)
        .with_for_update(skip_locked=True)
    )
    cancelled = 0
    by = By(Actor.ORGANISER)
    for booking_id in found.scalars().all():
        booking = await bookings.get(connection, booking_id=booking_id)
        change = await modification_store.find_open(connection, booking_id=booking_id)
        if change is not None and change.state is ChangeState.EXCHANGING:
            continue
        await _give_up_change(connection, booking, now)
        if booking.status is Status.CONFIRMED:
            await _end_confirmed(connection, booking, booking.total, by=by, reason=reason, now=now)
        else:
            # Money that has come already meets a cancelled booking, and goes back.
            await state_machine.end_unpaid(
                connection,
                booking=booking,
                to=Status.CANCELLED,
                reason=reason,
                by=by,
                now=now,
                even_if_paid=True,
            )
        cancelled += 1
    left = await connection.scalar(
        sa.select(sa.func.count()).select_from(bookings_table).where(is_live)
    )
    return Progress(cancelled, left or 0)


async def _give_up_change(connection: AsyncConnection, booking: Booking, now: datetime) -> None:
    """A booking that ends waits for no change any more. Raises while places are exchanged."""
    change = await modification_store.find_open(connection, booking_id=booking.booking_id)
    if change is None:
        return
    if change.state is ChangeState.EXCHANGING:
        raise DomainError(
            Reason.BOOKING_STATE_INVALID,
            "the booking is being changed: try again in a moment",
            status=booking.status,
            retry_after_seconds=1,
        )
    await modification_store.give_up(
        connection, booking=booking, change=change, to=ChangeState.CANCELLED, now=now
    )


def _refund(booking: Booking, terms: Terms) -> Money:
    total = booking.total
    return Money(terms.refund_minor(total.amount_minor), total.currency_code)


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
    await state_machine.free_places(connection, booking=ended, now=now)
    return ended


def _explain(terms: Terms) -> str:
    if not terms.is_open:
        return "cancelling is closed"
    until = f" until {rfc3339(terms.deadline)}" if terms.deadline else ""
    return f"{terms.percent} % of what was paid goes back{until}"
