"""Placing: what calls that come at once look up and write, they look up and write together.

While one batch is under way, those that come meanwhile gather and are the next: a lone call
waits for nobody. In which order what is done, and the rules, are saga.py's.
"""

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.bookings import outbox
from booking_svc.bookings.bookings import Booking, By, Status, TimelineEntry
from booking_svc.bookings.outbox import Confirmed, Held, OutboxEntry
from booking_svc.bookings.state_machine import FIRST_CHECK
from booking_svc.catalogue import cancellation_policy, events, venues
from booking_svc.catalogue.events import Event
from mesh.clock import Clock
from mesh.coalescing import Coalescer
from mesh.db import idempotent
from mesh.db.batches import commit_each
from mesh.db.database import Database
from mesh.db.idempotent import Key, Record
from mesh.db.pipeline import FORCE_INDEX_SCANS, Statement, columns, run_together
from mesh.errors import DomainError
from mesh.observability import request_context

_MAX_BATCH = 256
_MAX_QUEUED = 4096
# Two at once: one waits for the database while the other computes.
_MAX_IN_FLIGHT = 2
# Of a whole PlaceBooking's 9.5 s.
_SECONDS = 4.5


@dataclass(frozen=True, slots=True)
class LookupRequest:
    key: Key
    event_id: UUID
    seat_ids: Collection[UUID]


@dataclass(frozen=True, slots=True)
class Found:
    """What a key stands for, and what is sold: the event, and the types of the seats of it
    that were asked for. Without an event, when there is none of that id."""

    record: Record | None
    event: Event | None
    seat_types: Mapping[UUID, str]


@dataclass(frozen=True, slots=True)
class NewBooking:
    """A booking to be written, with what its key is answered with if that is known already.

    Its timeline has been made by `by`; `origin` is the call's.
    """

    key: Key
    booking: Booking
    by: By
    response: bytes | None
    is_mail_wanted: bool
    origin: str


@dataclass(frozen=True, slots=True)
class CheckoutUrlSet:
    """A new booking that has got the page where it is paid, and the key's final answer."""

    key: Key
    booking: Booking
    response: bytes


@dataclass(frozen=True, slots=True)
class FreeConfirmation:
    """A new booking that is confirmed, as there is nothing to pay, and the key's final answer.

    The last entry of its timeline has been made by `by`; `origin` is the call's.
    """

    key: Key
    booking: Booking
    by: By
    response: bytes
    origin: str


