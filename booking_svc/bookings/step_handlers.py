"""What each saga step does: release, void, refund, exchange; confirmation.py confirms.

A step can run more than once, and after the booking has moved on: each handler decides under
the booking's lock what is still to do. When steps run is step_runner.py's.
"""

from collections.abc import Callable, Coroutine
from datetime import timedelta
from typing import Any

from booking_svc.bookings import (
    alternatives,
    bookings,
    confirmation,
    modification_store,
    payment_events,
    pricing,
    refunds,
    saga_steps,
    state_machine,
)
from booking_svc.bookings.bookings import (
    ChangeState,
    PaymentStatus,
    Status,
)
from booking_svc.bookings.dependencies import Dependencies
from booking_svc.bookings.modification_store import Change
from booking_svc.bookings.saga_steps import Step, StepKind
from booking_svc.clients.ports import PaymentEvent
from mesh.errors import DomainError, Reason
from mesh.money import Money

# The ledger refuses an expiry in the past, also for sold places, which do not expire.
_LEAST_EXPIRY = timedelta(minutes=1)

# Final refusals of an exchange; after any other error it is tried again.
_EXCHANGE_REFUSED = (
    confirmation.RESERVATION_LOST
    | confirmation.NO_PLACES
    | {Reason.SLOT_CONFLICT, Reason.OFFER_NOT_FOUND, Reason.SEAT_NOT_FOUND}
    | {Reason.EVENT_NOT_FOUND}
)


async def release(deps: Dependencies, step: Step) -> None:
    """Ends a reservation, unless it has become that of a confirmed booking."""
    async with deps.database.reading() as connection:
        booking = await bookings.get(connection, booking_id=step.booking_id)
    is_current = booking.reservation_id == step.subject_id
    event_id = step.event_id or booking.event_id
    if is_current and booking.status in state_machine.SOLD:
        # A late payment has committed it meanwhile.
        await saga_steps.finish(deps.database, step)
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
    await saga_steps.finish(deps.database, step)


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
    await saga_steps.finish(deps.database, step)


HANDLERS: dict[StepKind, Callable[[Dependencies, Step], Coroutine[Any, Any, None]]] = {
    StepKind.CONFIRM: confirmation.confirm,
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
