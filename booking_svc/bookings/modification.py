"""Changes of a booking by its customer or the staff: items, event, attendees, note.

No transaction is open during a call to another service. A change is stored before its places
are exchanged, so that after a crash in between a step exchanges them.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.bookings import (
    alternatives,
    bookings,
    cancellation,
    change_payment,
    changed_items,
    modification_store,
    payment_pages,
    pricing,
    refund_requests,
    step_handlers,
)
from booking_svc.bookings.bookings import Actor, Booking, By, ChangeState, Item, Status
from booking_svc.bookings.cancellation import StaffRefund
from booking_svc.bookings.dependencies import Dependencies
from booking_svc.bookings.modification_store import Change
from booking_svc.bookings.payment_pages import Checkout
from booking_svc.bookings.pricing import NOT_SHOWN, RequestedItem, ShownPrice
from booking_svc.catalogue import events, payability
from booking_svc.catalogue.cancellation_policy import Terms
from booking_svc.catalogue.events import Event
from booking_svc.clients.ports import Limits
from booking_svc.tables import idempotency_records
from mesh import outages
from mesh.db import idempotent
from mesh.db.idempotent import Key
from mesh.errors import DomainError, FieldViolation, Reason, invalid
from mesh.ids import new_id
from mesh.money import Money

_NO_TERMS = Checkout("", "", "")
_OUTAGES = outages.REASONS | {Reason.PAYMENT_GATEWAY_ERROR}

Encode = Callable[[Booking], bytes]
_Begin = Callable[[AsyncConnection, datetime], Awaitable[Change | None]]


@dataclass(frozen=True, slots=True)
class BookingPatch:
    """The new values. None and no items keep the present value."""

    items: Sequence[RequestedItem]
    attendees: Sequence[str] | None
    note: str | None
    staff_refund: StaffRefund | None = None


async def update(
    deps: Dependencies,
    *,
    key: Key | None,
    booking_id: UUID,
    owner: UUID | None,
    by: By,
    patch: BookingPatch,
    checkout: Checkout | None = None,
    encode: Encode,
    shown: ShownPrice = NOT_SHOWN,
    admission_token: str = "",
) -> bytes:
    """Changes items, attendees and note of a booking.

    A lower total of a confirmed booking is refunded by its cancellation policy. A higher one, by
    another offer of its seats, is paid first, as in `reschedule`; nothing is held for it: the
    booking has the seats.
    More places at an event with a waiting room take an `admission_token`, except from staff.
    Raises BOOKING_NOT_FOUND, CANCELLATION_CLOSED (not for staff), BOOKING_STATE_INVALID, and
    as `placement.place` does.
    """

    limits = None
    if patch.items:
        async with deps.database.reading() as connection:
            booking = await bookings.get(connection, booking_id=booking_id, owner=owner)
        limits = await payment_pages.limits(deps, booking.total.currency_code)

    async def begin(connection: AsyncConnection, now: datetime) -> Change | None:
        booking = await bookings.get(connection, booking_id=booking_id, owner=owner, lock=True)
        await _refuse_update(connection, booking, patch, by, now)
        if patch.attendees is not None or patch.note is not None:
            await modification_store.set_details(
                connection,
                booking_id=booking_id,
                attendees=patch.attendees,
                note=patch.note,
                now=now,
            )
        change = None
        if patch.items:
            change = await _change_items(connection, booking, patch, by, now)
            if change is not None and _has_more_places(change.items, booking.items):
                event = await events.get(connection, event_id=booking.event_id)
                _refuse_unadmitted(deps, event, booking, by, admission_token, now)
        total = booking.total if change is None else change.total
        if shown is not NOT_SHOWN:
            event = await events.get(connection, event_id=booking.event_id)
            shown.refuse_another(total, event)
        if change is not None:
            if booking.status is Status.HELD and limits is not None:
                payability.refuse_unpayable(total, limits, provider=None)
            if booking.status is Status.CONFIRMED:
                change = _with_payment(deps, booking, change, checkout, limits, now)
            await modification_store.begin(connection, change=change, now=now)
        return change

    return await _run_once(deps, key, encode, booking_id, begin, checkout)


async def reschedule(
    deps: Dependencies,
    *,
    key: Key | None,
    booking_id: UUID,
    owner: UUID | None,
    by: By,
    event_id: UUID,
    items: Sequence[RequestedItem],
    checkout: Checkout | None,
    encode: Encode,
    shown: ShownPrice = NOT_SHOWN,
    staff_refund: StaffRefund | None = None,
    admission_token: str = "",
) -> bytes:
    """Moves a confirmed booking to another event of the same production.

    Of a lower price, the difference is refunded by the cancellation policy. A higher price is paid first, by `checkout` or to the
    provider of the booking's payment, while the new places are held; until then the booking
    stays as it is.
    Raises BOOKING_NOT_FOUND, CANCELLATION_CLOSED (not for staff), BOOKING_STATE_INVALID,
    VALIDATION_FAILED, and as `placement.place` does.
    """
    event = await _destination(deps, booking_id, owner, by, event_id, items)
    limits = await payment_pages.limits(deps, event.currency_code)

    async def begin(connection: AsyncConnection, now: datetime) -> Change | None:
        booking = await bookings.get(connection, booking_id=booking_id, owner=owner, lock=True)
        terms = await cancellation.terms_of(connection, booking, now)
        await cancellation.refuse_if_too_late(connection, booking, terms, by=by, now=now)
        old_event = await events.get(connection, event_id=booking.event_id)
        _refuse_other_production(old_event, event)
        event.refuse_unless_on_sale(now)
        _refuse_unadmitted(deps, event, booking, by, admission_token, now)
        requested = items or changed_items.same_places(booking, old_event, event)
        priced = await pricing.price(connection, event, requested)
        total = pricing.total(priced, event.currency_code)
        shown.refuse_another(total, event)
        # The percentage granted now stays the limit: else moving the booking to a later event
        # and cancelling it there would evade the policy.
        percent = terms.percent if terms.is_open else 0
        returned = _less(total, booking.total)
        refund = await cancellation.refund_of(connection, booking, returned, terms, staff_refund)
        change = _change(booking, event_id, priced, total, by=by, percent=percent, refund=refund)
        change = _with_payment(deps, booking, change, checkout, limits, now)
        await modification_store.begin(connection, change=change, now=now)
        return change

    return await _run_once(deps, key, encode, booking_id, begin, checkout)


async def _destination(
    deps: Dependencies,
    booking_id: UUID,
    owner: UUID | None,
    by: By,
    event_id: UUID,
    items: Sequence[RequestedItem],
) -> Event:
    """The event to move to. Raises BOOKING_NOT_FOUND, EVENT_NOT_FOUND or SLOT_CONFLICT."""
    async with deps.database.reading() as connection:
        try:
            event = await events.get(connection, event_id=event_id)
            event.refuse_unless_visible(to_staff=by.actor is Actor.STAFF)
        except DomainError as refusal:
            booking = await bookings.get(connection, booking_id=booking_id, owner=owner)
            raise await alternatives.for_missing(
                connection,
                event=await events.get(connection, event_id=booking.event_id),
                refusal=refusal,
                quantity=sum(item.quantity for item in items or booking.items),
                now=deps.clock(),
            ) from None
    return event


async def _refuse_update(
    connection: AsyncConnection, booking: Booking, patch: BookingPatch, by: By, now: datetime
) -> None:
    """Raises BOOKING_STATE_INVALID, CANCELLATION_CLOSED or VALIDATION_FAILED.

    The names of attendees can be corrected until the event starts, also while paying.
    """
    has_names_only = not patch.items and patch.note is None
    allowed = (Status.HELD, Status.CONFIRMED) + ((Status.PENDING_PAYMENT,) * has_names_only)
    if booking.status not in allowed:
        raise _state_invalid(booking)
    places = sum(item.quantity for item in patch.items or booking.items)
    if patch.attendees is not None and len(patch.attendees) > places:
        raise invalid(
            FieldViolation("attendees", f"must have at most {places} names, one for each place")
        )
    if has_names_only:
        event = await events.get(connection, event_id=booking.event_id)
        if by.actor is not Actor.STAFF and event.start_time and now >= event.start_time:
            cancellation.refuse_if_closed(Terms(False, 0, event.start_time))
    elif booking.status is Status.CONFIRMED:
        terms = await cancellation.terms_of(connection, booking, now)
        await cancellation.refuse_if_too_late(connection, booking, terms, by=by, now=now)


async def _change_items(
    connection: AsyncConnection,
    booking: Booking,
    patch: BookingPatch,
    by: By,
    now: datetime,
) -> Change | None:
    """The change to other items of the same event; None if the items are the same."""
    if booking.status is Status.CONFIRMED:
        terms = await cancellation.terms_of(connection, booking, now)
        items = await changed_items.kept(connection, booking, patch.items, by, now)
        total = pricing.total(items, booking.total.currency_code)
        refund = await cancellation.refund_of(
            connection, booking, _less(total, booking.total), terms, patch.staff_refund
        )
        percent = booking.max_refund_percent
    else:
        if booking.total.amount_minor == 0:
            raise _state_invalid(booking)
        if booking.hold_expire_time <= now:
            raise DomainError(Reason.HOLD_EXPIRED, "the hold has expired")
        event = await events.get(connection, event_id=booking.event_id)
        event.refuse_unless_on_sale(now)
        named = changed_items.with_offers(booking, patch.items)
        items = await pricing.price(connection, event, named)
        total, percent = pricing.total(items, event.currency_code), 100
        refund = Money(0, event.currency_code)
    if items == booking.items:
        return None
    return _change(
        booking,
        booking.event_id,
        items,
        total,
        by=by,
        percent=percent,
        refund=refund,
    )


def _less(total: Money, before: Money) -> Money:
    """How much lower a total is than before; at least 0."""
    return Money(max(0, before.amount_minor - total.amount_minor), total.currency_code)


def _with_payment(
    deps: Dependencies,
    booking: Booking,
    change: Change,
    checkout: Checkout | None,
    limits: Limits | None,
    now: datetime,
) -> Change:
    """The change of a confirmed booking, which waits for the payment of a higher total.

    Raises VALIDATION_FAILED or PAYMENT_FAILED if the difference cannot be paid.
    """
    minor = change.total.amount_minor - booking.total.amount_minor
    if minor <= 0:
        return change
    difference = Money(minor, change.total.currency_code)
    provider = _provider(booking, checkout, difference, deps.default_provider)
    if limits is not None:
        payability.refuse_unpayable(difference, limits, provider=provider)
    return replace(
        change,
        state=ChangeState.PENDING_PAYMENT,
        difference=difference,
        payment_id=new_id(),
        provider=provider,
        expire_time=now + deps.payment_window,
    )


async def _run_once(
    deps: Dependencies,
    key: Key | None,
    encode: Encode,
    booking_id: UUID,
    begin: _Begin,
    checkout: Checkout | None = None,
) -> bytes:
    """Begins a change, or finds the one begun with the key, and continues it.

    A change that an outage ended holds nothing; the key then begins another one.
    """
    if key is None:
        change_id = await _begin_change(deps, None, booking_id, begin)
        return encode(await _continue(deps, change_id, booking_id, checkout))
    async with deps.writes.exclusive(key):
        record = await deps.writes.find(key)
        if record is not None and record.response is not None:
            return record.replay()
        if record is None or await _failed_for_now(deps, record.resource_id):
            change_id = await _begin_change(
                deps,
                key,
                booking_id,
                begin,
                failed_id=None if record is None else record.resource_id,
            )
        else:
            change_id = None if record.resource_id == booking_id else record.resource_id
        answer = encode(await _continue(deps, change_id, booking_id, checkout))
        async with deps.database.transaction() as connection:
            await idempotent.finish(connection, idempotency_records, key, response=answer)
        return answer


async def _failed_for_now(deps: Dependencies, change_id: UUID) -> bool:
    """Whether an outage ended a change: a retry with its key begins another one."""
    async with deps.database.reading() as connection:
        change = await modification_store.find(connection, change_id=change_id)
    return change is not None and change.refusal in _OUTAGES


async def _begin_change(
    deps: Dependencies,
    key: Key | None,
    booking_id: UUID,
    begin: _Begin,
    *,
    failed_id: UUID | None = None,
) -> UUID | None:
    """The id of the change, which replaces the failed one that the key named so far."""
    now = deps.clock()
    async with deps.database.transaction() as connection:
        change = await begin(connection, now)
        change_id = None if change is None else change.change_id
        # The record names the change, so that a retry with the key continues it.
        if key is not None and not await _name(
            connection, key, change_id or booking_id, failed_id, now
        ):
            raise DomainError(
                Reason.IDEMPOTENCY_IN_PROGRESS,
                "a call with this idempotency key is still running",
                retry_after_seconds=1,
            )
    return change_id


async def _name(
    connection: AsyncConnection, key: Key, resource_id: UUID, failed_id: UUID | None, now: datetime
) -> bool:
    """Writes the key's record. False when another call was first."""
    if failed_id is None:
        return await idempotent.claim(
            connection, idempotency_records, key, resource_id=resource_id, now=now
        )
    return await idempotent.reassign(
        connection, idempotency_records, key, before=failed_id, resource_id=resource_id
    )


