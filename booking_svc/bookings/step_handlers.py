"""What each saga step does: sell paid places, release, void, refund, exchange.

A step can run more than once, and after the booking has moved on: each handler decides under
the booking's lock what is still to do. When steps run is step_runner.py's.
"""

from collections.abc import Awaitable, Callable
from datetime import timedelta

from booking_svc.bookings import (
    alternatives,
    bookings,
    modification_store,
    payment_events,
    pricing,
    refunds,
    saga_steps,
    state_machine,
)
from booking_svc.bookings.bookings import (
    Actor,
    Booking,
    By,
    ChangeState,
    PaymentStatus,
    Status,
)
from booking_svc.bookings.dependencies import Dependencies
from booking_svc.bookings.modification_store import Change
from booking_svc.bookings.saga_steps import Step, StepKind
from booking_svc.catalogue import event_cancellations, events
from booking_svc.clients.ports import PaymentEvent
from mesh.errors import DomainError, Reason
from mesh.ids import new_id
from mesh.money import Money

# A late payment's new reservation is committed at once; it expires if this process dies before.
_LATE_HOLD = timedelta(seconds=60)
# The ledger refuses an expiry in the past, also for sold places, which do not expire.
_LEAST_EXPIRY = timedelta(minutes=1)

RESERVATION_LOST = frozenset(
    {Reason.HOLD_EXPIRED, Reason.RESERVATION_STATE_INVALID, Reason.RESERVATION_NOT_FOUND}
)
"""Why the ledger refuses to commit a reservation that no longer holds its places."""

_NO_PLACES = frozenset({Reason.SOLD_OUT, Reason.SEAT_UNAVAILABLE, Reason.PURCHASE_LIMIT_EXCEEDED})
# Final refusals of an exchange; after any other error it is tried again.
_EXCHANGE_REFUSED = (
    RESERVATION_LOST
    | _NO_PLACES
    | {Reason.SLOT_CONFLICT, Reason.OFFER_NOT_FOUND, Reason.SEAT_NOT_FOUND}
    | {Reason.EVENT_NOT_FOUND}
)
_SOLD = (Status.CONFIRMED, Status.COMPLETED)


async def confirm(deps: Dependencies, step: Step) -> None:
    """The payment was captured: commits the reservation, or refunds the payment."""
    async with deps.database.reading() as connection:
        booking = await bookings.get(connection, booking_id=step.booking_id)
        event = await events.get(connection, event_id=booking.event_id)
    if booking.status in _SOLD:
        await _finish(deps, step)
    elif booking.status is Status.CANCELLED:
        await _refund_payment(deps, step, "paid after the cancellation; payment refunded")
    elif event.staff_status is events.StaffStatus.CANCELLED:
        await _cancel_for_event(deps, step)
    else:
        await _confirm(deps, step, booking)


async def release(deps: Dependencies, step: Step) -> None:
    """Ends a reservation, unless it has become that of a confirmed booking."""
    async with deps.database.reading() as connection:
        booking = await bookings.get(connection, booking_id=step.booking_id)
    is_current = booking.reservation_id == step.subject_id
    event_id = step.event_id or booking.event_id
    if is_current and booking.status in _SOLD:
        # A late payment has committed it meanwhile.
        await _finish(deps, step)
        return
    try:
        await deps.stock.release(event_id=event_id, reservation_id=step.subject_id)
    except DomainError as refusal:
        if refusal.reason is not Reason.RESERVATION_STATE_INVALID:
            raise
        may_be_confirmed = booking.payment is not None and booking.status is not Status.CANCELLED
        if is_current and may_be_confirmed:
            # Committed by a late payment whose booking is not yet confirmed: try again later.
            raise
        # Also the places of a free booking: the process died before it was confirmed.
        await deps.stock.return_sold(event_id=event_id, reservation_id=step.subject_id)
    await _finish(deps, step)


async def void(deps: Dependencies, step: Step) -> None:
    """Voids a payment. One that was captured before is handled as its event would be."""
    event: PaymentEvent | None = None
    try:
        payment = await deps.payments.void(payment_id=step.subject_id)
        if payment.status == PaymentStatus.CAPTURED:
            event = await deps.payments.outcome(
                booking_id=step.booking_id, payment_id=step.subject_id
            )
    except DomainError as refusal:
        # The process died before it created the payment in payment_svc.
        if refusal.reason is not Reason.PAYMENT_NOT_FOUND:
            raise
    now = deps.clock()
    async with deps.database.transaction() as connection:
        locked = await bookings.get(connection, booking_id=step.booking_id, lock=True)
        own = locked.payment
        if event is not None:
            await payment_events.apply(connection, event=event, now=now)
        elif (
            own is not None
            and own.payment_id == step.subject_id
            and own.status is PaymentStatus.CREATED
        ):
            await state_machine.set_payment_status(
                connection, booking=locked, status=PaymentStatus.VOIDED, now=now
            )
        await saga_steps.done(connection, step)
    if event is not None:
        deps.on_steps_enqueued()


