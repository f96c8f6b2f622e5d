"""Placing: holds places in stock_svc, inserts the booking and starts its checkout.

No transaction is open during a call to another service. The process can die between any two
steps: a retry with the same key continues with the same reservation and booking.
"""

from collections.abc import Callable, Sequence
from datetime import datetime
from uuid import UUID

from booking_svc.bookings import alternatives, bookings, payment_pages, pricing, state_machine
from booking_svc.bookings.bookings import Actor, Booking, By, Item, Status
from booking_svc.bookings.checkout import Answer, confirm_or_open_payment, refuse_checkout
from booking_svc.bookings.dependencies import Dependencies
from booking_svc.bookings.payment_pages import Checkout
from booking_svc.bookings.pricing import NOT_SHOWN, RequestedItem, ShownPrice
from booking_svc.catalogue import events
from booking_svc.catalogue.events import Event
from mesh.db.idempotent import Key
from mesh.errors import DomainError, Reason
from mesh.ids import new_id


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
) -> bytes:
    """Places a booking, once per key. Returns the answer as `encode` makes it.

    If an earlier call with the key died after it inserted the booking, this one continues there.
    A repetition after the hold ended unpaid raises HOLD_EXPIRED, or PAYMENT_FAILED.
    Raises EVENT_NOT_FOUND, SALE_NOT_ACTIVE, PRICE_CHANGED, HOLD_EXPIRED, IDEMPOTENCY_IN_PROGRESS,
    IDEMPOTENCY_KEY_REUSED, and as `pricing.priced`, stock_svc and `checkout.start` do.
    """
    answer = Answer(encode, claimed_key=key)
    async with deps.writes.exclusive(key):
        lookup = await deps.batch_writer.look_up(key, event_id, pricing.seats_of(items))
        event, record = lookup.event, lookup.record
        if record is not None and record.response is not None:
            booking = await _get(deps, record.resource_id)
            if booking.status in (*state_machine.UNPAID, Status.EXPIRED, Status.FAILED):
                refuse_checkout(booking, deps.clock())
            return record.replay()
        if event is None:
            raise events.not_found(event_id)
        if record is not None:
            booking = await _get(deps, record.resource_id)
        else:
            now = deps.clock()
            event.refuse_unless_visible(to_staff=is_staff)
            event.refuse_unless_on_sale(now)
            priced = pricing.priced(event, items, lookup.seat_types)
            total = pricing.total(priced, event.currency_code)
            shown.refuse_another(total, event)
            await payment_pages.refuse_unpayable(deps, total, checkout)
            booking = await _hold(deps, key, customer_id, event, priced, checkout, now)
            is_first = await deps.batch_writer.insert(
                key,
                booking,
                By(Actor.CUSTOMER, customer_id),
                encode(booking) if checkout is None else None,
                is_mail_wanted=is_mail_wanted,
            )
            if not is_first:
                # Another process was first with this key and inserted the same booking id.
                booking = await _get(deps, booking.booking_id)
        if checkout is None:
            # Stored with the booking, by this call or the one that was first.
            return encode(booking)
        return await _check_out(deps, booking, event, checkout, answer)


async def _get(deps: Dependencies, booking_id: UUID) -> Booking:
    async with deps.database.reading() as connection:
        return await bookings.get(connection, booking_id=booking_id)


async def _hold(
    deps: Dependencies,
    key: Key,
    customer_id: UUID,
    event: Event,
    items: tuple[Item, ...],
    checkout: Checkout | None,
    now: datetime,
) -> Booking:
    """Reserves the places in the ledger. Returns the booking to insert."""
    pays_now = checkout is not None and any(item.unit_price.amount_minor for item in items)
    try:
        reservation = await deps.stock.reserve(
            event_id=event.event_id,
            reservation_id=new_id(),
            # A retry after a crash gets the reservation that the first call made.
            request_key=key.reference,
            customer_id=customer_id,
            lines=pricing.lines(items),
            # With checkout in the same call, the payment window replaces the hold's time.
            expire_time=now + (deps.payment_window if pays_now else deps.hold_ttl),
        )
    except DomainError as refusal:
        if not alternatives.exist_for(event, refusal):
            raise
        async with deps.database.reading() as connection:
            raise await alternatives.named(
                connection, event=event, refusal=refusal, now=now
            ) from None
    if reservation.expire_time <= now:
        raise DomainError(
            Reason.HOLD_EXPIRED,
            "the hold expired before the booking was written; nothing was charged",
        )
    return state_machine.placed(
        booking_id=reservation.reservation_id,
        event=event,
        customer_id=customer_id,
        items=items,
        hold_expire_time=reservation.expire_time,
        provider=checkout.provider if checkout is not None and pays_now else None,
        now=now,
    )


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
