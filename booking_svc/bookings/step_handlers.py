"""The steps that follow by themselves: selling what was paid, freeing, voiding, refunding.

Each is taken by steps.py, perhaps more than once and perhaps after the booking has
moved on: what still is to be done is decided under the booking's lock.
"""

from collections.abc import Callable
from datetime import timedelta

from booking_svc.bookings import (
    bookings,
    payment_events,
    refunds,
    saga_steps,
    state_machine,
)
from booking_svc.bookings.bookings import Booking, PaymentStatus, Status
from booking_svc.bookings.saga_steps import Step
from booking_svc.catalogue import events
from booking_svc.clients.ports import Line, PaymentEvent, Payments, Stock
from mesh.clock import Clock
from mesh.db.database import Database
from mesh.errors import DomainError, Reason
from mesh.ids import new_id
from mesh.money import Money

# A late payment's new claim is committed right away; this is for the case that we die in between.
_LATE_CLAIM = timedelta(seconds=60)

_CLAIM_LOST = frozenset(
    {Reason.HOLD_EXPIRED, Reason.RESERVATION_STATE_INVALID, Reason.RESERVATION_NOT_FOUND}
)
_CLAIM_REFUSED = frozenset(
    {Reason.SOLD_OUT, Reason.SEAT_UNAVAILABLE, Reason.PURCHASE_LIMIT_EXCEEDED}
)
_SOLD = (Status.CONFIRMED, Status.COMPLETED)