async def refund(deps: Dependencies, step: Step) -> None:
    """Starts a refund in payment_svc, whose event reports later that it is processed."""
    async with deps.database.reading() as connection:
        promised = await refunds.find(connection, refund_id=step.subject_id)
    try:
        await deps.payments.refund(
            refund_id=promised.refund_id,
            payment_id=promised.payment_id,
            amount=promised.amount,
            reason=promised.reason,
        )
    except DomainError as refusal:
        refundable = _refundable(refusal, promised.amount)
        if refundable is None:
            raise
        await _lower_refund(deps, step, refundable)
        return
    async with deps.database.transaction() as connection:
        locked = await bookings.get(connection, booking_id=step.booking_id, lock=True)
        await state_machine.note(
            connection, booking=locked, reason="refund started", now=deps.clock()
        )
        await saga_steps.done(connection, step)


async def exchange(deps: Dependencies, step: Step) -> None:
    """Finishes a change of a booking. A refusal by the ledger ends the step, too."""
    async with deps.database.reading() as connection:
        change = await modification_store.get(connection, change_id=step.subject_id)
    try:
        await exchange_places(deps, change)
    except DomainError as refusal:
        if refusal.reason not in _EXCHANGE_REFUSED:
            raise
    await _finish(deps, step)


HANDLERS: dict[StepKind, Callable[[Dependencies, Step], Awaitable[None]]] = {
    StepKind.CONFIRM: confirm,
    StepKind.RELEASE: release,
    StepKind.VOID: void,
    StepKind.REFUND: refund,
    StepKind.EXCHANGE: exchange,
}


async def exchange_places(deps: Dependencies, change: Change) -> None:
    """Exchanges the places of a change in the ledger and finishes it. Raises a refusal."""
    if change.state is not ChangeState.EXCHANGING:
        return
    refusal: DomainError | None = None
    try:
        await deps.stock.exchange(
            event_id=change.from_event_id,
            reservation_id=change.from_reservation_id,
            to_event_id=change.to_event_id,
            to_reservation_id=change.change_id,
            lines=pricing.lines(change.items),
            expire_time=max(change.expire_time, deps.clock() + _LEAST_EXPIRY),
        )
    except DomainError as error:
        if error.reason not in _EXCHANGE_REFUSED:
            raise
        refusal = await alternatives.for_move(
            deps, from_event_id=change.from_event_id, to_event_id=change.to_event_id, refusal=error
        )
    now = deps.clock()
    async with deps.database.transaction() as connection:
        booking = await bookings.get(connection, booking_id=change.booking_id, lock=True)
        current = await modification_store.get(connection, change_id=change.change_id)
        if current.state is not ChangeState.EXCHANGING:
            # Another call or step has finished it, with the same outcome.
            return
        if refusal is None:
            await modification_store.finish(connection, booking=booking, change=current, now=now)
        else:
            await modification_store.refuse(
                connection, booking=booking, change=current, reason=refusal.reason, now=now
            )
    if refusal is not None:
        raise refusal


async def _confirm(deps: Dependencies, step: Step, booking: Booking) -> None:
    try:
        sold, reason = await _sell(deps, booking)
    except DomainError as refusal:
        if refusal.reason not in _NO_PLACES:
            raise
        await _refund_payment(deps, step, "paid late, places no longer available; payment refunded")
        return
    now = deps.clock()
    async with deps.database.transaction() as connection:
        locked = await bookings.get(connection, booking_id=step.booking_id, lock=True)
        if locked.status is not Status.CANCELLED and locked.reservation_id == sold.reservation_id:
            if locked.status not in _SOLD:
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
        return booking, "payment captured"
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
        if locked.status in _SOLD:
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
        if locked.status in _SOLD or locked.status is Status.CANCELLED:
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


async def _lower_refund(deps: Dependencies, step: Step, refundable: Money) -> None:
    """Lowers a refund to what is refundable: staff have refunded a part of the payment."""
    now = deps.clock()
    async with deps.database.transaction() as connection:
        locked = await bookings.get(connection, booking_id=step.booking_id, lock=True)
        await refunds.lower(connection, refund_id=step.subject_id, amount=refundable, now=now)
        if refundable.amount_minor > 0:
            await saga_steps.postpone(connection, step, until=now, error="less was refundable")
            return
        await state_machine.note(connection, booking=locked, reason="already refunded", now=now)
        await saga_steps.done(connection, step)


async def _finish(deps: Dependencies, step: Step) -> None:
    async with deps.database.transaction() as connection:
        await saga_steps.done(connection, step)


def _refundable(refusal: DomainError, requested: Money) -> Money | None:
    """What is still refundable of a payment, if less than requested was the refusal's cause."""
    if refusal.reason is not Reason.PAYMENT_STATE_INVALID or "captured" not in refusal.metadata:
        return None
    # An older payment_svc does not name what is refundable.
    rest = int(
        refusal.metadata.get(
            "refundable",
            int(refusal.metadata["captured"]) - int(refusal.metadata["refunded"]),
        )
    )
    return Money(rest, requested.currency_code) if rest < requested.amount_minor else None