async def _continue(
    deps: Dependencies, change_id: UUID | None, booking_id: UUID, checkout: Checkout | None
) -> Booking:
    """Exchanges the places of a change, or opens the payment that must come first."""
    if change_id is not None:
        async with deps.database.reading() as connection:
            change = await modification_store.get(connection, change_id=change_id)
        if change.refusal is not None:
            refusal = DomainError(
                change.refusal,
                "the change was refused: to try again, use another idempotency key",
            )
            raise await alternatives.for_move(
                deps,
                from_event_id=change.from_event_id,
                to_event_id=change.to_event_id,
                refusal=refusal,
            )
        if change.state is ChangeState.EXCHANGING:
            await step_handlers.exchange_places(deps, change)
            await refund_requests.send(deps, change.booking_id)
        elif change.state is ChangeState.PENDING_PAYMENT:
            await change_payment.open_first(
                deps, change, replace(checkout or _NO_TERMS, provider=change.provider or "")
            )
        deps.on_steps_enqueued()
    async with deps.database.reading() as connection:
        return await bookings.get(connection, booking_id=booking_id)


def _change(
    booking: Booking,
    to_event_id: UUID,
    items: tuple[Item, ...],
    total: Money,
    *,
    by: By,
    percent: int,
    refund: Money,
) -> Change:
    """A change without a payment."""
    return Change(
        change_id=new_id(),
        booking_id=booking.booking_id,
        state=ChangeState.EXCHANGING,
        from_event_id=booking.event_id,
        from_reservation_id=booking.reservation_id,
        to_event_id=to_event_id,
        items=items,
        total=total,
        refund=refund,
        max_refund_percent=percent,
        difference=Money(0, total.currency_code),
        payment_id=None,
        provider=None,
        expire_time=booking.hold_expire_time,
        by=by,
        refusal=None,
    )


