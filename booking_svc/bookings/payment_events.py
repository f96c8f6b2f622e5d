"""The effects of payment_svc's events on bookings.

Each effect is in one transaction with the stream's cursor. Calls to other services are enqueued
as saga steps.
"""

import logging
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.bookings import (
    bookings,
    modification_store,
    outbox,
    payment_replacement,
    refunds,
    saga_steps,
    state_machine,
)
from booking_svc.bookings.bookings import (
    Booking,
    ChangeState,
    PaymentStatus,
    Refund,
    RefundStatus,
    Status,
)
from booking_svc.bookings.modification_store import Change
from booking_svc.bookings.payment_replacement import ReplacedPayment
from booking_svc.bookings.saga_steps import NewStep, StepKind
from booking_svc.clients.ports import (
    Captured,
    Disputed,
    DisputeStatus,
    Failed,
    PaymentEvent,
    Refunded,
    RefundUpdated,
    Voided,
)
from mesh.db.database import on_commit
from mesh.errors import DomainError
from mesh.observability import metrics, request_context

_DISPUTES = metrics.counter(
    "booking_disputes", "Disputes of bookings' payments that opened or ended.", "status"
)
# Reasons in the timeline, which customers read.
_DISPUTE_NOTES = {
    DisputeStatus.OPEN: "payment disputed by the bank",
    DisputeStatus.WON: "dispute won: the payment is kept",
    DisputeStatus.LOST: "dispute lost: the bank took the payment back",
}
for _status in _DISPUTE_NOTES:
    # A counter that appears with 1 has no increase, which the alert needs.
    _DISPUTES.labels(_status)
_REFUND_NOTES = {
    RefundStatus.PENDING: "refund started",
    RefundStatus.FAILED: "refund failed: it is tried again, or the staff settle it",
    RefundStatus.SETTLED_ELSEWHERE: "refunded outside of the payment provider",
    RefundStatus.CANCELLED: "refund not made: the money was returned in another way",
}

# A single event is applied by itself.
_LEAST_TOGETHER = 2

_log = logging.getLogger(__name__)


async def apply_all(
    connection: AsyncConnection, events: Sequence[PaymentEvent], now: datetime
) -> None:
    """Applies a batch of the stream, each event with the origin of the request that caused it."""
    applied = await _capture_together(connection, events, now)
    for event in events:
        if event.payment_id in applied:
            continue
        with request_context.resuming(
            f"apply {type(event).__name__}", event.origin, booking_id=str(event.booking_id)
        ):
            await apply(connection, event=event, now=now)


async def _capture_together(
    connection: AsyncConnection, events: Sequence[PaymentEvent], now: datetime
) -> set[UUID]:
    """Applies the captures that need no decision, in four round trips; the ids of their payments.

    These are the first captures of bookings that wait for just this payment, and have no other
    event in the batch: the order of a booking's events is kept.
    """
    per_booking = Counter(event.booking_id for event in events)
    alone = [
        event
        for event in events
        if isinstance(event, Captured) and per_booking[event.booking_id] == 1
    ]
    if len(alone) < _LEAST_TOGETHER:
        return set()
    locked = await bookings.get_all(connection, [event.booking_id for event in alone], lock=True)
    expected = [
        (booking, event)
        for event in alone
        if (booking := locked.get(event.booking_id)) is not None
        and booking.payment is not None
        and booking.payment.payment_id == event.payment_id
        and booking.payment.status is PaymentStatus.CREATED
        and booking.total == event.amount
    ]
    new = await refunds.all_captured(
        connection,
        [(booking, event.payment_id, event.amount) for booking, event in expected],
        now=now,
    )
    captured = [(booking, event) for booking, event in expected if event.payment_id in new]
    steps = [
        NewStep(event.booking_id, StepKind.CONFIRM, event.payment_id, event.origin)
        for _, event in captured
    ]
    await state_machine.write_all(
        connection,
        [
            state_machine.payment_ended(booking, PaymentStatus.CAPTURED, now)
            for booking, _ in captured
        ],
        now=now,
        also=[saga_steps.enqueueing(steps, now=now)],
    )
    return {event.payment_id for _, event in captured}


