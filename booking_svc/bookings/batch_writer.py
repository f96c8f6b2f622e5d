"""Batches of concurrent PlaceBooking calls: what they read and write, in shared round trips.

While a batch is in flight, new requests queue and form the next one; a lone request does not
wait. The order of the steps is placement.py's, the moves are state_machine.py's.
"""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import Enum
from functools import partial
from typing import TypeVar
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.bookings import outbox, state_machine
from booking_svc.bookings.bookings import Booking, By, Status
from booking_svc.bookings.outbox import Held
from booking_svc.bookings.state_machine import FIRST_CHECK, Transition
from booking_svc.catalogue import cancellation_policy, events, venues
from booking_svc.catalogue.event_memory import EventMemory, read_seat_terms
from booking_svc.catalogue.events import Event
from booking_svc.catalogue.venues import SeatTerms
from mesh.clock import Clock
from mesh.coalescing import Coalescer
from mesh.db import idempotent
from mesh.db.batches import Work, commit_each
from mesh.db.database import Database
from mesh.db.idempotent import Key, Record
from mesh.db.outbox import NewEvent, announce
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
    """The key's record, the event, and the terms of those requested seats that are the event's.

    Record and event are None if they do not exist. `is_fresh` is of an event from memory: it was
    read within the last second.
    """

    record: Record | None
    event: Event | None
    seat_terms: Mapping[UUID, SeatTerms]
    is_fresh: bool = False


class Insertion(Enum):
    """What became of a booking to insert.

    Unless it is INSERTED nothing was written: REPEATED if its key has a record, OUTDATED if its
    event has changed since it was read.
    """

    INSERTED = "INSERTED"
    REPEATED = "REPEATED"
    OUTDATED = "OUTDATED"


@dataclass(frozen=True, slots=True)
class NewBooking:
    """A booking to insert, with the key's final answer if there is no checkout to follow.

    `by` is the actor of its timeline; `origin` is the call's. `revision` is that of the event that
    it was priced by, None if the event was read during the call.
    """

    key: Key
    booking: Booking
    by: By
    response: bytes | None
    is_mail_wanted: bool
    origin: str
    revision: int | None


@dataclass(frozen=True, slots=True)
class FinalTransition:
    """The last transition of a PlaceBooking call, with the key's final answer."""

    key: Key
    transition: Transition
    response: bytes


class BatchWriter:
    """Reads and writes for all PlaceBooking calls of this process."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._memory = EventMemory()
        self._clock = clock
        self._reading = _coalescer("find", partial(_look_up_all, database, self._memory, clock))
        self._inserting = _committing("place", database, clock, partial(insert_all, commits=True))
        self._moving = _committing("finish", database, clock, _write_all)

    def remembered(self, event_id: UUID, seat_ids: Collection[UUID]) -> Lookup | None:
        """An event as it was last read, which may have changed since; None if it is not known."""
        event = self._memory.event(event_id)
        seat_terms = None if event is None else self._memory.seat_terms(event, seat_ids)
        if seat_terms is None:
            return None
        is_fresh = self._memory.is_fresh(event_id, self._clock())
        return Lookup(None, event, seat_terms, is_fresh)

    async def look_up(self, key: Key, event_id: UUID, seat_ids: Collection[UUID]) -> Lookup:
        """Reads data committed before this call. Raises IDEMPOTENCY_KEY_REUSED."""
        return await self._reading.submit(LookupRequest(key, event_id, seat_ids))

    async def insert(
        self,
        key: Key,
        booking: Booking,
        by: By,
        response: bytes | None,
        *,
        is_mail_wanted: bool,
        revision: int | None = None,
    ) -> Insertion:
        """Inserts a booking and its key's record. With `revision`, only if its event still has it."""
        origin = request_context.origin()
        new = NewBooking(key, booking, by, response, is_mail_wanted, origin, revision)
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
    name: str, database: Database, clock: Clock, work: Work[_RequestT, _ResultT]
) -> Coalescer[_RequestT, _ResultT]:
    async def commit(requests: Sequence[_RequestT]) -> Sequence[_ResultT | Exception]:
        return await commit_each(database, requests, work, clock=clock)

    return _coalescer(name, commit)