class Placing:
    """Looks up and writes for all calls of this process."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock
        self._finding = _coalescer("find", self._find_each)
        self._writing = _coalescer("place", self._write_each)
        self._paging = _coalescer("page", self._page_each)
        self._confirming = _coalescer("confirm", self._confirm_each)

    async def find(self, key: Key, event_id: UUID, seat_ids: Collection[UUID]) -> Found:
        """Raises IDEMPOTENCY_KEY_REUSED. What is read was there after the call began."""
        found: Found = await self._finding.submit(LookupRequest(key, event_id, seat_ids))
        return found

    async def write(
        self, key: Key, booking: Booking, by: By, response: bytes | None, *, is_mail_wanted: bool
    ) -> bool:
        """Writes a new booking under its key. False when another call with the key was first."""
        new = NewBooking(key, booking, by, response, is_mail_wanted, request_context.origin())
        is_first: bool = await self._writing.submit(new)
        return is_first

    async def open_page(self, key: Key, booking: Booking, response: bytes) -> bool:
        """Writes where a new booking is paid, and what its key is answered with from now on.

        False when it has another payment by now: nothing is written then.
        """
        is_it: bool = await self._paging.submit(CheckoutUrlSet(key, booking, response))
        return is_it

    async def confirm(self, key: Key, booking: Booking, by: By, response: bytes) -> bool:
        """Writes that a new booking is confirmed, and what its key is answered with from now on.

        False when it is not held any more: nothing is written then.
        """
        free = FreeConfirmation(key, booking, by, response, request_context.origin())
        is_held: bool = await self._confirming.submit(free)
        return is_held

    async def _find_each(self, asked: Sequence[LookupRequest]) -> Sequence[Found | Exception]:
        keys = [one.key for one in asked]
        async with self._database.reading() as connection:
            _, result = await run_together(
                connection, [FORCE_INDEX_SCANS, idempotent.finding(keys)]
            )
            known = await events.get_all(connection, {one.event_id for one in asked})
            seats = await venues.seats_of_any(
                connection, {seat_id for one in asked for seat_id in one.seat_ids}
            )
        return [
            record
            if isinstance(record, DomainError)
            else _found(record, known.get(one.event_id), one.seat_ids, seats)
            for one, record in zip(asked, idempotent.records_of(keys, result), strict=True)
        ]

    async def _write_each(self, new: Sequence[NewBooking]) -> Sequence[bool | Exception]:
        return await commit_each(self._database, new, _write_all, clock=self._clock)

    async def _page_each(self, pages: Sequence[CheckoutUrlSet]) -> Sequence[bool | Exception]:
        return await commit_each(self._database, pages, _page_all, clock=self._clock)

    async def _confirm_each(self, free: Sequence[FreeConfirmation]) -> Sequence[bool | Exception]:
        return await commit_each(self._database, free, _confirm_all, clock=self._clock)


def _coalescer(name: str, send: Any) -> Coalescer[Any, Any]:
    return Coalescer(
        name,
        send,
        max_batch=_MAX_BATCH,
        max_in_flight=_MAX_IN_FLIGHT,
        max_queued=_MAX_QUEUED,
        seconds=_SECONDS,
    )


def _found(
    record: Record | None,
    event: Event | None,
    seat_ids: Collection[UUID],
    seats: Mapping[UUID, tuple[UUID, str]],
) -> Found:
    its_own = {
        seat_id: seats[seat_id][1]
        for seat_id in seat_ids
        if event is not None and seat_id in seats and seats[seat_id][0] == event.auditorium_id
    }
    return Found(record, event, its_own)


async def _write_all(
    connection: AsyncConnection, new: Sequence[NewBooking], now: datetime
) -> list[bool | DomainError]:
    """Whether each was first with its key; the bookings of those that were are written."""
    claims = [(one.key, Record(one.booking.booking_id, one.response)) for one in new]
    [claimed] = await run_together(connection, [idempotent.claiming(claims, now=now)])
    won = {(scope, key) for scope, key in claimed.rows}
    is_first = [(one.key.scope, one.key.key) in won for one in new]
    first = [one for one, is_it in zip(new, is_first, strict=True) if is_it]
    if first:
        await run_together(
            connection,
            [
                _bookings(first),
                _items(first),
                _timeline(
                    (one.booking, one.by, entry) for one in first for entry in one.booking.timeline
                ),
                outbox.insertion(connection, [_held(one) for one in first], now=now),
            ],
        )
    return list(is_first)


async def _page_all(
    connection: AsyncConnection, pages: Sequence[CheckoutUrlSet], _now: datetime
) -> list[bool | DomainError]:
    """Whether each booking has the payment still that the page is of."""
    rows = (
        (booking.booking_id, booking.update_time, payment.payment_id, payment.payment_url)
        for booking, payment in ((page.booking, page.booking.payment) for page in pages)
        if payment is not None
    )
    _, paged = await run_together(
        connection, [FORCE_INDEX_SCANS, Statement(_SET_PAGES, columns(rows, 4))]
    )
    known = {booking_id for (booking_id,) in paged.rows}
    is_it = [page.booking.booking_id in known for page in pages]
    answers = [
        (page.key, page.response) for page, is_paged in zip(pages, is_it, strict=True) if is_paged
    ]
    if answers:
        await run_together(connection, [idempotent.finishing(answers)])
    return list(is_it)


async def _confirm_all(
    connection: AsyncConnection, free: Sequence[FreeConfirmation], now: datetime
) -> list[bool | DomainError]:
    """Whether each booking was held still."""
    rows = ((one.booking.booking_id, one.booking.update_time) for one in free)
    _, confirmed = await run_together(
        connection, [FORCE_INDEX_SCANS, Statement(_CONFIRM, columns(rows, 2))]
    )
    known = {booking_id for (booking_id,) in confirmed.rows}
    is_held = [one.booking.booking_id in known for one in free]
    held = [one for one, is_it in zip(free, is_held, strict=True) if is_it]
    if held:
        told = [
            OutboxEntry(one.booking, Confirmed(one.booking.timeline[-1].reason), one.origin)
            for one in held
        ]
        await run_together(
            connection,
            [
                _timeline((one.booking, one.by, one.booking.timeline[-1]) for one in held),
                outbox.insertion(connection, told, now=now),
                idempotent.finishing([(one.key, one.response) for one in held]),
            ],
        )
    return list(is_held)


def _held(new: NewBooking) -> OutboxEntry:
    """What tells of the booking's beginning, before any payment."""
    booking = replace(new.booking, status=Status.HELD, payment=None)
    return OutboxEntry(booking, Held(new.is_mail_wanted), new.origin)


