"""What a booking owes to the other services, taken until it is done.

A step is written in the transaction that makes it necessary and deleted in the one that
records its outcome, so a crash loses none. Every step may be taken twice: the
calls are idempotent and the outcome is tested under the booking's lock.
"""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc import bookings, lifecycle
from booking_svc.bookings import Booking, PaymentStatus, Refund, Status
from booking_svc.lifecycle import StepKind
from booking_svc.ports import Line, Payments, Stock
from booking_svc.tables import booking_steps
from mesh import call
from mesh.clock import Clock
from mesh.database import Database
from mesh.errors import DomainError, Reason
from mesh.ids import new_id

_log = logging.getLogger(__name__)

# Fewer than the pool has connections: calls of customers need some too.
_AT_ONCE = 8
# The lease is longer than a try, so that no step is taken twice at a time; a process that
# dies keeps its steps for as long.
_TRY_SECONDS = 8.0
_LEASE = timedelta(seconds=10)
_IDLE_SECONDS = 1.0
_FIRST_BACKOFF_SECONDS = 0.5
_LAST_BACKOFF_SECONDS = 60.0
# A late payment's new claim is committed right away; this is for the case that we die in between.
_LATE_CLAIM = timedelta(seconds=60)

_CLAIM_LOST = frozenset(
    {Reason.HOLD_EXPIRED, Reason.RESERVATION_STATE_INVALID, Reason.RESERVATION_NOT_FOUND}
)
_CLAIM_REFUSED = frozenset(
    {Reason.SOLD_OUT, Reason.SEAT_UNAVAILABLE, Reason.PURCHASE_LIMIT_EXCEEDED}
)


@dataclass(frozen=True, slots=True)
class Step:
    booking_id: UUID
    kind: StepKind
    subject_id: UUID
    attempts: int