async def _look_up_all(
    database: Database, memory: EventMemory, clock: Clock, requests: Sequence[LookupRequest]
) -> Sequence[Lookup | Exception]:
    keys = [request.key for request in requests]
    now = clock()
    async with database.reading() as connection:
        _, result = await run_together(connection, [FORCE_INDEX_SCANS, idempotent.finding(keys)])
        known = await events.get_all(connection, {request.event_id for request in requests})
        seats = await venues.seats_of_any(
            connection, {seat_id for request in requests for seat_id in request.seat_ids}
        )
        for request in requests:
            memory.remember(request.event_id, known.get(request.event_id), now)
        for auditorium_id in _auditoriums_to_read(memory, requests, known, seats):
            memory.remember_seats(auditorium_id, await read_seat_terms(connection, auditorium_id))
    return [
        record
        if isinstance(record, DomainError)
        else _lookup(record, known.get(request.event_id), request.seat_ids, seats)
        for request, record in zip(requests, idempotent.records_of(keys, result), strict=True)
    ]


def _auditoriums_to_read(
    memory: EventMemory,
    requests: Sequence[LookupRequest],
    known: Mapping[UUID, Event],
    seats: Mapping[UUID, tuple[UUID, SeatTerms]],
) -> set[UUID]:
    """The auditoriums of events that have a requested seat which is not in memory."""
    return {
        event.auditorium_id
        for request in requests
        if (event := known.get(request.event_id)) is not None and event.auditorium_id is not None
        for seat_id in request.seat_ids
        if seat_id in seats
        and seats[seat_id][0] == event.auditorium_id
        and memory.seat_terms(event, [seat_id]) is None
    }


def _lookup(
    record: Record | None,
    event: Event | None,
    seat_ids: Collection[UUID],
    seats: Mapping[UUID, tuple[UUID, SeatTerms]],
) -> Lookup:
    seat_terms = {
        seat_id: seats[seat_id][1]
        for seat_id in seat_ids
        if event is not None and seat_id in seats and seats[seat_id][0] == event.auditorium_id
    }
    return Lookup(record, event, seat_terms)


async def insert_all(
    connection: AsyncConnection,
    requests: Sequence[NewBooking],
    now: datetime,
    *,
    commits: bool = False,
) -> list[Insertion | DomainError]:
    """Inserts the bookings that are the first with their key, of events that have not changed.

    One statement, with `commits` sent together with its COMMIT.
    """
    messages = [
        outbox.to_new(_held(new.booking), Held(new.is_mail_wanted), now) for new in requests
    ]
    entries = [(new.booking, new.by, entry) for new in requests for entry in new.booking.timeline]
    items = [(new.booking.booking_id, new.booking.items) for new in requests]
    _, result = await run_together(
        connection,
        [
            FORCE_INDEX_SCANS,
            Statement(
                _INSERT,
                (
                    *columns(map(_row, requests, messages), _WIDTH),
                    now,
                    *columns(state_machine.item_rows(items), 6),
                    *columns(state_machine.entry_rows(entries), 6),
                    now,
                ),
            ),
        ],
        commits=commits,
    )
    insertions = [Insertion(outcome) for (outcome,) in result.rows]
    announce(
        connection,
        [
            message
            for message, insertion in zip(messages, insertions, strict=True)
            if insertion is Insertion.INSERTED
        ],
    )
    return list(insertions)


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


def _row(new: NewBooking, message: NewEvent) -> tuple[object, ...]:
    booking, payment = new.booking, new.booking.payment
    return (
        new.key.scope,
        new.key.key,
        new.key.fingerprint,
        new.response,
        new.revision,
        message.event_type,
        message.payload,
        new.origin,
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
        cancellation_policy.to_text(booking.cancellation_policy),
        booking.create_time,
        booking.update_time,
    )


