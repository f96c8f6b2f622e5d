"""Placing: holds places in stock_svc, inserts the booking and starts its checkout.

The first try prices the booking by an event from memory and reads nothing. Only if it places
nothing, the key and the event are read, and the call is decided by what the database has.

No transaction is open during a call to another service. The process can die between any two
steps: a retry with the same key continues with the same reservation and booking.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from booking_svc.bookings import alternatives, bookings, payment_pages, pricing, state_machine
from booking_svc.bookings.admission import LOOKED_UP_CAUSES
from booking_svc.bookings.batch_writer import Insertion, Lookup
from booking_svc.bookings.bookings import Actor, Booking, By, Item, Status
from booking_svc.bookings.checkout import Answer, confirm_or_open_payment, refuse_checkout
from booking_svc.bookings.dependencies import Dependencies
from booking_svc.bookings.payment_pages import Checkout
from booking_svc.bookings.pricing import NOT_SHOWN, RequestedItem, ShownPrice
from booking_svc.catalogue import events
from booking_svc.catalogue.events import Event
from booking_svc.catalogue.venues import SeatTerms
from booking_svc.clients.ports import Reservation
from mesh.db.idempotent import Key, Record
from mesh.errors import DomainError, Reason
from mesh.ids import new_id


@dataclass(frozen=True, slots=True)
class _Call:
    key: Key
    customer_id: UUID
    event_id: UUID
    items: Sequence[RequestedItem]
    checkout: Checkout | None
    encode: Callable[[Booking], bytes]
    is_mail_wanted: bool
    shown: ShownPrice
    is_staff: bool
    admission_token: str
    needs_admission: bool


@dataclass(frozen=True, slots=True)
class _Unplaced:
    """A first try that placed nothing: the database must be read before the next.

    `refusal` is stock_svc's; `reservation` is what it reserved if the booking was not inserted.
    """

    event: Event
    refusal: DomainError | None = None
    reservation: Reservation | None = None


async def place(
    deps: Dependencies,
    *,
    key: Key,
    customer_id: UUID,
    event_id: UUID,
    items: Sequence[RequestedItem],
    checkout: Checkout | None,
    encode: Callable[[Booking], bytes],
    is_mail_wanted: bool = False,
    shown: ShownPrice = NOT_SHOWN,
    is_staff: bool = False,
    admission_token: str = "",
    needs_admission: bool = True,
) -> bytes:
    """Places a booking, once per key. Returns the answer as `encode` makes it.

    An event with a waiting room takes an `admission_token`, except from staff, and from a caller
    that decides itself who is next (`needs_admission` is False).

    If an earlier call with the key died after it inserted the booking, this one continues there.
    A repetition after the hold ended unpaid raises HOLD_EXPIRED, or PAYMENT_FAILED.
    Raises EVENT_NOT_FOUND, SALE_NOT_ACTIVE, ADMISSION_REQUIRED, PRICE_CHANGED, HOLD_EXPIRED,
    IDEMPOTENCY_IN_PROGRESS, IDEMPOTENCY_KEY_REUSED, and as `pricing.priced`, stock_svc and `checkout.start` do.
    """
    if checkout is not None:
        checkout = payment_pages.with_provider(deps, checkout, None)
    call = _Call(
        key=key,
        customer_id=customer_id,
        event_id=event_id,
        items=items,
        checkout=checkout,
        encode=encode,
        is_mail_wanted=is_mail_wanted,
        shown=shown,
        is_staff=is_staff,
        admission_token=admission_token,
        needs_admission=needs_admission and not is_staff,
    )
    began = deps.clock()
    refusal: DomainError | None = None
    try:
        return await _place(deps, call)
    except DomainError as error:
        refusal = error
        raise
    finally:
        deps.admissions.placed(
            event_id=event_id,
            user_id=customer_id,
            seconds=(deps.clock() - began).total_seconds(),
            refusal=refusal,
        )


async def _place(deps: Dependencies, call: _Call) -> bytes:
    async with deps.writes.exclusive(call.key):
        known = deps.batch_writer.remembered(call.event_id, pricing.seats_of(call.items))
        if known is None or known.event is None:
            return await _look_up_and_place(deps, call, None)
        tried = await _try(deps, call, known.event, known)
        if isinstance(tried, bytes):
            return tried
        if isinstance(tried, Booking):
            return await _answer(deps, call, tried, known.event)
        return await _look_up_and_place(deps, call, tried)


async def _try(
    deps: Dependencies, call: _Call, event: Event, known: Lookup
) -> bytes | Booking | _Unplaced:
    """Places a booking by an event from memory, without reading anything before.

    Returns the answer, or the booking if its checkout is to follow. Refuses nothing, because the
    event may have changed and the key may have an answer, except calls without an admission: so
    many of them may come that reading for each would slow down the others.
    """
    now = deps.clock()
    try:
        priced = await _price(deps, call, event, known.seat_terms, now)
    except DomainError as refusal:
        if (
            refusal.reason is Reason.ADMISSION_REQUIRED
            and known.is_fresh
            and refusal.metadata["cause"] not in LOOKED_UP_CAUSES
        ):
            raise
        return _Unplaced(event)
    try:
        reservation = await _reserve(deps, call, event, priced, now)
    except DomainError as refusal:
        return _Unplaced(event, refusal)
    booking = _booking(call, event, priced, reservation, now)
    response = _response(call, booking)
    insertion = await _insert(deps, call, booking, response, revision=event.revision)
    if insertion is Insertion.INSERTED:
        return response or booking
    return _Unplaced(event, reservation=reservation)


async def _look_up_and_place(deps: Dependencies, call: _Call, tried: _Unplaced | None) -> bytes:
    """Places a booking by what the database has: the key's record and the event."""
    reservation = None if tried is None else tried.reservation
    lookup = await _look_up(deps, call, reservation)
    if lookup.record is not None:
        return await _repeat(deps, call, lookup.record, lookup.event, reservation)
    event, now = lookup.event, deps.clock()
    try:
        if event is None:
            raise events.not_found(call.event_id)
        priced = await _price(deps, call, event, lookup.seat_terms, now)
    except DomainError:
        if reservation is not None:
            await _release(deps, call, reservation)
        raise
    try:
        if tried is not None and tried.refusal and tried.event.revision == event.revision:
            raise tried.refusal
        if reservation is None:
            reservation = await _reserve(deps, call, event, priced, now)
    except DomainError as refusal:
        if not alternatives.exist_for(event, refusal):
            raise
        async with deps.database.reading() as connection:
            raise await alternatives.named(
                connection, event=event, refusal=refusal, now=now
            ) from None
    booking = _booking(call, event, priced, reservation, now)
    response = _response(call, booking)
    insertion = await _insert(deps, call, booking, response, revision=None)
    if insertion is Insertion.INSERTED:
        return response or await _answer(deps, call, booking, event)
    lookup = await _look_up(deps, call, reservation)
    if lookup.record is None:
        raise RuntimeError("a key was claimed, but has no record")
    return await _repeat(deps, call, lookup.record, lookup.event, reservation)


