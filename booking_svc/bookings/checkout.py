"""Checkout: from a held booking to the URL where it is paid, or to CONFIRMED if it is free.

No transaction is open during a call to another service, and every step can be repeated. What
follows the payment belongs to payment_events.py and step_handlers.py.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.bookings import (
    bookings,
    change_payment,
    modification_store,
    payment_pages,
    payment_replacement,
    pricing,
    saga_steps,
    state_machine,
)
from booking_svc.bookings.bookings import Booking, By, Payment, PaymentStatus, Status
from booking_svc.bookings.dependencies import Dependencies
from booking_svc.bookings.payment_pages import Checkout, PageRequest, PaymentPage
from booking_svc.bookings.saga_steps import StepKind
from booking_svc.catalogue import events
from booking_svc.catalogue.events import Event, StaffStatus
from booking_svc.tables import idempotency_records
from mesh.clock import rfc3339
from mesh.db import idempotent
from mesh.db.idempotent import Key, Store
from mesh.errors import DomainError, Reason
from mesh.ids import new_id

_FREE = "nothing to pay"


@dataclass(frozen=True, slots=True)
class Answer:
    """Stores the answer of a call under its key, in the transaction of the effect.

    `claimed_key` is a key whose record was inserted with the booking, before its answer.
    """

    encode: Callable[[Booking], bytes]
    claimed_key: Key | None = None
    store_answer: Store | None = None

    async def store(self, connection: AsyncConnection, booking: Booking) -> bytes:
        response = self.encode(booking)
        if self.claimed_key is not None:
            await idempotent.finish(
                connection, idempotency_records, self.claimed_key, response=response
            )
        elif self.store_answer is not None:
            await self.store_answer(connection, booking.booking_id, response)
        return response


async def start(
    deps: Dependencies,
    *,
    key: Key | None,
    booking_id: UUID,
    owner: UUID | None,
    by: By,
    checkout: Checkout,
    encode: Callable[[Booking], bytes],
) -> bytes:
    """Opens the page where a booking is paid, or the price difference of its reschedule.

    A repetition returns the same page. Another provider or other addresses open a new page and
    close the first.
    Raises BOOKING_NOT_FOUND, HOLD_EXPIRED, ALREADY_CONFIRMED, PAYMENT_FAILED,
    BOOKING_STATE_INVALID, EVENT_STATE_INVALID, and as stock_svc and payment_svc do.
    """

    async def write(store: Store) -> bytes:
        async with deps.database.reading() as connection:
            booking = await bookings.get(connection, booking_id=booking_id, owner=owner)
            event = await events.get(connection, event_id=booking.event_id)
        answer = Answer(encode, store_answer=store)
        if booking.change is not None:
            booking = await change_payment.check_out(deps, booking, checkout)
            async with deps.database.transaction() as connection:
                return await answer.store(connection, booking)
        return encode(await confirm_or_open_payment(deps, booking, event, checkout, by, answer))

    return await deps.writes.run_steps_once(key, write)


async def confirm_or_open_payment(
    deps: Dependencies,
    booking: Booking,
    event: Event,
    checkout: Checkout,
    by: By,
    answer: Answer,
) -> Booking:
    """Confirms a free booking, or opens the payment of another; stores the answer.

    Raises as `start` does.
    """
    present = booking.payment
    checkout = payment_pages.with_provider(
        deps, checkout, None if present is None else present.provider
    )
    refuse_checkout(booking, deps.clock())
    if event.staff_status is StaffStatus.CANCELLED:
        raise DomainError(
            Reason.EVENT_STATE_INVALID, "the event is cancelled", status=event.staff_status
        )
    if booking.total.amount_minor == 0:
        return await _confirm_free(deps, booking, by, answer)
    await payment_pages.refuse_unpayable(deps, booking.total, checkout)
    payment = booking.payment
    if payment is None or not _is_payable_at(payment, checkout.provider):
        booking = await _begin_payment(deps, booking, checkout.provider, by)
    elif payment.status is PaymentStatus.CAPTURED or (
        payment.payment_url is not None
        and not checkout.has_addresses
        and checkout.is_embedded == (payment.client_secret is not None)
    ):
        async with deps.database.transaction() as connection:
            await answer.store(connection, booking)
        return booking
    page = await _open_page(deps, booking, event, checkout)
    if page is None:
        booking = await _begin_payment(deps, booking, checkout.provider, by)
        page = await _open_page(deps, booking, event, checkout)
    if page is None:
        raise modification_store.in_progress(booking)
    return await _store_page(deps, booking, page, answer)


def _is_payable_at(payment: Payment, provider: str) -> bool:
    """Whether the payment, if it is open or paid, is the one that is asked for."""
    return payment.status is PaymentStatus.CAPTURED or (
        payment.provider == provider and payment.status is not PaymentStatus.VOIDED
    )


async def _open_page(
    deps: Dependencies, booking: Booking, event: Event, checkout: Checkout
) -> PaymentPage | None:
    """The payment's page. None if the payment must be replaced.

    A final refusal by the provider ends the booking, which releases its places.
    """
    if booking.payment is None:
        raise ValueError(f"booking {booking.booking_id} has no payment")
    request = PageRequest(
        payment_id=booking.payment.payment_id,
        booking_id=booking.booking_id,
        event_id=booking.event_id,
        customer_id=booking.customer_id,
        amount=booking.total,
        description=pricing.describe(booking.items, event),
        expire_time=booking.hold_expire_time,
    )
    try:
        return await payment_pages.open_page(deps, request, checkout)
    except DomainError as refusal:
        if refusal.reason is Reason.PAYMENT_FAILED:
            await _end_refused(deps, request.payment_id, booking.booking_id, refusal)
        raise


async def _end_refused(
    deps: Dependencies, payment_id: UUID, booking_id: UUID, refusal: DomainError
) -> None:
    now = deps.clock()
    async with deps.database.transaction() as connection:
        booking = await bookings.get(connection, booking_id=booking_id, lock=True)
        payment = booking.payment
        if (
            booking.status is not Status.PENDING_PAYMENT
            or payment is None
            or payment.payment_id != payment_id
            or payment.status is not PaymentStatus.CREATED
        ):
            return
        booking = await state_machine.set_payment_status(
            connection, booking=booking, status=PaymentStatus.FAILED, now=now
        )
        reason = f"payment refused: {refusal.metadata.get('code', '')}"
        await state_machine.end_unpaid(
            connection, booking=booking, to=Status.FAILED, reason=reason, now=now
        )
    deps.on_steps_enqueued()


async def _store_page(
    deps: Dependencies, booking: Booking, page: PaymentPage, answer: Answer
) -> Booking:
    """Stores the page of a payment, unless the booking has another payment by now."""
    now, payment = deps.clock(), booking.payment
    if answer.claimed_key is not None:
        opened = state_machine.payment_opened(booking, page.url, now, page.client_secret)
        response = answer.encode(opened.after)
        if await deps.batch_writer.write(answer.claimed_key, opened, response):
            return opened.after
    async with deps.database.transaction() as connection:
        booking = await bookings.get(connection, booking_id=booking.booking_id, lock=True)
        if payment is not None and booking.payment is not None:
            if booking.payment.payment_id == payment.payment_id:
                opened = state_machine.payment_opened(booking, page.url, now, page.client_secret)
                booking = await state_machine.write(connection, opened, now=now)
            else:
                # Another call has replaced the payment, perhaps before it was opened.
                await saga_steps.enqueue(
                    connection, booking.booking_id, StepKind.VOID, payment.payment_id, now=now
                )
        await answer.store(connection, booking)
    return booking


async def _confirm_free(deps: Dependencies, booking: Booking, by: By, answer: Answer) -> Booking:
    await deps.stock.commit(event_id=booking.event_id, reservation_id=booking.reservation_id)
    now = deps.clock()
    if answer.claimed_key is not None:
        confirmed = state_machine.moved(booking, to=Status.CONFIRMED, reason=_FREE, by=by, now=now)
        response = answer.encode(confirmed.after)
        if await deps.batch_writer.write(answer.claimed_key, confirmed, response):
            return confirmed.after
    async with deps.database.transaction() as connection:
        booking = await bookings.get(connection, booking_id=booking.booking_id, lock=True)
        if booking.status is not Status.CONFIRMED:
            if booking.status not in state_machine.UNPAID:
                # Its places, which the ledger has just sold, are returned by the step that ended it.
                refuse_checkout(booking, now)
            booking = await state_machine.move(
                connection, booking=booking, to=Status.CONFIRMED, reason=_FREE, by=by, now=now
            )
        await answer.store(connection, booking)
    return booking


async def _begin_payment(deps: Dependencies, booking: Booking, provider: str, by: By) -> Booking:
    """Gives a booking a payment, not yet created in payment_svc, and the time to pay it, once.

    A payment that the booking has is replaced, unless another call has done so or it is paid.
    """
    now = deps.clock()
    hold_expire_time = booking.hold_expire_time
    if booking.status is Status.HELD:
        reservation = await deps.stock.extend(
            event_id=booking.event_id,
            reservation_id=booking.reservation_id,
            expire_time=now + deps.payment_window,
        )
        hold_expire_time = reservation.expire_time
    async with deps.database.transaction() as connection:
        locked = await bookings.get(connection, booking_id=booking.booking_id, lock=True)
        refuse_checkout(locked, now)
        if await modification_store.find_open(connection, booking_id=locked.booking_id) is not None:
            raise modification_store.in_progress(locked)
        payment = Payment(new_id(), provider, PaymentStatus.CREATED, None)
        if locked.payment is not None:
            read_id = booking.payment and booking.payment.payment_id
            is_paid = locked.payment.status is PaymentStatus.CAPTURED
            if locked.payment.payment_id != read_id or is_paid:
                return locked
            replaced = await payment_replacement.of_booking(
                connection, booking=locked, payment=payment, now=now
            )
        else:
            begun = state_machine.payment_begun(
                locked, payment=payment, hold_expire_time=hold_expire_time, by=by, now=now
            )
            return await state_machine.write(connection, begun, now=now)
    deps.on_steps_enqueued()
    return replaced


def refuse_checkout(booking: Booking, now: datetime) -> None:
    """Raises the reason why a booking cannot be paid now, if there is one."""
    if booking.status in (Status.CONFIRMED, Status.COMPLETED):
        raise DomainError(Reason.ALREADY_CONFIRMED, "the booking is already confirmed")
    is_unpaid = booking.status in state_machine.UNPAID
    is_captured = booking.payment is not None and booking.payment.status is PaymentStatus.CAPTURED
    has_lapsed = is_unpaid and not is_captured and booking.hold_expire_time <= now
    if has_lapsed or booking.status is Status.EXPIRED:
        raise DomainError(
            Reason.HOLD_EXPIRED,
            "the hold has expired",
            expired=rfc3339(booking.hold_expire_time),
        )
    if booking.status is Status.FAILED:
        raise DomainError(
            Reason.PAYMENT_FAILED,
            "the payment failed and the places were released: place a new booking",
            status=booking.status,
        )
    if not is_unpaid:
        raise DomainError(
            Reason.BOOKING_STATE_INVALID,
            f"a booking that is {booking.status} cannot be paid",
            status=booking.status,
        )