async def apply(connection: AsyncConnection, *, event: PaymentEvent, now: datetime) -> None:
    """Applies an event, once. One of an unknown booking is logged and has no effect."""
    try:
        booking = await bookings.get(connection, booking_id=event.booking_id, lock=True)
    except DomainError:
        _log.error("an event of a payment without a booking", extra={"event": repr(event)})
        return
    is_own = booking.payment is not None and booking.payment.payment_id == event.payment_id
    if isinstance(event, Captured):
        await _captured(connection, booking, event, is_own=is_own, now=now)
    elif isinstance(event, Refunded):
        await _refunded(connection, booking, event, now=now)
    elif isinstance(event, RefundUpdated):
        await _refund_updated(connection, booking, event, now=now)
    elif isinstance(event, Disputed):
        await _disputed(connection, booking, event, now=now)
    elif isinstance(event, Voided):
        await _voided(connection, booking, event, is_own=is_own, now=now)
    elif event.is_final:
        await _failed(connection, booking, event, is_own=is_own, now=now)
    else:
        await _declined(connection, booking, event, is_own=is_own, now=now)


async def _captured(
    connection: AsyncConnection, booking: Booking, event: Captured, *, is_own: bool, now: datetime
) -> None:
    is_new = await refunds.captured(
        connection, booking=booking, payment_id=event.payment_id, amount=event.amount, now=now
    )
    if not is_new:
        return
    if is_own and event.amount == booking.total:
        await state_machine.set_payment_status(
            connection, booking=booking, status=PaymentStatus.CAPTURED, now=now
        )
        await saga_steps.enqueue(
            connection, booking.booking_id, StepKind.CONFIRM, event.payment_id, now=now
        )
        return
    change = await modification_store.find_by_payment(connection, payment_id=event.payment_id)
    if change is not None and await _pays_change(connection, change, event, now=now):
        return
    replaced = await payment_replacement.find(connection, payment_id=event.payment_id)
    if replaced is not None and await _pays_although_replaced(
        connection, booking, event, replaced, now=now
    ):
        return
    # Another payment than the booking's, or another amount: refunded, never confirmed.
    reason, note = "payment_does_not_fit", "a payment did not match the booking; refunded"
    if replaced is not None:
        reason, note = "paid_twice", "paid a second time; refunded"
    else:
        _log.error("a payment does not match its booking", extra={"event": repr(event)})
    booking = await refunds.refund_payment(
        connection, booking=booking, payment_id=event.payment_id, reason=reason, now=now
    )
    await state_machine.note(connection, booking=booking, reason=note, now=now)
    if is_own and booking.status is Status.PENDING_PAYMENT:
        # Its payment is used up: it could never be paid.
        await _fail(connection, booking, "the payment did not match the booking", now=now)


async def _pays_change(
    connection: AsyncConnection, change: Change, event: Captured, *, now: datetime
) -> bool:
    """Starts the exchange of a change whose difference was captured, if it waits for that."""
    if change.state is not ChangeState.PENDING_PAYMENT or event.amount != change.difference:
        return False
    await modification_store.start_exchange(connection, change=change, now=now)
    return True


async def _pays_although_replaced(
    connection: AsyncConnection,
    booking: Booking,
    event: Captured,
    replaced: ReplacedPayment,
    *,
    now: datetime,
) -> bool:
    """A replaced payment was captured first: it pays, and the payment in its place is voided.

    False if the other payment was captured before: then this one is refunded.
    """
    if replaced.change_id is not None:
        change = await modification_store.get(connection, change_id=replaced.change_id)
        if change.state is not ChangeState.PENDING_PAYMENT or event.amount != change.difference:
            return False
        change = await payment_replacement.of_change(
            connection,
            change=change,
            payment_id=replaced.payment_id,
            provider=replaced.provider,
            now=now,
        )
        return await _pays_change(connection, change, event, now=now)
    is_paid = booking.payment is None or booking.payment.status in (
        PaymentStatus.CAPTURED,
        PaymentStatus.REFUNDED,
    )
    if is_paid or event.amount != booking.total:
        return False
    payment = payment_replacement.captured(replaced)
    await payment_replacement.of_booking(connection, booking=booking, payment=payment, now=now)
    await saga_steps.enqueue(
        connection, booking.booking_id, StepKind.CONFIRM, event.payment_id, now=now
    )
    return True


async def _declined(
    connection: AsyncConnection, booking: Booking, event: Failed, *, is_own: bool, now: datetime
) -> None:
    """Notes a declined attempt. The customer can pay again until the hold ends."""
    is_waiting = booking.change is not None or (
        booking.status is Status.PENDING_PAYMENT
        and booking.payment is not None
        and booking.payment.status is not PaymentStatus.CAPTURED
    )
    if not is_waiting:
        return
    await state_machine.note_decline(
        connection,
        booking=booking,
        attempt_id=event.attempt_id,
        failure_code=event.failure_code,
        now=now,
    )
    if is_own and booking.payment is not None and booking.payment.status is PaymentStatus.CREATED:
        await state_machine.set_payment_status(
            connection, booking=booking, status=PaymentStatus.FAILED, now=now
        )