_WIDTH = 23

# The keys decide who was first; all else is written for those only. Keys are inserted in sorted
# order: two batches with the same keys wait for each other in one order. Arrays instead of joins,
# which a plan for few rows would run as nested loops.
_INSERT = """
WITH given AS MATERIALIZED (
    SELECT * FROM unnest(%s::text[], %s::text[], %s::bytea[], %s::bytea[], %s::int[], %s::text[],
        %s::bytea[], %s::text[], %s::uuid[], %s::uuid[], %s::uuid[], %s::text[], %s::text[],
        %s::bigint[], %s::timestamptz[], %s::uuid[], %s::uuid[], %s::text[], %s::text[],
        %s::timestamptz[], %s::text[], %s::timestamptz[], %s::timestamptz[])
        WITH ORDINALITY AS given (scope, key, fingerprint, response, revision, event_type, payload,
        origin, booking_id, event_id, customer_id, status, currency_code, total_minor,
        hold_expire_time, reservation_id, payment_id, payment_provider, payment_status,
        payment_check_time, cancellation_policy, create_time, update_time, number)
), up_to_date AS MATERIALIZED (
    SELECT * FROM given WHERE given.revision IS NULL OR given.revision = (
        SELECT events.revision FROM events WHERE events.event_id = given.event_id
    )
), claimed AS (
    INSERT INTO idempotency_records
        (scope, key, fingerprint, resource_id, response, create_time)
    SELECT scope, key, fingerprint, booking_id, response, %s::timestamptz
    FROM up_to_date ORDER BY scope, key
    ON CONFLICT DO NOTHING RETURNING resource_id
), inserted AS (
    INSERT INTO bookings (booking_id, event_id, customer_id, status, currency_code, total_minor,
        hold_expire_time, reservation_id, payment_id, payment_provider, payment_status,
        payment_check_time, cancellation_policy, create_time, update_time)
    SELECT booking_id, event_id, customer_id, status, currency_code, total_minor,
        hold_expire_time, reservation_id, payment_id, payment_provider, payment_status,
        payment_check_time, cancellation_policy::jsonb, create_time, update_time
    FROM given WHERE booking_id = ANY (ARRAY(SELECT resource_id FROM claimed))
), items AS (
    INSERT INTO booking_items
        (booking_id, item_index, offer_id, seat_id, quantity, unit_price_minor)
    SELECT * FROM unnest(%s::uuid[], %s::int[], %s::uuid[], %s::uuid[], %s::int[], %s::bigint[])
        AS item (booking_id) WHERE booking_id = ANY (ARRAY(SELECT resource_id FROM claimed))
), entries AS (
    INSERT INTO booking_timeline (booking_id, time, status, reason, actor, actor_id)
    SELECT booking_id, time, status, reason, actor, actor_id
    FROM unnest(%s::uuid[], %s::timestamptz[], %s::text[], %s::text[], %s::text[], %s::uuid[])
        WITH ORDINALITY AS entry (booking_id, time, status, reason, actor, actor_id, number)
    WHERE booking_id = ANY (ARRAY(SELECT resource_id FROM claimed)) ORDER BY number
), announced AS (
    INSERT INTO outbox (aggregate_id, event_type, payload, origin, create_time)
    SELECT booking_id, event_type, payload, origin, %s::timestamptz
    FROM given WHERE booking_id = ANY (ARRAY(SELECT resource_id FROM claimed)) ORDER BY number
)
SELECT CASE
    WHEN booking_id = ANY (ARRAY(SELECT resource_id FROM claimed)) THEN 'INSERTED'
    WHEN booking_id = ANY (ARRAY(SELECT booking_id FROM up_to_date)) THEN 'REPEATED'
    ELSE 'OUTDATED' END
FROM given ORDER BY number
"""