class StepHandlers:
    """`on_steps_enqueued` is called when a step has led to others."""

    def __init__(
        self,
        *,
        database: Database,
        stock: Stock,
        payments: Payments,
        clock: Clock,
        on_steps_enqueued: Callable[[], None],
    ) -> None:
        self._database = database
        self._stock = stock
        self._payments = payments
        self._clock = clock
        self._on_owed = on_steps_enqueued

    async def confirm(self, step: Step) -> None:
        """The payment was captured: sell the places, or give the money back."""
        async with self._database.reading() as connection:
            booking = await bookings.get(connection, booking_id=step.booking_id)
            event = await events.get(connection, event_id=booking.event_id)
        if booking.status in _SOLD:
            await self._finish(step)
        elif booking.status is Status.CANCELLED:
            await self._refund_payment(step, "paid after it was cancelled")
        elif event.staff_status is events.StaffStatus.CANCELLED:
            await self._refund_payment(step, "paid after the event was cancelled")
        else:
            await self._confirm(step, booking)

    async def release(self, step: Step) -> None:
        """The claim is needed no longer, as far as the booking does not own it."""
        booking = await self._get(step)
        is_own = booking.reservation_id == step.subject_id
        event_id = step.event_id or booking.event_id
        if is_own and booking.status in _SOLD:
            # A late payment was quicker and the places are sold: nothing to release.
            await self._finish(step)
            return
        try:
            await self._stock.release(event_id=event_id, reservation_id=step.subject_id)
        except DomainError as refusal:
            if refusal.reason is not Reason.RESERVATION_STATE_INVALID:
                raise
            if is_own and booking.status is not Status.CANCELLED:
                # Sold by a late payment that is about to confirm: later, it is clear.
                raise
            await self._stock.return_sold(event_id=event_id, reservation_id=step.subject_id)
        await self._finish(step)

    async def void(self, step: Step) -> None:
        """Nobody must pay this any more."""
        event: PaymentEvent | None = None
        try:
            answer = await self._payments.void(payment_id=step.subject_id)
            if answer.status == PaymentStatus.CAPTURED:
                # Paid before: its event brings the booking on, and if it never comes, this does.
                event = await self._payments.outcome(
                    booking_id=step.booking_id, payment_id=step.subject_id
                )
        except DomainError as refusal:
            # The process died before payment_svc heard of the payment.
            if refusal.reason is not Reason.PAYMENT_NOT_FOUND:
                raise
        async with self._database.transaction() as connection:
            locked = await bookings.get(connection, booking_id=step.booking_id, lock=True)
            payment = locked.payment
            if event is not None:
                await payment_events.apply(connection, event=event, now=self._clock())
            elif (
                payment is not None
                and payment.payment_id == step.subject_id
                and payment.status is PaymentStatus.CREATED
            ):
                await state_machine.set_payment_status(
                    connection,
                    booking=locked,
                    status=PaymentStatus.VOIDED,
                    now=self._clock(),
                )
            await saga_steps.done(connection, step)
        if event is not None:
            self._on_owed()

    async def refund(self, step: Step) -> None:
        """Has payment_svc carry out a refund; the event that it is processed comes later."""
        async with self._database.reading() as connection:
            refund = await refunds.find(connection, refund_id=step.subject_id)
        try:
            await self._payments.refund(
                refund_id=refund.refund_id,
                payment_id=refund.payment_id,
                amount=refund.amount,
                reason=refund.reason,
            )
        except DomainError as refusal:
            left = _left(refusal, refund.amount)
            if left is None:
                raise
            await self._lower(step, left)
            return
        now = self._clock()
        async with self._database.transaction() as connection:
            locked = await bookings.get(connection, booking_id=step.booking_id, lock=True)
            await state_machine.note(connection, booking=locked, reason="refund started", now=now)
            await saga_steps.done(connection, step)

    async def _confirm(self, step: Step, booking: Booking) -> None:
        try:
            sold, reason = await self._sell(booking)
        except DomainError as refusal:
            if refusal.reason not in _CLAIM_REFUSED:
                raise
            await self._refund_payment(step, "paid late, and the places were gone")
            return
        now = self._clock()
        async with self._database.transaction() as connection:
            locked = await bookings.get(connection, booking_id=step.booking_id, lock=True)
            if (
                locked.status is not Status.CANCELLED
                and locked.reservation_id == sold.reservation_id
            ):
                if locked.status not in _SOLD:
                    await state_machine.move(
                        connection, booking=locked, to=Status.CONFIRMED, reason=reason, now=now
                    )
                await saga_steps.done(connection, step)
                return
            # It was given up meanwhile, or another process has sold other places for it.
            await state_machine.free_places(connection, booking=sold, now=now)
            await saga_steps.postpone(connection, step, until=now, error="overtaken")
        self._on_owed()

    async def _sell(self, booking: Booking) -> tuple[Booking, str]:
        """Commits the booking's claim, or one made anew.

        Returns the booking with the claim that is sold, and the reason to note.
        """
        if await self._commit(booking):
            return booking, "payment captured"
        now = self._clock()
        async with self._database.transaction() as connection:
            locked = await bookings.get(connection, booking_id=booking.booking_id, lock=True)
            if locked.reservation_id == booking.reservation_id:
                # Known before it is made: whoever goes on after a crash finds it.
                locked = await state_machine.replace_reservation(
                    connection, booking=locked, reservation_id=new_id(), now=now
                )
        await self._stock.reserve(
            event_id=locked.event_id,
            reservation_id=locked.reservation_id,
            request_key=f"late-payment:{locked.reservation_id}",
            customer_id=locked.customer_id,
            lines=[Line(item.offer_id, item.quantity, item.seat_id) for item in locked.items],
            expire_time=now + _LATE_CLAIM,
        )
        await self._stock.commit(event_id=locked.event_id, reservation_id=locked.reservation_id)
        return locked, "paid late; the places were still to be had"

    async def _commit(self, booking: Booking) -> bool:
        try:
            await self._stock.commit(
                event_id=booking.event_id, reservation_id=booking.reservation_id
            )
        except DomainError as lost:
            if lost.reason not in _CLAIM_LOST:
                raise
            return False
        return True

    async def _refund_payment(self, step: Step, reason: str) -> None:
        """Owes the whole payment back; the booking ends if it has not ended."""
        now = self._clock()
        async with self._database.transaction() as connection:
            locked = await bookings.get(connection, booking_id=step.booking_id, lock=True)
            if locked.status in _SOLD:
                await saga_steps.done(connection, step)
                return
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
            else:
                await state_machine.note(connection, booking=locked, reason=reason, now=now)
            await state_machine.free_places(connection, booking=locked, now=now)
            await saga_steps.done(connection, step)
        self._on_owed()

    async def _lower(self, step: Step, left: Money) -> None:
        """Somebody else has given back some of the payment: only the rest is owed."""
        now = self._clock()
        async with self._database.transaction() as connection:
            locked = await bookings.get(connection, booking_id=step.booking_id, lock=True)
            await refunds.lower(connection, refund_id=step.subject_id, amount=left, now=now)
            if left.amount_minor > 0:
                await saga_steps.postpone(connection, step, until=now, error="less was left")
                return
            await state_machine.note(
                connection, booking=locked, reason="it had been refunded already", now=now
            )
            await saga_steps.done(connection, step)

    async def _get(self, step: Step) -> Booking:
        async with self._database.reading() as connection:
            return await bookings.get(connection, booking_id=step.booking_id)

    async def _finish(self, step: Step) -> None:
        async with self._database.transaction() as connection:
            await saga_steps.done(connection, step)


def _left(refusal: DomainError, wanted: Money) -> Money | None:
    """How much of a payment can still go back, if that is why less was refused."""
    if refusal.reason is not Reason.PAYMENT_STATE_INVALID or "captured" not in refusal.metadata:
        return None
    left = int(refusal.metadata["captured"]) - int(refusal.metadata["refunded"])
    return Money(left, wanted.currency_code) if left < wanted.amount_minor else None