async def _look_up(deps: Dependencies, call: _Call, reservation: Reservation | None) -> Lookup:
    seat_ids = pricing.seats_of(call.items)
    try:
        return await deps.batch_writer.look_up(call.key, call.event_id, seat_ids)
    except DomainError as refusal:
        if refusal.reason is Reason.IDEMPOTENCY_KEY_REUSED and reservation is not None:
            # The same places may be those of the key's booking, e.g. with another checkout.
            async with deps.database.reading() as connection:
                is_booked = await bookings.exists(connection, booking_id=reservation.reservation_id)
            if not is_booked:
                await _release(deps, call, reservation)
        raise


async def _repeat(
    deps: Dependencies,
    call: _Call,
    record: Record,
    event: Event | None,
    reservation: Reservation | None,
) -> bytes:
    """The answer of a key that has a record; continues where its first call ended.

    `reservation` is what this call reserved: another one than the first call's, if that has ended.
    """
    if reservation is not None and reservation.reservation_id != record.resource_id:
        await _release(deps, call, reservation)
    async with deps.database.reading() as connection:
        booking = await bookings.get(connection, booking_id=record.resource_id)
    if record.response is not None:
        if booking.status in (*state_machine.UNPAID, Status.EXPIRED, Status.FAILED):
            refuse_checkout(booking, deps.clock())
        return record.replay()
    if event is None:
        raise events.not_found(call.event_id)
    return await _answer(deps, call, booking, event)


