"""The payment of a change's price difference: holds the new places and opens the page.

The booking stays as it is until the difference is paid (payment_events.py).
"""

from uuid import UUID

from booking_svc.bookings import (
    alternatives,
    bookings,
    modification_store,
    payment_pages,
    payment_replacement,
    pricing,
)
from booking_svc.bookings.bookings import Booking, ChangeState
from booking_svc.bookings.dependencies import Dependencies
from booking_svc.bookings.modification_store import Change
from booking_svc.bookings.payment_pages import Checkout, PageRequest, PaymentPage
from booking_svc.catalogue import events
from booking_svc.clients.ports import Voided
from mesh.clock import rfc3339
from mesh.errors import DomainError, Reason
from mesh.ids import new_id


async def open_first(deps: Dependencies, change: Change, checkout: Checkout) -> None:
    """Holds the new places and opens the page. Safe to repeat. A refusal cancels the change.

    Raises as stock_svc and payment_svc do.
    """
    try:
        page = await _open(deps, change, checkout)
    except DomainError as error:
        refusal = await alternatives.for_move(
            deps, from_event_id=change.from_event_id, to_event_id=change.to_event_id, refusal=error
        )
        await _cancel(deps, change, refusal.reason)
        raise refusal from error
    if page is not None:
        await _store(deps, change, page)


async def check_out(deps: Dependencies, booking: Booking, checkout: Checkout) -> Booking:
    """The booking with the page of its change. Another provider or addresses open a new page.

    Raises HOLD_EXPIRED, BOOKING_STATE_INVALID, PAYMENT_FAILED, PROVIDER_NOT_FOUND or
    PAYMENT_GATEWAY_ERROR.
    """
    if booking.change is None:
        raise ValueError(f"booking {booking.booking_id} has no change to pay")
    checkout = payment_pages.with_provider(deps, checkout, booking.change.provider)
    _refuse_late(deps, booking)
    await payment_pages.refuse_unpayable(deps, booking.change.difference, checkout)
    async with deps.database.reading() as connection:
        change = await modification_store.get(connection, change_id=booking.change.change_id)
    if change.provider != checkout.provider:
        change = await _replace(deps, change, checkout.provider)
    elif (
        not checkout.has_addresses
        and checkout.is_embedded == (booking.change.client_secret is not None)
        and not await _is_closed(deps, change)
    ):
        return booking
    page = await _reopen(deps, change, checkout)
    if page is None:
        change = await _replace(deps, change, checkout.provider)
        page = await _reopen(deps, change, checkout)
    if page is None:
        raise modification_store.in_progress(booking)
    await _store(deps, change, page)
    async with deps.database.reading() as connection:
        return await bookings.get(connection, booking_id=booking.booking_id)


async def _is_closed(deps: Dependencies, change: Change) -> bool:
    """Whether the page of the change was closed for good."""
    if change.payment_id is None:
        return False
    outcome = await deps.payments.outcome(
        booking_id=change.booking_id, payment_id=change.payment_id
    )
    return isinstance(outcome, Voided)


async def _open(deps: Dependencies, change: Change, checkout: Checkout) -> PaymentPage | None:
    """The page. None if the payment must be replaced."""
    async with deps.database.reading() as connection:
        booking = await bookings.get(connection, booking_id=change.booking_id)
        event = await events.get(connection, event_id=change.to_event_id)
    if change.to_event_id != change.from_event_id:
        # Otherwise the booking has the seats, and they get another offer.
        await deps.stock.reserve(
            event_id=change.to_event_id,
            reservation_id=change.change_id,
            request_key=f"change:{change.change_id}",
            customer_id=booking.customer_id,
            lines=pricing.lines(change.items),
            expire_time=change.expire_time,
        )
    request = PageRequest(
        payment_id=_payment_id(change),
        booking_id=change.booking_id,
        event_id=change.to_event_id,
        customer_id=booking.customer_id,
        amount=change.difference,
        description=f"Difference: {pricing.describe(change.items, event)}"[:500],
        expire_time=change.expire_time,
    )
    return await payment_pages.open_page(deps, request, checkout)


async def _reopen(deps: Dependencies, change: Change, checkout: Checkout) -> PaymentPage | None:
    """As `_open`; only a final refusal cancels the change."""
    try:
        return await _open(deps, change, checkout)
    except DomainError as refusal:
        if refusal.reason is Reason.PAYMENT_FAILED:
            await _cancel(deps, change, refusal.reason)
        raise


async def _replace(deps: Dependencies, change: Change, provider: str) -> Change:
    """Replaces the payment of a waiting change, unless another call has done so."""
    now = deps.clock()
    async with deps.database.transaction() as connection:
        booking = await bookings.get(connection, booking_id=change.booking_id, lock=True)
        _refuse_late(deps, booking)
        current = await modification_store.get(connection, change_id=change.change_id)
        if current.payment_id != change.payment_id:
            return current
        replaced = await payment_replacement.of_change(
            connection, change=current, payment_id=new_id(), provider=provider, now=now
        )
    deps.on_steps_enqueued()
    return replaced


async def _store(deps: Dependencies, change: Change, page: PaymentPage) -> None:
    async with deps.database.transaction() as connection:
        await modification_store.set_payment_url(
            connection,
            change_id=change.change_id,
            payment_id=_payment_id(change),
            url=page.url,
            client_secret=page.client_secret,
            now=deps.clock(),
        )


async def _cancel(deps: Dependencies, change: Change, refusal: Reason) -> None:
    async with deps.database.transaction() as connection:
        booking = await bookings.get(connection, booking_id=change.booking_id, lock=True)
        current = await modification_store.get(connection, change_id=change.change_id)
        if current.state is ChangeState.PENDING_PAYMENT:
            await modification_store.end_unpaid(
                connection,
                booking=booking,
                change=current,
                to=ChangeState.CANCELLED,
                refusal=refusal,
                now=deps.clock(),
            )
    deps.on_steps_enqueued()


def _refuse_late(deps: Dependencies, booking: Booking) -> None:
    """Refuses a change that no longer waits, or whose new places are no longer held."""
    if booking.change is None:
        raise modification_store.in_progress(booking)
    if booking.change.expire_time <= deps.clock():
        raise DomainError(
            Reason.HOLD_EXPIRED,
            "the hold has expired",
            expired=rfc3339(booking.change.expire_time),
        )


def _payment_id(change: Change) -> UUID:
    if change.payment_id is None:
        raise ValueError(f"change {change.change_id} has no payment")
    return change.payment_id
