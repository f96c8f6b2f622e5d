"""Confirms paid bookings: sells their places in the ledger, or refunds the payment.

Confirming can run more than once, and after the booking has moved on: what is still to do is
decided under the booking's lock.
"""

from collections.abc import Collection, Sequence
from datetime import datetime, timedelta

from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.bookings import bookings, pricing, refunds, saga_steps, state_machine
from booking_svc.bookings.bookings import Actor, Booking, By, Status
from booking_svc.bookings.dependencies import Dependencies
from booking_svc.bookings.saga_steps import Step
from booking_svc.catalogue import event_cancellations, events
from mesh.errors import DomainError, Reason
from mesh.ids import new_id
from mesh.observability import request_context

# A late payment's new reservation is committed at once; it expires if this process dies before.
_LATE_HOLD = timedelta(seconds=60)
_CAPTURED = "payment captured"

RESERVATION_LOST = frozenset(
    {Reason.HOLD_EXPIRED, Reason.RESERVATION_STATE_INVALID, Reason.RESERVATION_NOT_FOUND}
)
"""Why the ledger refuses to commit a reservation that no longer holds its places."""

NO_PLACES = frozenset({Reason.SOLD_OUT, Reason.SEAT_UNAVAILABLE, Reason.PURCHASE_LIMIT_EXCEEDED})


async def confirm_together(deps: Dependencies, steps: Sequence[Step]) -> list[Step]:
    """Confirms the bookings of steps whose confirmation needs no decision, as one batch.

    One reading, one call of stock_svc and one transaction. Returns the steps that it left, for
    `confirm`: late payments, bookings of cancelled events, and bookings that changed meanwhile.
    """
    async with deps.database.reading() as connection:
        known = await bookings.get_all(connection, {step.booking_id for step in steps})
        event_ids = {booking.event_id for booking in known.values()}
        cancelled = await events.cancelled_among(connection, event_ids)
    payable = [
        step
        for step in steps
        if (booking := known.get(step.booking_id)) is not None
        and booking.status is Status.PENDING_PAYMENT
        and booking.event_id not in cancelled
    ]
    committed = [known[step.booking_id] for step in payable]
    outcomes = await deps.stock.commit_all(
        reservations=[(booking.event_id, booking.reservation_id) for booking in committed]
    )
    sold = [
        (step, booking)
        for step, booking, refusal in zip(payable, committed, outcomes, strict=True)
        if refusal is None
    ]
    confirmed: Collection[object] = ()
    if sold:
        async with deps.database.transaction() as connection:
            confirmed = await _write_all(connection, sold, now=deps.clock())
    return [step for step in steps if step.key not in confirmed]


async def _write_all(
    connection: AsyncConnection, sold: Sequence[tuple[Step, Booking]], *, now: datetime
) -> Collection[object]:
    """Confirms the bookings that are as they were when their places were sold; their steps' keys."""
    locked = await bookings.get_all(
        connection, [booking.booking_id for _, booking in sold], lock=True
    )
    steps, transitions = [], []
    for step, before in sold:
        booking = locked[step.booking_id]
        if (
            booking.status is Status.PENDING_PAYMENT
            and booking.reservation_id == before.reservation_id
        ):
            steps.append(step)
            with request_context.resuming(f"step {step.kind}", step.origin):
                transitions.append(
                    state_machine.moved(booking, to=Status.CONFIRMED, reason=_CAPTURED, now=now)
                )
    await state_machine.write_all(
        connection, transitions, now=now, also=[saga_steps.deleting(steps)]
    )
    return {step.key for step in steps}


async def confirm(deps: Dependencies, step: Step) -> None:
    """The payment was captured: commits the reservation, or refunds the payment."""
    async with deps.database.reading() as connection:
        booking = await bookings.get(connection, booking_id=step.booking_id)
        event = await events.get(connection, event_id=booking.event_id)
    if booking.status in state_machine.SOLD:
        await saga_steps.finish(deps.database, step)
    elif booking.status is Status.CANCELLED:
        await _refund_payment(deps, step, "paid after the cancellation; payment refunded")
    elif event.staff_status is events.StaffStatus.CANCELLED:
        await _cancel_for_event(deps, step)
    else:
        await _confirm(deps, step, booking)