async def _voided(
    connection: AsyncConnection, booking: Booking, event: Voided, *, is_own: bool, now: datetime
) -> None:
    """Notes that the page was closed. Another checkout opens a new one until the hold ends."""
    if is_own:
        if booking.status is not Status.PENDING_PAYMENT or booking.payment is None:
            return
        if booking.payment.status not in (PaymentStatus.CREATED, PaymentStatus.FAILED):
            return
        booking = await state_machine.set_payment_status(
            connection, booking=booking, status=PaymentStatus.VOIDED, now=now
        )
    elif booking.change is None or booking.change.payment_id != event.payment_id:
        return
    await state_machine.note(connection, booking=booking, reason="payment page closed", now=now)


async def _failed(
    connection: AsyncConnection, booking: Booking, event: Failed, *, is_own: bool, now: datetime
) -> None:
    """The payment can never be paid: ends the booking, or the change that waits for it."""
    if not is_own:
        change = await modification_store.find_by_payment(connection, payment_id=event.payment_id)
        if change is not None and change.state is ChangeState.PENDING_PAYMENT:
            await modification_store.end_unpaid(
                connection, booking=booking, change=change, to=ChangeState.CANCELLED, now=now
            )
    elif booking.payment is not None and booking.payment.status in (
        PaymentStatus.CREATED,
        PaymentStatus.FAILED,
    ):
        await _fail(connection, booking, f"payment failed: {event.failure_code}", now=now)


async def _fail(
    connection: AsyncConnection, booking: Booking, reason: str, *, now: datetime
) -> None:
    booking = await state_machine.set_payment_status(
        connection, booking=booking, status=PaymentStatus.FAILED, now=now
    )
    if booking.status is Status.PENDING_PAYMENT:
        await state_machine.end_unpaid(
            connection, booking=booking, to=Status.FAILED, reason=reason, now=now
        )


async def _disputed(
    connection: AsyncConnection, booking: Booking, event: Disputed, *, now: datetime
) -> None:
    """Adds the dispute to the timeline, and limits refunds by what the bank has taken.

    Staff decide whether the booking stays valid.
    """
    await refunds.set_disputed(connection, payment_id=event.payment_id, amount=event.taken)
    await state_machine.note(
        connection, booking=booking, reason=_DISPUTE_NOTES[event.status], now=now
    )
    on_commit(connection, _DISPUTES.labels(event.status).inc)


async def _refund_updated(
    connection: AsyncConnection, booking: Booking, event: RefundUpdated, *, now: datetime
) -> None:
    refund = Refund(
        event.refund_id,
        event.payment_id,
        event.amount,
        RefundStatus(event.status),
        event.reason,
    )
    if not await refunds.updated(connection, booking=booking, refund=refund, now=now):
        return
    payment = booking.payment
    if (
        payment is not None
        and payment.payment_id == event.payment_id
        and payment.status is PaymentStatus.REFUNDED
        and not await refunds.is_refunded(connection, payment_id=payment.payment_id)
    ):
        # A completed refund came back.
        booking = await state_machine.set_payment_status(
            connection, booking=booking, status=PaymentStatus.CAPTURED, now=now
        )
    await state_machine.note(
        connection, booking=booking, reason=_REFUND_NOTES[refund.status], now=now
    )


async def _refunded(
    connection: AsyncConnection, booking: Booking, event: Refunded, *, now: datetime
) -> None:
    refund = Refund(
        event.refund_id, event.payment_id, event.amount, RefundStatus.PROCESSED, "by_the_staff"
    )
    if not await refunds.processed(connection, booking=booking, refund=refund, now=now):
        return
    booking = await bookings.get(connection, booking_id=booking.booking_id)
    payment = booking.payment
    if payment is not None and await refunds.is_refunded(connection, payment_id=payment.payment_id):
        booking = await state_machine.set_payment_status(
            connection, booking=booking, status=PaymentStatus.REFUNDED, now=now
        )
    await state_machine.note(connection, booking=booking, reason="refunded", now=now)
    await outbox.append(
        connection,
        booking=booking,
        change=outbox.Refunded(event.refund_id, event.amount),
        now=now,
    )
