"""The booking saga: what a customer starts, across booking_svc, stock_svc and payment_svc.

No transaction is open during a call to another service. Between any two steps the
process may die: each step can be repeated, and what is owed stands in booking_steps.
Payments are started in checkout.py; the steps that follow by themselves (confirm,
release, refund) are in steps.py.
"""

from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.bookings import (
    alternatives,
    bookings,
    cancellation,
    pricing,
    state_machine,
)
from booking_svc.bookings.batch_writer import Placing
from booking_svc.bookings.bookings import Actor, Booking, By, Item
from booking_svc.bookings.checkout import Answer, Checkout, Checkouts
from booking_svc.bookings.pricing import RequestedItem
from booking_svc.catalogue import events
from booking_svc.catalogue.events import Event
from booking_svc.clients.ports import Payments, Stock
from mesh.clock import Clock
from mesh.db.database import Database
from mesh.db.idempotent import IdempotentWrites, Key, Store
from mesh.errors import DomainError, Reason
from mesh.ids import new_id


class Saga:
    """`on_steps_enqueued` is called when steps were written down, so that they are taken at once."""

    def __init__(
        self,
        *,
        database: Database,
        writes: IdempotentWrites,
        stock: Stock,
        payments: Payments,
        clock: Clock,
        hold_ttl: timedelta,
        payment_window: timedelta,
        on_steps_enqueued: Callable[[], None],
    ) -> None:
        self._database = database
        self._writes = writes
        self._stock = stock
        self._payments = payments
        self._clock = clock
        self._hold_ttl = hold_ttl
        self._payment_window = payment_window
        self._on_owed = on_steps_enqueued
        self._placing = Placing(database, clock)
        self._checking_out = Checkouts(
            database=database,
            stock=stock,
            payments=payments,
            clock=clock,
            payment_window=payment_window,
            placing=self._placing,
        )

    async def place(
        self,
        *,
        key: Key,
        customer_id: UUID,
        event_id: UUID,
        wanted: Sequence[RequestedItem],
        checkout: Checkout | None,
        encode: Callable[[Booking], bytes],
        is_mail_wanted: bool = False,
    ) -> bytes:
        """Holds places, once per key. Returns the answer as `encode` makes it.

        A call that finds the key's booking without an answer, because the first call
        died on its way, goes on where that one stopped.
        """
        answer = Answer(encode, claimed_key=key)
        async with self._writes.exclusive(key):
            found = await self._placing.find(key, event_id, pricing.seats_of(wanted))
            if found.record is not None and found.record.response is not None:
                return found.record.response
            event = found.event
            if event is None:
                raise events.not_found(event_id)
            if found.record is None:
                now = self._clock()
                event.refuse_unless_on_sale(now)
                items = pricing.priced(event, wanted, found.seat_types)
                booking = await self._hold(
                    key, answer, customer_id, event, items, checkout, now, is_mail_wanted
                )
            else:
                booking = await self._get(found.record.resource_id)
            if checkout is None:
                # Stored with the booking, here or by a call with this key that was quicker.
                return encode(booking)
            return await self._checkout_placed(booking, event, checkout, answer)

    async def checkout(
        self,
        *,
        key: Key | None,
        booking_id: UUID,
        owner: UUID | None,
        by: By,
        checkout: Checkout,
        encode: Callable[[Booking], bytes],
    ) -> bytes:
        """Starts the payment of a held booking, or returns the one that was started.

        Raises BOOKING_NOT_FOUND, HOLD_EXPIRED, ALREADY_CONFIRMED, PAYMENT_FAILED,
        BOOKING_STATE_INVALID, or what payment_svc refuses with.
        """

        async def write(store: Store) -> bytes:
            answer = Answer(encode, store_answer=store)
            return encode(await self._checkout(booking_id, owner, by, checkout, answer))

        return await self._writes.run_steps_once(key, write)

    async def cancel(
        self,
        *,
        key: Key | None,
        booking_id: UUID,
        owner: UUID | None,
        by: By,
        reason: str,
        encode: Callable[[Booking], bytes],
    ) -> bytes:
        """Cancels a booking, as cancelling.cancel does; its steps are taken at once."""
        now = self._clock()

        async def effect(connection: AsyncConnection) -> tuple[UUID, bytes]:
            cancelled = await cancellation.cancel(
                connection, booking_id=booking_id, owner=owner, by=by, reason=reason, now=now
            )
            return booking_id, encode(cancelled)

        answer = await self._writes.run_once(key, effect)
        self._on_owed()
        return answer

    async def _checkout(
        self,
        booking_id: UUID,
        owner: UUID | None,
        by: By,
        checkout: Checkout,
        answer: Answer,
    ) -> Booking:
        booking = await self._get(booking_id, owner)
        async with self._database.reading() as connection:
            event = await events.get(connection, event_id=booking.event_id)
        return await self._checking_out.start(booking, event, checkout, by, answer)

    async def _get(self, booking_id: UUID, owner: UUID | None = None) -> Booking:
        async with self._database.reading() as connection:
            return await bookings.get(connection, booking_id=booking_id, owner=owner)

    async def _hold(
        self,
        key: Key,
        answer: Answer,
        customer_id: UUID,
        event: Event,
        items: tuple[Item, ...],
        checkout: Checkout | None,
        now: datetime,
        is_mail_wanted: bool,
    ) -> Booking:
        """Claims the places, then writes booking and record; without checkout, the answer too."""
        is_paid = checkout is not None and any(item.unit_price.amount_minor for item in items)
        try:
            reservation = await self._stock.reserve(
                event_id=event.event_id,
                reservation_id=new_id(),
                # A retry after a crash finds the reservation that the first call made.
                request_key=key.reference,
                customer_id=customer_id,
                lines=pricing.lines(items),
                # Checkout in the same call: the payment window at once, and not the hold before it.
                expire_time=now + (self._payment_window if is_paid else self._hold_ttl),
            )
        except DomainError as refusal:
            if not alternatives.exist_for(event, refusal):
                raise
            async with self._database.reading() as connection:
                raise await alternatives.named(
                    connection, event=event, refusal=refusal, now=now
                ) from None
        if reservation.expire_time <= now:
            raise DomainError(Reason.HOLD_EXPIRED, "the places were held, but not any more")
        booking = state_machine.placed(
            booking_id=reservation.reservation_id,
            event=event,
            customer_id=customer_id,
            items=items,
            hold_expire_time=reservation.expire_time,
            provider=checkout.provider if is_paid and checkout is not None else None,
            now=now,
        )
        is_first = await self._placing.write(
            key,
            booking,
            By(Actor.CUSTOMER, customer_id),
            answer.encode(booking) if checkout is None else None,
            is_mail_wanted=is_mail_wanted,
        )
        # If another call was quicker with this key, its booking is the one.
        return booking if is_first else await self._get(booking.booking_id)

    async def _checkout_placed(
        self, booking: Booking, event: Event, checkout: Checkout, answer: Answer
    ) -> bytes:
        """Checkout within place: a retry may find it done, and a refusal names the booking."""
        is_open = booking.status in state_machine.UNPAID
        if is_open and (booking.payment is None or booking.payment.payment_url is None):
            try:
                by = By(Actor.CUSTOMER, booking.customer_id)
                booking = await self._checking_out.start(booking, event, checkout, by, answer)
            except DomainError as refusal:
                refusal.metadata["booking_id"] = str(booking.booking_id)
                raise
            return answer.encode(booking)
        async with self._database.transaction() as connection:
            return await answer.store(connection, booking)
