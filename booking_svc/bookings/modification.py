"""What a customer or the staff changes of a booking: items, event, attendees, a note.

No transaction is open during a call to another service. A change is durable before its
places are exchanged, so that a crash in between leaves it to a step.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.bookings import (
    bookings,
    cancellation,
    modification_store,
    pricing,
    state_machine,
)
from booking_svc.bookings.bookings import Actor, Booking, By, ChangeState, Item, Status
from booking_svc.bookings.checkout import Checkout
from booking_svc.bookings.exchange import Exchanges
from booking_svc.bookings.modification_store import Change
from booking_svc.bookings.pricing import RequestedItem
from booking_svc.catalogue import events
from booking_svc.catalogue.events import Event
from booking_svc.clients.ports import Payments, Stock
from booking_svc.tables import idempotency_records
from mesh.clock import Clock
from mesh.db import idempotent
from mesh.db.database import Database
from mesh.db.idempotent import IdempotentWrites, Key
from mesh.errors import DomainError, FieldViolation, Reason, invalid
from mesh.ids import new_id
from mesh.money import Money

Encode = Callable[[Booking], bytes]
Begin = Callable[[AsyncConnection, datetime], Awaitable[Change | None]]

_AN_END = timedelta(minutes=1)


@dataclass(frozen=True, slots=True)
class BookingPatch:
    """What shall be changed; None or nothing leaves as it is."""

    items: Sequence[RequestedItem]
    attendees: Sequence[str]
    note: str | None


class Changing:
    """`on_steps_enqueued` is called when steps were written down, so that they are taken at once."""

    def __init__(
        self,
        *,
        database: Database,
        writes: IdempotentWrites,
        stock: Stock,
        payments: Payments,
        clock: Clock,
        payment_window: timedelta,
        on_steps_enqueued: Callable[[], None],
    ) -> None:
        self._database = database
        self._writes = writes
        self._stock = stock
        self._payments = payments
        self._clock = clock
        self._payment_window = payment_window
        self._on_owed = on_steps_enqueued
        self._exchanging = Exchanges(database=database, stock=stock, clock=clock)

    async def update(
        self,
        *,
        key: Key | None,
        booking_id: UUID,
        owner: UUID | None,
        by: By,
        wish: BookingPatch,
        encode: Encode,
    ) -> bytes:
        """Changes what is given. Fewer items of a confirmed booking are refunded by its policy.

        Raises BOOKING_NOT_FOUND, CANCELLATION_CLOSED (to all but the staff),
        BOOKING_STATE_INVALID, or as placing does.
        """

        async def begin(connection: AsyncConnection, now: datetime) -> Change | None:
            booking = await bookings.get(connection, booking_id=booking_id, owner=owner, lock=True)
            if booking.status not in (Status.HELD, Status.CONFIRMED):
                raise _state_invalid(booking)
            if booking.status is Status.CONFIRMED and by.actor is not Actor.STAFF:
                cancellation.refuse_if_closed(await cancellation.terms_of(connection, booking, now))
            if wish.attendees or wish.note is not None:
                await state_machine.describe(
                    connection,
                    booking=booking,
                    attendees=wish.attendees,
                    note=wish.note,
                    now=now,
                )
            if not wish.items:
                return None
            change = await self._smaller_or_other(connection, booking, wish.items, by, now)
            if change is not None:
                await modification_store.begin(connection, change=change, now=now)
            return change

        return await self._once(key, encode, booking_id, begin)

    async def reschedule(
        self,
        *,
        key: Key | None,
        booking_id: UUID,
        owner: UUID | None,
        by: By,
        event_id: UUID,
        wanted: Sequence[RequestedItem],
        checkout: Checkout | None,
        encode: Encode,
    ) -> bytes:
        """Moves a confirmed booking to another event of the same production.

        What it costs less goes back in full. What it costs more is paid first, by `checkout`
        or to the provider that was paid before, while the new places are held; until then the
        booking stays as it is.

        Raises BOOKING_NOT_FOUND, CANCELLATION_CLOSED (to all but the staff),
        BOOKING_STATE_INVALID, VALIDATION_FAILED, or as placing does.
        """
        async with self._database.reading() as connection:
            event = await events.get(connection, event_id=event_id)

        async def begin(connection: AsyncConnection, now: datetime) -> Change | None:
            booking = await bookings.get(connection, booking_id=booking_id, owner=owner, lock=True)
            granted = await cancellation.terms_of(connection, booking, now)
            if by.actor is not Actor.STAFF:
                cancellation.refuse_if_closed(granted)
            old = await events.get(connection, event_id=booking.event_id)
            _refuse_other_production(old, event)
            event.refuse_unless_on_sale(now)
            items = await pricing.price(
                connection, event, wanted or _same_places(booking, old, event)
            )
            total = pricing.total(items, event.currency_code)
            more = total.amount_minor - booking.total.amount_minor
            # A way around the policy otherwise: to a later event, and cancelled from there.
            percent = granted.percent if granted.is_open else 0
            change = _change(booking, event.event_id, items, total, by=by, percent=percent, now=now)
            if more > 0:
                provider = _provider(booking, checkout, Money(more, total.currency_code))
                change = _to_be_paid(change, more, provider, now + self._payment_window)
            await modification_store.begin(connection, change=change, now=now)
            return change

        return await self._once(key, encode, booking_id, begin, checkout)

    async def _smaller_or_other(
        self,
        connection: AsyncConnection,
        booking: Booking,
        wanted: Sequence[RequestedItem],
        by: By,
        now: datetime,
    ) -> Change | None:
        """The change that leads to other items in the same event; None when they are the same."""
        if booking.status is Status.CONFIRMED:
            granted = await cancellation.terms_of(connection, booking, now)
            items, given_up = cancellation.given_up_by(booking, wanted)
            refund = granted.refund_minor(given_up.amount_minor)
            total = pricing.total(items, booking.total.currency_code)
            percent = booking.max_refund_percent
        else:
            if booking.total.amount_minor == 0:
                raise _state_invalid(booking)
            if booking.hold_expire_time <= now:
                raise DomainError(Reason.HOLD_EXPIRED, "the hold has expired")
            event = await events.get(connection, event_id=booking.event_id)
            event.refuse_unless_on_sale(now)
            items = await pricing.price(connection, event, wanted)
            total, refund, percent = pricing.total(items, event.currency_code), 0, 100
        if items == booking.items:
            return None
        return _change(
            booking,
            booking.event_id,
            items,
            total,
            by=by,
            percent=percent,
            now=now,
            refund_minor=refund,
        )

    async def _once(
        self,
        key: Key | None,
        encode: Encode,
        booking_id: UUID,
        begin: Begin,
        checkout: Checkout | None = None,
    ) -> bytes:
        """Begins a change, or finds the one that the key has begun, and brings it on."""
        if key is None:
            change_id = await self._begin(None, booking_id, begin)
            return encode(await self._bring_on(change_id, booking_id, checkout))
        async with self._writes.exclusive(key):
            record = await self._writes.find(key)
            if record is not None and record.response is not None:
                return record.response
            if record is None:
                change_id = await self._begin(key, booking_id, begin)
            else:
                change_id = None if record.resource_id == booking_id else record.resource_id
            answer = encode(await self._bring_on(change_id, booking_id, checkout))
            async with self._database.transaction() as connection:
                await idempotent.finish(connection, idempotency_records, key, response=answer)
            return answer

    async def _begin(self, key: Key | None, booking_id: UUID, begin: Begin) -> UUID | None:
        now = self._clock()
        async with self._database.transaction() as connection:
            change = await begin(connection, now)
            change_id = None if change is None else change.change_id
            # The record with the effect; an exchange that follows is found by it.
            if key is not None and not await idempotent.claim(
                connection,
                idempotency_records,
                key,
                resource_id=change_id or booking_id,
                now=now,
            ):
                raise DomainError(
                    Reason.IDEMPOTENCY_IN_PROGRESS,
                    "a call with this idempotency key is still running",
                    retry_after_seconds=1,
                )
        return change_id

    async def _bring_on(
        self, change_id: UUID | None, booking_id: UUID, checkout: Checkout | None
    ) -> Booking:
        """Exchanges the places, or opens the payment that must come first."""
        if change_id is not None:
            async with self._database.reading() as connection:
                change = await modification_store.get(connection, change_id=change_id)
            if change.refusal is not None:
                raise DomainError(change.refusal, "the change was refused")
            if change.state is ChangeState.EXCHANGING:
                await self._exchanging.exchange(change)
            elif change.state is ChangeState.PENDING_PAYMENT:
                await self._open_payment(change, checkout)
            self._on_owed()
        async with self._database.reading() as connection:
            return await bookings.get(connection, booking_id=booking_id)

    async def _open_payment(self, change: Change, checkout: Checkout | None) -> None:
        """Holds the new places and opens the payment of the difference; all of it twice is once."""
        async with self._database.reading() as connection:
            booking = await bookings.get(connection, booking_id=change.booking_id)
            event = await events.get(connection, event_id=change.to_event_id)
        if change.payment_id is None or change.provider is None:
            raise ValueError(f"change {change.change_id} has nothing to be paid")
        try:
            await self._stock.reserve(
                event_id=change.to_event_id,
                reservation_id=change.change_id,
                request_key=f"change:{change.change_id}",
                customer_id=booking.customer_id,
                lines=pricing.lines(change.items),
                expire_time=change.expire_time,
            )
            opened = await self._payments.create(
                payment_id=change.payment_id,
                booking_id=change.booking_id,
                event_id=change.to_event_id,
                customer_id=booking.customer_id,
                provider=change.provider,
                amount=change.difference,
                description=f"Difference: {pricing.describe(change.items, event)}"[:500],
                success_url="" if checkout is None else checkout.success_url,
                cancel_url="" if checkout is None else checkout.cancel_url,
            )
        except DomainError:
            await self._give_up(change)
            raise
        async with self._database.transaction() as connection:
            await modification_store.set_payment_url(
                connection, change_id=change.change_id, url=opened.payment_url, now=self._clock()
            )

    async def _give_up(self, change: Change) -> None:
        async with self._database.transaction() as connection:
            booking = await bookings.get(connection, booking_id=change.booking_id, lock=True)
            current = await modification_store.get(connection, change_id=change.change_id)
            if current.state is ChangeState.PENDING_PAYMENT:
                await modification_store.give_up(
                    connection,
                    booking=booking,
                    change=current,
                    to=ChangeState.CANCELLED,
                    now=self._clock(),
                )
        self._on_owed()


def _change(
    booking: Booking,
    to_event_id: UUID,
    items: tuple[Item, ...],
    total: Money,
    *,
    by: By,
    percent: int,
    now: datetime,
    refund_minor: int | None = None,
) -> Change:
    """A change with nothing to be paid; without `refund_minor`, what it costs less goes back."""
    less = max(0, booking.total.amount_minor - total.amount_minor)
    currency = total.currency_code
    return Change(
        change_id=new_id(),
        booking_id=booking.booking_id,
        state=ChangeState.EXCHANGING,
        from_event_id=booking.event_id,
        from_reservation_id=booking.reservation_id,
        to_event_id=to_event_id,
        items=items,
        total=total,
        refund=Money(less if refund_minor is None else refund_minor, currency),
        max_refund_percent=percent,
        difference=Money(0, currency),
        payment_id=None,
        provider=None,
        # Of a hold; what is sold does not expire, but the ledger wants to be told an end.
        expire_time=max(booking.hold_expire_time, now + _AN_END),
        by=by,
        refusal=None,
    )


def _provider(booking: Booking, checkout: Checkout | None, difference: Money) -> str:
    """Where the difference is paid. Raises VALIDATION_FAILED when nobody was paid before."""
    if checkout is not None:
        return checkout.provider
    if booking.payment is None:
        raise invalid(FieldViolation("checkout", f"is required: {difference} more is to be paid"))
    return booking.payment.provider


def _to_be_paid(change: Change, more: int, provider: str, expire_time: datetime) -> Change:
    return replace(
        change,
        state=ChangeState.PENDING_PAYMENT,
        difference=Money(more, change.total.currency_code),
        payment_id=new_id(),
        provider=provider,
        expire_time=expire_time,
    )


def _refuse_other_production(old: Event, new: Event) -> None:
    if new.event_id == old.event_id:
        raise invalid(FieldViolation("event_id", "is the event that the booking is for"))
    if old.production_id is None or old.production_id != new.production_id:
        raise invalid(FieldViolation("event_id", "is of another production"))
    if old.currency_code != new.currency_code:
        raise invalid(FieldViolation("event_id", "is sold in another currency"))


def _same_places(booking: Booking, old: Event, new: Event) -> list[RequestedItem]:
    """The same seats, or as many places of the offers with the same names."""
    names = {offer.offer_id: offer.name for offer in old.offers}
    offers = {offer.name: offer.offer_id for offer in new.offers}
    wanted = []
    for item in booking.items:
        offer_id = offers.get(names.get(item.offer_id, ""))
        if item.seat_id is None and offer_id is None:
            raise invalid(
                FieldViolation("items", "are required: the event has no offer of the same name")
            )
        seat_id = item.seat_id
        wanted.append(RequestedItem(None if seat_id else offer_id, item.quantity, seat_id))
    return wanted


def _state_invalid(booking: Booking) -> DomainError:
    return DomainError(
        Reason.BOOKING_STATE_INVALID,
        f"a booking that is {booking.status} cannot be changed like this",
        status=booking.status,
    )