class Steps:
    """Takes due steps, several bookings at a time."""

    def __init__(
        self, *, database: Database, stock: Stock, payments: Payments, clock: Clock
    ) -> None:
        self._database = database
        self._stock = stock
        self._payments = payments
        self._clock = clock
        self._wake = asyncio.Event()
        self._take = {
            StepKind.CONFIRM: self._confirm,
            StepKind.RELEASE: self._release,
            StepKind.VOID: self._void,
            StepKind.REFUND: self._refund,
        }

    def wake(self) -> None:
        """Steps were written down: take them now."""
        self._wake.set()

    async def run(self) -> None:
        """Takes steps as they fall due, some at a time. Runs until cancelled.

        A step that hangs, because its service is away, holds up no other booking's.
        """
        running: set[asyncio.Task[None]] = set()

        def finished(task: asyncio.Task[None]) -> None:
            running.discard(task)
            if len(running) <= _AT_ONCE // 2:
                self.wake()
            if not task.cancelled() and (error := task.exception()) is not None:
                # Not even its failure could be recorded: it is due again when its lease is over.
                _log.error("a step of a booking was lost sight of", exc_info=error)

        try:
            while True:
                self._wake.clear()
                if free := _AT_ONCE - len(running):
                    for step in await self.claim(limit=free):
                        task = asyncio.create_task(self.attempt(step))
                        running.add(task)
                        task.add_done_callback(finished)
                with suppress(TimeoutError):
                    async with asyncio.timeout(_IDLE_SECONDS):
                        await self._wake.wait()
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def claim(self, *, limit: int) -> Sequence[Step]:
        """Leases due steps to this process, so that two do not take them at the same time."""
        now = self._clock()
        key = (booking_steps.c.booking_id, booking_steps.c.kind, booking_steps.c.subject_id)
        due = (
            sa.select(*key)
            .where(booking_steps.c.due_time <= now)
            .order_by(booking_steps.c.due_time)
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
        async with self._database.transaction() as connection:
            claimed = await connection.execute(
                sa.update(booking_steps)
                .where(sa.tuple_(*key).in_(due))
                .values(due_time=now + _LEASE, attempts=booking_steps.c.attempts + 1)
                .returning(*key, booking_steps.c.attempts)
            )
            return [
                Step(row.booking_id, StepKind(row.kind), row.subject_id, row.attempts)
                for row in claimed
            ]

    async def attempt(self, step: Step) -> None:
        """Takes a claimed step; a failure makes it due again after a pause."""
        try:
            with call.deadline_in(_TRY_SECONDS):
                async with asyncio.timeout(_TRY_SECONDS):
                    await self._take[step.kind](step)
        except Exception as error:  # noqa: BLE001 - the top of a background loop; it is tried again
            delay = min(_FIRST_BACKOFF_SECONDS * 2 ** (step.attempts - 1), _LAST_BACKOFF_SECONDS)
            expected = isinstance(error, DomainError)
            _log.log(
                logging.WARNING if expected else logging.ERROR,
                "a step of a booking failed, is tried again",
                exc_info=None if expected else error,
                extra={
                    "booking_id": str(step.booking_id),
                    "step": step.kind,
                    "attempts": step.attempts,
                    "error": repr(error) if expected else type(error).__name__,
                },
            )
            async with self._database.transaction() as connection:
                await connection.execute(
                    sa.update(booking_steps)
                    .where(*_is(step))
                    .values(
                        due_time=self._clock() + timedelta(seconds=delay),
                        last_error=type(error).__name__,
                    )
                )

    async def _confirm(self, step: Step) -> None:
        """The payment was captured: sell the places, or give the money back."""
        booking = await self._get(step)
        if booking.status is Status.CANCELLED:
            await self._give_back(step, "paid after it was cancelled")
            return
        try:
            reservation_id, reason = await self._sell(booking)
        except DomainError as refusal:
            if refusal.reason not in _CLAIM_REFUSED:
                raise
            await self._give_back(step, "paid late, and the places were gone")
            return
        async with self._database.transaction() as connection:
            locked = await bookings.get(connection, booking_id=step.booking_id, lock=True)
            if locked.status is not Status.CONFIRMED:
                await lifecycle.move(
                    connection,
                    booking=locked,
                    to=Status.CONFIRMED,
                    reason=reason,
                    now=self._clock(),
                    reservation_id=reservation_id,
                )
            await _done(connection, step)

    async def _sell(self, booking: Booking) -> tuple[UUID, str]:
        """Commits the booking's claim, or one made anew. Returns its id and the reason to note."""
        event_id = booking.event_id
        try:
            await self._stock.commit(event_id=event_id, reservation_id=booking.reservation_id)
        except DomainError as lost:
            if lost.reason not in _CLAIM_LOST:
                raise
        else:
            return booking.reservation_id, "payment captured"
        anew = await self._stock.reserve(
            event_id=event_id,
            reservation_id=new_id(),
            request_key=f"late-payment:{booking.booking_id}",
            customer_id=booking.customer_id,
            lines=[Line(item.offer_id, item.quantity, item.seat_id) for item in booking.items],
            expire_time=self._clock() + _LATE_CLAIM,
        )
        await self._stock.commit(event_id=event_id, reservation_id=anew.reservation_id)
        return anew.reservation_id, "paid late; the places were still to be had"

    async def _give_back(self, step: Step, reason: str) -> None:
        """Owes the whole payment back; the booking ends if it has not ended."""
        now = self._clock()
        async with self._database.transaction() as connection:
            locked = await bookings.get(connection, booking_id=step.booking_id, lock=True)
            if locked.status is Status.PENDING_PAYMENT:
                await lifecycle.move(
                    connection, booking=locked, to=Status.EXPIRED, reason=reason, now=now
                )
            else:
                await lifecycle.note(connection, booking=locked, reason=reason, now=now)
            await lifecycle.owe(
                connection, step.booking_id, StepKind.REFUND, step.subject_id, now=now
            )
            await _done(connection, step)
        self.wake()

    async def _release(self, step: Step) -> None:
        booking = await self._get(step)
        try:
            await self._stock.release(event_id=booking.event_id, reservation_id=step.subject_id)
        except DomainError as refusal:
            # A late payment was quicker and the places are sold: nothing to release.
            if refusal.reason is not Reason.RESERVATION_STATE_INVALID:
                raise
        await self._finish(step)

    async def _void(self, step: Step) -> None:
        try:
            await self._payments.void(payment_id=step.subject_id)
        except DomainError as refusal:
            # The process died before payment_svc heard of the payment.
            if refusal.reason is not Reason.PAYMENT_NOT_FOUND:
                raise
        # A payment that was captured first stays so; its event brings the booking on.
        async with self._database.transaction() as connection:
            locked = await bookings.get(connection, booking_id=step.booking_id, lock=True)
            payment = locked.payment
            if (
                payment is not None
                and payment.payment_id == step.subject_id
                and payment.status is PaymentStatus.CREATED
            ):
                await lifecycle.set_payment_status(
                    connection,
                    booking=locked,
                    status=PaymentStatus.VOIDED,
                    now=self._clock(),
                )
            await _done(connection, step)

    async def _refund(self, step: Step) -> None:
        refund = await self._payments.refund(
            payment_id=step.subject_id,
            key=f"booking:{step.booking_id}:{step.subject_id}",
            reason="booking_not_possible",
        )
        now = self._clock()
        async with self._database.transaction() as connection:
            locked = await bookings.get(connection, booking_id=step.booking_id, lock=True)
            is_own = locked.payment is not None and locked.payment.payment_id == step.subject_id
            # The event that it was processed may have come first.
            if is_own and locked.refund is None:
                await lifecycle.set_refund(
                    connection,
                    booking=locked,
                    refund=Refund(refund.refund_id, refund.amount, "PENDING"),
                    now=now,
                )
            await lifecycle.note(connection, booking=locked, reason="refund started", now=now)
            await _done(connection, step)

    async def _get(self, step: Step) -> Booking:
        async with self._database.reading() as connection:
            return await bookings.get(connection, booking_id=step.booking_id)

    async def _finish(self, step: Step) -> None:
        async with self._database.transaction() as connection:
            await _done(connection, step)


def _is(step: Step) -> tuple[sa.ColumnElement[bool], ...]:
    return (
        booking_steps.c.booking_id == step.booking_id,
        booking_steps.c.kind == step.kind,
        booking_steps.c.subject_id == step.subject_id,
    )


async def _done(connection: AsyncConnection, step: Step) -> None:
    await connection.execute(sa.delete(booking_steps).where(*_is(step)))