def _refuse_unadmitted(
    deps: Dependencies, event: Event, booking: Booking, by: By, token: str, now: datetime
) -> None:
    """Raises ADMISSION_REQUIRED for a customer without an admission to the event's waiting room."""
    if event.has_waiting_room and by.actor is not Actor.STAFF:
        deps.admissions.refuse_unless_admitted(
            token, event_id=event.event_id, user_id=booking.customer_id, now=now
        )


def _has_more_places(items: Sequence[Item], before: Sequence[Item]) -> bool:
    """Whether there is a seat, or a place of an offer, that was not there before."""

    def places(of: Sequence[Item]) -> Counter[UUID]:
        counts: Counter[UUID] = Counter()
        for item in of:
            counts[item.seat_id or item.offer_id] += item.quantity
        return counts

    return bool(places(items) - places(before))


def _provider(booking: Booking, checkout: Checkout | None, difference: Money, default: str) -> str:
    """The provider for the difference. Raises VALIDATION_FAILED if none is known."""
    if checkout is not None and checkout.provider:
        return checkout.provider
    if booking.payment is None and checkout is not None and default:
        return default
    if booking.payment is None:
        raise invalid(FieldViolation("checkout", f"is required: {difference} must be paid"))
    return booking.payment.provider


def _refuse_other_production(old: Event, new: Event) -> None:
    if new.event_id == old.event_id:
        raise invalid(FieldViolation("event_id", "must be another event than the booking's"))
    if old.production_id is None or old.production_id != new.production_id:
        raise invalid(FieldViolation("event_id", "must be an event of the same production"))
    if old.currency_code != new.currency_code:
        raise invalid(
            FieldViolation("event_id", f"must be an event that is sold in {old.currency_code}")
        )


_NOT_CHANGEABLE = {
    Status.PENDING_PAYMENT: "items and note cannot be changed while the customer pays: cancel the"
    " booking at no cost, or wait for the payment",
    **cancellation.ENDED,
}


def _state_invalid(booking: Booking) -> DomainError:
    return DomainError(
        Reason.BOOKING_STATE_INVALID,
        _NOT_CHANGEABLE.get(
            booking.status, "a booking without a price cannot be changed: cancel it"
        ),
        status=booking.status,
    )