async def _confirm(deps: Dependencies, step: Step, booking: Booking) -> None:
    try:
        sold, reason = await _sell(deps, booking)
    except DomainError as refusal:
        if refusal.reason not in NO_PLACES:
            raise
        await _refund_payment(deps, step, "paid late, places no longer available; payment refunded")
        return
    now = deps.clock()
    async with deps.database.transaction() as connection:
        locked = await bookings.get(connection, booking_id=step.booking_id, lock=True)
        if locked.status is not Status.CANCELLED and locked.reservation_id == sold.reservation_id:
            if locked.status not in state_machine.SOLD:
                await state_machine.move(
                    connection, booking=locked, to=Status.CONFIRMED, reason=reason, now=now
                )
            await saga_steps.done(connection, step)
            return
        # Cancelled meanwhile, or another process has committed another reservation for it.
        await state_machine.release_places(connection, booking=sold, now=now)
        await saga_steps.postpone(connection, step, until=now, error="overtaken")
    deps.on_steps_enqueued()


async def _sell(deps: Dependencies, booking: Booking) -> tuple[Booking, str]:
    """Commits the booking's reservation, or a new one if that is lost.

    Returns the booking with the committed reservation, and the reason for its timeline.
    """
    try:
        await deps.stock.commit(event_id=booking.event_id, reservation_id=booking.reservation_id)
    except DomainError as refusal:
        if refusal.reason not in RESERVATION_LOST:
            raise
    else:
        return booking, _CAPTURED
    now = deps.clock()
    async with deps.database.transaction() as connection:
        locked = await bookings.get(connection, booking_id=booking.booking_id, lock=True)
        if locked.reservation_id == booking.reservation_id:
            # Stored before it is made: a repeated step continues with the same reservation.
            locked = await state_machine.replace_reservation(
                connection, booking=locked, reservation_id=new_id(), now=now
            )
    await deps.stock.reserve(
        event_id=locked.event_id,
        reservation_id=locked.reservation_id,
        request_key=f"late-payment:{locked.reservation_id}",
        customer_id=locked.customer_id,
        lines=pricing.lines(locked.items),
        expire_time=now + _LATE_HOLD,
    )
    await deps.stock.commit(event_id=locked.event_id, reservation_id=locked.reservation_id)
    return locked, "paid late, places still available"


async def _refund_payment(deps: Dependencies, step: Step, reason: str) -> None:
    """Refunds the whole payment of a booking that cannot be confirmed, and ends the booking."""
    now = deps.clock()
    async with deps.database.transaction() as connection:
        locked = await bookings.get(connection, booking_id=step.booking_id, lock=True)
        if locked.status in state_machine.SOLD:
            await saga_steps.done(connection, step)
            return
        promised = locked.refunds
        locked = await refunds.refund_payment(
            connection,
            booking=locked,
            payment_id=step.subject_id,
            reason="booking_not_possible",
            now=now,
        )
        if locked.status is Status.PENDING_PAYMENT:
            await state_machine.move(
                connection, booking=locked, to=Status.EXPIRED, reason=reason, now=now
            )
        elif locked.refunds != promised:
            await state_machine.note(connection, booking=locked, reason=reason, now=now)
        await state_machine.release_places(connection, booking=locked, now=now)
        await saga_steps.done(connection, step)
    deps.on_steps_enqueued()


async def _cancel_for_event(deps: Dependencies, step: Step) -> None:
    """The event was cancelled while the customer paid: cancels as its other bookings."""
    now = deps.clock()
    async with deps.database.transaction() as connection:
        locked = await bookings.get(connection, booking_id=step.booking_id, lock=True)
        if locked.status in state_machine.SOLD or locked.status is Status.CANCELLED:
            # event_cancellation.py was first, or will be next.
            await saga_steps.postpone(connection, step, until=now, error="overtaken")
            return
        promised = await refunds.refund_payment(
            connection,
            booking=locked,
            payment_id=step.subject_id,
            reason="cancelled",
            now=now,
        )
        refund = promised.refunds[-1].amount if promised.refunds != locked.refunds else None
        reason = await event_cancellations.count_late(connection, event_id=locked.event_id)
        await state_machine.move(
            connection,
            booking=promised,
            to=Status.CANCELLED,
            reason=reason,
            by=By(Actor.ORGANISER),
            refund=refund,
            now=now,
        )
        await state_machine.release_places(connection, booking=promised, now=now)
        await saga_steps.done(connection, step)
    deps.on_steps_enqueued()