async def _price(
    deps: Dependencies,
    call: _Call,
    event: Event,
    seat_terms: Mapping[UUID, SeatTerms],
    now: datetime,
) -> tuple[Item, ...]:
    """The items with their prices. Raises what is refused before anything is reserved."""
    event.refuse_unless_visible(to_staff=call.is_staff)
    event.refuse_unless_on_sale(now)
    if event.has_waiting_room and call.needs_admission:
        deps.admissions.refuse_unless_admitted(
            call.admission_token, event_id=call.event_id, user_id=call.customer_id, now=now
        )
    priced = pricing.priced(event, call.items, seat_terms)
    total = pricing.total(priced, event.currency_code)
    call.shown.refuse_another(total, event)
    await payment_pages.refuse_unpayable(deps, total, call.checkout)
    return priced


async def _reserve(
    deps: Dependencies, call: _Call, event: Event, items: tuple[Item, ...], now: datetime
) -> Reservation:
    """Reserves the places in the ledger."""
    reservation = await deps.stock.reserve(
        event_id=event.event_id,
        reservation_id=new_id(),
        # A retry after a crash gets the reservation that the first call made.
        request_key=call.key.reference,
        customer_id=call.customer_id,
        lines=pricing.lines(items),
        # With checkout in the same call, the payment window replaces the hold's time.
        expire_time=now + (deps.payment_window if _pays_now(call, items) else deps.hold_ttl),
    )
    if reservation.expire_time <= now:
        raise DomainError(
            Reason.HOLD_EXPIRED,
            "the hold expired before the booking was written; nothing was charged",
        )
    return reservation


async def _release(deps: Dependencies, call: _Call, reservation: Reservation) -> None:
    """Releases a reservation that gets no booking.

    The call's answer does not depend on it: otherwise the reservation expires. Nothing else has it:
    a reservation under the key of a PlaceBooking belongs to the key's booking or to none.
    """
    with suppress(DomainError):
        await deps.stock.release(event_id=call.event_id, reservation_id=reservation.reservation_id)


def _pays_now(call: _Call, items: tuple[Item, ...]) -> bool:
    return call.checkout is not None and any(item.unit_price.amount_minor for item in items)


def _booking(
    call: _Call, event: Event, items: tuple[Item, ...], reservation: Reservation, now: datetime
) -> Booking:
    """The booking to insert."""
    return state_machine.placed(
        booking_id=reservation.reservation_id,
        event=event,
        customer_id=call.customer_id,
        items=items,
        hold_expire_time=reservation.expire_time,
        provider=call.checkout.provider if call.checkout and _pays_now(call, items) else None,
        now=now,
    )


def _response(call: _Call, booking: Booking) -> bytes | None:
    """The final answer, stored with the booking; None if a checkout follows."""
    return call.encode(booking) if call.checkout is None else None


async def _insert(
    deps: Dependencies,
    call: _Call,
    booking: Booking,
    response: bytes | None,
    *,
    revision: int | None,
) -> Insertion:
    return await deps.batch_writer.insert(
        call.key,
        booking,
        By(Actor.CUSTOMER, call.customer_id),
        response,
        is_mail_wanted=call.is_mail_wanted,
        revision=revision,
    )


async def _answer(deps: Dependencies, call: _Call, booking: Booking, event: Event) -> bytes:
    """The answer about an inserted booking, after its checkout if the call includes one."""
    if call.checkout is None:
        # Stored with the booking, by this call or the one that was first.
        return call.encode(booking)
    answer = Answer(call.encode, claimed_key=call.key)
    return await _check_out(deps, booking, event, call.checkout, answer)


async def _check_out(
    deps: Dependencies, booking: Booking, event: Event, checkout: Checkout, answer: Answer
) -> bytes:
    """Checkout within `place`: a retry may find it done, and its errors name the booking."""
    is_open = booking.status in state_machine.UNPAID
    if is_open and (booking.payment is None or booking.payment.payment_url is None):
        by = By(Actor.CUSTOMER, booking.customer_id)
        try:
            booking = await confirm_or_open_payment(deps, booking, event, checkout, by, answer)
        except DomainError as refusal:
            refusal.metadata["booking_id"] = str(booking.booking_id)
            raise
        return answer.encode(booking)
    if booking.status in (Status.EXPIRED, Status.FAILED):
        refuse_checkout(booking, deps.clock())
    async with deps.database.transaction() as connection:
        return await answer.store(connection, booking)