def _bookings(new: Sequence[NewBooking]) -> Statement:
    rows = []
    for booking in (one.booking for one in new):
        payment = booking.payment
        rows.append(
            (
                booking.booking_id,
                booking.event_id,
                booking.customer_id,
                booking.status.value,
                booking.total.currency_code,
                booking.total.amount_minor,
                booking.hold_expire_time,
                booking.reservation_id,
                payment and payment.payment_id,
                payment and payment.provider,
                payment and payment.status.value,
                payment and booking.create_time + FIRST_CHECK,
                json.dumps(cancellation_policy.to_json(booking.cancellation_policy)),
                booking.create_time,
                booking.update_time,
            )
        )
    return Statement(_INSERT_BOOKINGS, columns(rows, 15))


def _items(new: Sequence[NewBooking]) -> Statement:
    rows = (
        (
            one.booking.booking_id,
            index,
            item.offer_id,
            item.seat_id,
            item.quantity,
            item.unit_price.amount_minor,
        )
        for one in new
        for index, item in enumerate(one.booking.items)
    )
    return Statement(_INSERT_ITEMS, columns(rows, 6))


def _timeline(entries: Iterable[tuple[Booking, By, TimelineEntry]]) -> Statement:
    rows = (
        (
            booking.booking_id,
            entry.time,
            entry.status.value,
            entry.reason,
            entry.actor.value,
            by.user_id,
        )
        for booking, by, entry in entries
    )
    return Statement(_INSERT_TIMELINE, columns(rows, 6))


_INSERT_BOOKINGS = """
INSERT INTO bookings (booking_id, event_id, customer_id, status, currency_code, total_minor,
    hold_expire_time, reservation_id, payment_id, payment_provider, payment_status,
    payment_check_time, cancellation_policy, create_time, update_time)
SELECT booking_id, event_id, customer_id, status, currency_code, total_minor, hold_expire_time,
    reservation_id, payment_id, payment_provider, payment_status, payment_check_time,
    cancellation_policy::jsonb, create_time, update_time
FROM unnest(%s::uuid[], %s::uuid[], %s::uuid[], %s::text[], %s::text[], %s::bigint[],
    %s::timestamptz[], %s::uuid[], %s::uuid[], %s::text[], %s::text[], %s::timestamptz[],
    %s::text[], %s::timestamptz[], %s::timestamptz[])
    AS given (booking_id, event_id, customer_id, status, currency_code, total_minor,
    hold_expire_time, reservation_id, payment_id, payment_provider, payment_status,
    payment_check_time, cancellation_policy, create_time, update_time)
"""

_CONFIRM = """
UPDATE bookings SET status = 'CONFIRMED', confirm_time = given.time, update_time = given.time
FROM unnest(%s::uuid[], %s::timestamptz[]) AS given (booking_id, time)
WHERE bookings.booking_id = given.booking_id AND bookings.status = 'HELD'
RETURNING bookings.booking_id
"""

_SET_PAGES = """
UPDATE bookings SET payment_url = given.url, update_time = given.update_time
FROM unnest(%s::uuid[], %s::timestamptz[], %s::uuid[], %s::text[])
    AS given (booking_id, update_time, payment_id, url)
WHERE bookings.booking_id = given.booking_id AND bookings.payment_id = given.payment_id
RETURNING bookings.booking_id
"""

_INSERT_ITEMS = """
INSERT INTO booking_items
    (booking_id, item_index, offer_id, seat_id, quantity, unit_price_minor)
SELECT * FROM unnest(%s::uuid[], %s::int[], %s::uuid[], %s::uuid[], %s::int[], %s::bigint[])
"""

# In their order, which the entries' ids keep.
_INSERT_TIMELINE = """
INSERT INTO booking_timeline (booking_id, time, status, reason, actor, actor_id)
SELECT booking_id, time, status, reason, actor, actor_id
FROM unnest(%s::uuid[], %s::timestamptz[], %s::text[], %s::text[], %s::text[], %s::uuid[])
    WITH ORDINALITY AS given (booking_id, time, status, reason, actor, actor_id, number)
ORDER BY number
"""
