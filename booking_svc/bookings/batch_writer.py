"""Batches of concurrent PlaceBooking calls: what they read and write, in shared round trips.

While a batch is in flight, new requests queue and form the next one; a lone request does not
wait. The order of the steps is placement.py's, the moves are state_machine.py's.
"""

import json
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from typing import TypeVar
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.bookings import outbox, state_machine
from booking_svc.bookings.bookings import Booking, By, Status
from booking_svc.bookings.outbox import Held, OutboxEntry
from booking_svc.bookings.state_machine import FIRST_CHECK, Transition
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
# Two: one waits for the database while the other computes.
_MAX_IN_FLIGHT = 2
# Part of the 9.5 s of PlaceBooking.
_SECONDS = 4.5

_RequestT = TypeVar("_RequestT")
_ResultT = TypeVar("_ResultT")


@dataclass(frozen=True, slots=True)
class LookupRequest:
    key: Key
    event_id: UUID
    seat_ids: Collection[UUID]


@dataclass(frozen=True, slots=True)
class Lookup:
    """The key's record, the event, and the types of those requested seats that are the event's.

    Record and event are None if they do not exist.
    """

    record: Record | None
    event: Event | None
    seat_types: Mapping[UUID, str]


@dataclass(frozen=True, slots=True)
class NewBooking:
    """A booking to insert, with the key's final answer if there is no checkout to follow.

    `by` is the actor of its timeline; `origin` is the call's.
    """

    key: Key
    booking: Booking
    by: By
    response: bytes | None
    is_mail_wanted: bool
    origin: str


@dataclass(frozen=True, slots=True)
class FinalTransition:
    """The last transition of a PlaceBooking call, with the key's final answer."""

    key: Key
    transition: Transition
    response: bytes


class BatchWriter:
    """Reads and writes for all PlaceBooking calls of this process."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._reading = _coalescer("find", partial(_look_up_all, database))
        self._inserting = _coalescer("place", _committing(database, clock, _insert_all))
        self._moving = _coalescer("finish", _committing(database, clock, _write_all))

    async def look_up(self, key: Key, event_id: UUID, seat_ids: Collection[UUID]) -> Lookup:
        """Reads data committed before this call. Raises IDEMPOTENCY_KEY_REUSED."""
        return await self._reading.submit(LookupRequest(key, event_id, seat_ids))

    async def insert(
        self, key: Key, booking: Booking, by: By, response: bytes | None, *, is_mail_wanted: bool
    ) -> bool:
        """Inserts a booking and its key's record. False if another call with the key was first."""
        new = NewBooking(key, booking, by, response, is_mail_wanted, request_context.origin())
        return await self._inserting.submit(new)

    async def write(self, key: Key, transition: Transition, response: bytes) -> bool:
        """Writes a transition and the key's final answer.

        False, and nothing is written, if the booking's state or payment has changed since.
        """
        return await self._moving.submit(FinalTransition(key, transition, response))


def _coalescer(
    name: str, send: Callable[[Sequence[_RequestT]], Awaitable[Sequence[_ResultT | Exception]]]
) -> Coalescer[_RequestT, _ResultT]:
    return Coalescer(
        name,
        send,
        max_batch=_MAX_BATCH,
        max_in_flight=_MAX_IN_FLIGHT,
        max_queued=_MAX_QUEUED,
        seconds=_SECONDS,
    )


def _committing(
    database: Database,
    clock: Clock,
    work: Callable[
        [AsyncConnection, Sequence[_RequestT], datetime], Awaitable[list[bool | DomainError]]
    ],
) -> Callable[[Sequence[_RequestT]], Awaitable[Sequence[bool | Exception]]]:
    async def commit(requests: Sequence[_RequestT]) -> Sequence[bool | Exception]:
        return await commit_each(database, requests, work, clock=clock)

    return commit


async def _look_up_all(
    database: Database, requests: Sequence[LookupRequest]
) -> Sequence[Lookup | Exception]:
    keys = [request.key for request in requests]
    async with database.reading() as connection:
        _, result = await run_together(connection, [FORCE_INDEX_SCANS, idempotent.finding(keys)])
        known = await events.get_all(connection, {request.event_id for request in requests})
        seats = await venues.seats_of_any(
            connection, {seat_id for request in requests for seat_id in request.seat_ids}
        )
    return [
        record
        if isinstance(record, DomainError)
        else _lookup(record, known.get(request.event_id), request.seat_ids, seats)
        for request, record in zip(requests, idempotent.records_of(keys, result), strict=True)
    ]


def _lookup(
    record: Record | None,
    event: Event | None,
    seat_ids: Collection[UUID],
    seats: Mapping[UUID, tuple[UUID, str]],
) -> Lookup:
    seat_types = {
        seat_id: seats[seat_id][1]
        for seat_id in seat_ids
        if event is not None and seat_id in seats and seats[seat_id][0] == event.auditorium_id
    }
    return Lookup(record, event, seat_types)


async def _insert_all(
    connection: AsyncConnection, requests: Sequence[NewBooking], now: datetime
) -> list[bool | DomainError]:
    """Inserts the bookings of those requests that are the first with their key; True for these."""
    claims = [(new.key, Record(new.booking.booking_id, new.response)) for new in requests]
    [claimed] = await run_together(connection, [idempotent.claiming(claims, now=now)])
    first_keys = {(scope, key) for scope, key in claimed.rows}
    is_first = [(new.key.scope, new.key.key) in first_keys for new in requests]
    first = [new for new, inserts in zip(requests, is_first, strict=True) if inserts]
    if first:
        items = [(new.booking.booking_id, new.booking.items) for new in first]
        entries = [(new.booking, new.by, entry) for new in first for entry in new.booking.timeline]
        events_held = [
            OutboxEntry(_held(new.booking), Held(new.is_mail_wanted), new.origin) for new in first
        ]
        await run_together(
            connection,
            [
                Statement(_INSERT_BOOKINGS, columns((_row(new.booking) for new in first), 15)),
                state_machine.inserting_items(items),
                state_machine.inserting_entries(entries),
                outbox.insertion(connection, events_held, now=now),
            ],
        )
    return list(is_first)


async def _write_all(
    connection: AsyncConnection, requests: Sequence[FinalTransition], now: datetime
) -> list[bool | DomainError]:
    """Writes the transitions whose bookings have not changed since; True for these."""
    transitions = [request.transition for request in requests]
    _, updated = await run_together(
        connection, [FORCE_INDEX_SCANS, state_machine.updating(transitions)]
    )
    booking_ids = {booking_id for (booking_id,) in updated.rows}
    is_written = [transition.after.booking_id in booking_ids for transition in transitions]
    written = [request for request, writes in zip(requests, is_written, strict=True) if writes]
    if written:
        transitions = [request.transition for request in written]
        await run_together(
            connection,
            [
                *state_machine.recording(connection, transitions, now=now),
                idempotent.finishing([(request.key, request.response) for request in written]),
            ],
        )
    return list(is_written)


def _held(booking: Booking) -> Booking:
    """The booking as its first domain event shows it, before any payment."""
    return replace(booking, status=Status.HELD, payment=None)


def _row(booking: Booking) -> tuple[object, ...]:
    payment = booking.payment
    return (
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
