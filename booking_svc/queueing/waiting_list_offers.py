"""The job of a waiting list: ends what is over, and offers free places to those who wait.

A turn has steps, each committed before the next: choose entries and their places (RESERVING), hold
the places in the ledger under the key of the offer, then write the offer (OFFERED). A process can
die between any two: the next turn repeats the reservation, which the ledger makes once, or
releases it. Several processes may work on one list: the lock of its row orders what they write,
and nothing new is chosen while chosen places are not yet held.
"""

import asyncio
import logging
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.catalogue import events
from booking_svc.catalogue.events import Event, Status
from booking_svc.catalogue.tables import seats as seats_table
from booking_svc.queueing import waiting_list
from booking_svc.queueing import waiting_list_entries as entries
from booking_svc.queueing import waiting_list_gate as gate
from booking_svc.queueing import waiting_list_outbox as outbox
from booking_svc.queueing.waiting_list import Dependencies
from booking_svc.queueing.waiting_list_entries import EndReason, Entry, State
from booking_svc.queueing.waiting_list_plan import Places, Planner, Seat
from booking_svc.queueing.waiting_list_tables import (
    waiting_list_entries,
    waiting_list_gathering,
    waiting_lists,
)
from mesh.db.jobs import JobQueue
from mesh.errors import DomainError, Reason
from mesh.ids import new_id
from mesh.observability import metrics

_log = logging.getLogger(__name__)

IDLE_SECONDS = 1.0
"""The longest pause of the loop that calls `run_due`."""

# Longer than a turn takes. A list is due at least this often while somebody waits, in case that no
# change of stock arrives.
_LEASE = timedelta(seconds=30)
_POLL = timedelta(seconds=30)
_RETRY = timedelta(seconds=5)
# A reservation is not repeated later than this; its hold ends much later.
_STALE = timedelta(seconds=60)
# Nobody can claim in less, before the end of the sale.
_SHORTEST_OFFER = timedelta(seconds=60)
_LISTS = 8
_MOST_ENDED = 200
_PAGE_SIZE = 1_000
_MOST_OFFERS = 100
_MOST_ROUNDS = 20

_OVER = {Status.ENDED, Status.CANCELLED, Status.DRAFT}
# The ledger's answers to a reservation; other errors are outages. Other places may do after these:
_RACES = {Reason.SOLD_OUT, Reason.SEAT_UNAVAILABLE}
# A repetition gets the same answer: in this turn, the entry keeps nothing from those behind it.
_LASTING = {
    Reason.VALIDATION_FAILED,
    Reason.IDEMPOTENCY_KEY_REUSED,
    Reason.SEAT_NOT_FOUND,
    Reason.OFFER_NOT_FOUND,
    Reason.EVENT_NOT_FOUND,
}

_QUEUE = JobQueue(
    waiting_lists,
    waiting_since=sa.func.coalesce(waiting_lists.c.failing_since, waiting_lists.c.due_time),
)
oldest_due = _QUEUE.oldest_due
"""Since when a list's turns have failed or not been run."""

_REFUSED = metrics.counter(
    "waiting_list_refusals",
    "Reservations for waiting lists that the ledger refused; they are tried again.",
    "reason",
)


@dataclass(frozen=True, slots=True)
class _Round:
    """What a round of offers did; `gather_end` is when the next place has gathered."""

    has_more: bool = False
    is_refused: bool = False
    gather_end: datetime | None = None


async def run_due(deps: Dependencies) -> int:
    """A turn for each list that is due. Returns how many there were."""
    now = deps.clock()
    lease_end = now + _LEASE
    async with deps.database.single() as connection:
        rows = await _QUEUE.lease_where(
            connection,
            now=now,
            until=lease_end,
            limit=_LISTS,
            failing_since=sa.func.coalesce(waiting_lists.c.failing_since, now),
        )
    for row in rows:
        try:
            next_time = await turn(deps, event_id=row.event_id)
        except DomainError as error:
            # The lease ends later; a list that keeps failing is in the metric backlog_age_seconds.
            _log.warning(
                "no offers could be made to a waiting list",
                extra={"event_id": str(row.event_id), "reason": error.reason},
            )
            continue
        async with deps.database.single() as connection:
            await _QUEUE.reschedule(
                connection,
                row.event_id,
                due_time=next_time,
                lease_end=lease_end,
            )
            # Also if it was made due meanwhile.
            await connection.execute(
                sa.update(waiting_lists)
                .where(waiting_lists.c.event_id == row.event_id)
                .values(failing_since=None)
            )
    return len(rows)


async def turn(deps: Dependencies, *, event_id: UUID) -> datetime | None:
    """Does all that a list has to do now. Returns when it has more; None if never.

    Raises DEPENDENCY_UNAVAILABLE; a repetition continues where it ended.
    """
    now = deps.clock()
    async with deps.database.transaction() as connection:
        event = await _end_what_is_over(connection, event_id, now)
    await waiting_list.release_due(deps, event_id=event_id)
    async with deps.database.reading() as connection:
        chosen = await entries.select(
            connection, entries.in_states(State.RESERVING), event_id=event_id
        )
    refused: set[UUID] = set()
    for entry in chosen:
        if await _reserve(deps, entry) in _LASTING:
            refused.add(entry.entry_id)
    await gate.sync(deps.database, deps.stock, event_id=event_id)
    done = _Round()
    if _is_offering(event, now):
        for _ in range(_MOST_ROUNDS):
            done = await _offer(deps, event, refused)
            if not done.has_more:
                break
        # The last who waited may have got an offer.
        await gate.sync(deps.database, deps.stock, event_id=event_id)
    async with deps.database.reading() as connection:
        next_time = await _next_time(connection, event, now)
    if done.has_more or done.is_refused:
        return now + (_RETRY if done.is_refused else timedelta(0))
    times = [time for time in (next_time, done.gather_end) if time is not None]
    return min(times, default=None) if next_time is not None else None


async def _end_what_is_over(connection: AsyncConnection, event_id: UUID, now: datetime) -> Event:
    """Ends offers that were not claimed in time, and all entries of an event that is over."""
    await entries.lock(connection, event_id=event_id)
    event = await events.get(connection, event_id=event_id)
    if event.delete_time is not None or event.status_at(now, available=1) in _OVER:
        is_sold = event.delete_time is None and event.status_at(now, available=1) is Status.ENDED
        # An offer may still be claimed while its sale has ended: not after that.
        live = await entries.select(
            connection,
            entries.in_states(*entries.LIVE),
            event_id=event_id,
            limit=_MOST_ENDED,
        )
        reason = EndReason.SALE_ENDED if is_sold else EndReason.EVENT_CANCELLED
    else:
        live = await entries.select(
            connection,
            entries.in_states(State.OFFERED),
            waiting_list_entries.c.offer_expire_time <= now,
            event_id=event_id,
            limit=_MOST_ENDED,
        )
        reason = EndReason.NOT_CLAIMED
    if live:
        await waiting_list.end(connection, live, to=State.EXPIRED, reason=reason, now=now)
    return event


def _is_offering(event: Event, now: datetime) -> bool:
    """Whether offers are made: the event is on sale, and there is time to claim them."""
    if event.delete_time is not None or event.status_at(now, available=1) is not Status.ON_SALE:
        return False
    return event.sale_end_time is None or now + _SHORTEST_OFFER <= event.sale_end_time


async def _offer(deps: Dependencies, event: Event, refused: set[UUID]) -> _Round:
    """Offers what is free to those in front but `refused`, and adds to it."""
    now = deps.clock()
    places = await _read_places(deps, event)
    async with deps.database.transaction() as connection:
        locked = await entries.lock(connection, event_id=event.event_id)
        if locked is None:
            return _Round()
        if await _is_reserving(connection, event.event_id):
            return _Round(is_refused=True)  # Another process has chosen: its places come first.
        gathering = await _read_gathering(connection, event.event_id)
        planner = Planner(
            event,
            places,
            gathering=gathering,
            gather=deps.terms.gather,
            most_offers=_MOST_OFFERS,
            now=now,
            refused=refused,
        )
        await _add_entries(connection, planner, event.event_id)
        planned = planner.plan()
        await _write_gathering(connection, event.event_id, gathering, planned.gathering)
        if planned.opened:
            await gate.refresh(connection, locked, opened=planned.opened, now=now)
        chosen = [
            await entries.move(
                connection,
                entry=entry,
                to=State.RESERVING,
                now=now,
                offer_number=entry.offer_number + 1,
                lines=entries.lines_to_json(lines),
                reservation_id=new_id(),
                offer_time=now,
                **_times(deps, event, now),
            )
            for entry, lines in planned.offers
        ]
    if planned.opened:
        await gate.sync(deps.database, deps.stock, event_id=event.event_id)
    answers = await asyncio.gather(*(_reserve(deps, entry) for entry in chosen))
    refused |= {
        entry.entry_id for entry, answer in zip(chosen, answers, strict=True) if answer in _LASTING
    }
    is_refused = any(answer is not None and answer not in _LASTING for answer in answers)
    return _Round(
        has_more=bool(chosen) and not is_refused,
        is_refused=is_refused,
        gather_end=planned.gather_end,
    )


async def _is_reserving(connection: AsyncConnection, event_id: UUID) -> bool:
    columns = waiting_list_entries.c
    return bool(
        await connection.scalar(
            sa.select(
                sa.exists().where(columns.event_id == event_id, entries.in_states(State.RESERVING))
            )
        )
    )


async def _add_entries(connection: AsyncConnection, planner: Planner, event_id: UUID) -> None:
    """Gives the planner, in order, all entries that decide about the free places.

    However many there are in front: those that cannot be served are not read once those behind
    them may be.
    """
    last_number = 0
    while not planner.is_full and (planner.undecided or planner.obtainable):
        page = await entries.select(
            connection,
            entries.in_states(State.WAITING),
            waiting_list_entries.c.number > last_number,
            sa.or_(entries.waits_for(planner.undecided), entries.fits(planner.obtainable)),
            event_id=event_id,
            limit=_PAGE_SIZE,
        )
        planner.add(page)
        if len(page) < _PAGE_SIZE:
            return
        last_number = page[-1].number


async def _read_gathering(connection: AsyncConnection, event_id: UUID) -> dict[UUID, datetime]:
    columns = waiting_list_gathering.c
    rows = await connection.execute(
        sa.select(columns.pool_id, columns.since).where(columns.event_id == event_id)
    )
    return {row.pool_id: row.since for row in rows}


async def _write_gathering(
    connection: AsyncConnection,
    event_id: UUID,
    before: Mapping[UUID, datetime],
    after: Mapping[UUID, datetime],
) -> None:
    columns = waiting_list_gathering.c
    for pool_id in sorted(before.keys() - after.keys()):
        await connection.execute(
            sa.delete(waiting_list_gathering).where(
                columns.event_id == event_id, columns.pool_id == pool_id
            )
        )
    for pool_id in sorted(after.keys() - before.keys()):
        await connection.execute(
            waiting_list_gathering.insert().values(
                event_id=event_id, pool_id=pool_id, since=after[pool_id]
            )
        )


def _times(deps: Dependencies, event: Event, now: datetime) -> dict[str, datetime]:
    """When the offer ends, at the latest with the sale, and its hold: then a claim has its time."""
    offer_expire_time = now + deps.terms.offer_ttl
    if event.sale_end_time is not None:
        offer_expire_time = min(offer_expire_time, event.sale_end_time)
    return {
        "offer_expire_time": offer_expire_time,
        "hold_expire_time": offer_expire_time + deps.terms.hold_ttl,
    }


async def _reserve(deps: Dependencies, entry: Entry) -> Reason | None:
    """Holds the places of a chosen entry and writes its offer. Returns why it still waits, if so.

    Raises DEPENDENCY_UNAVAILABLE: then another turn repeats it.
    """
    if entry.reservation_id is None or entry.hold_expire_time is None or entry.offer_time is None:
        raise RuntimeError("an entry was chosen without places")
    if deps.clock() >= entry.offer_time + _STALE:
        await deps.stock.release(event_id=entry.event_id, reservation_id=entry.reservation_id)
        await _write_outcome(deps, entry, Reason.HOLD_EXPIRED)
        return Reason.HOLD_EXPIRED
    refusal: Reason | None = None
    try:
        await deps.stock.reserve(
            event_id=entry.event_id,
            reservation_id=entry.reservation_id,
            request_key=entry.request_key,
            customer_id=entry.customer_id,
            lines=entry.lines,
            expire_time=entry.hold_expire_time,
            for_waiting_list=True,
        )
    except DomainError as error:
        if error.reason not in {*_RACES, *_LASTING, Reason.PURCHASE_LIMIT_EXCEEDED}:
            raise
        refusal = error.reason
        _REFUSED.labels(refusal).inc()
        if refusal in _LASTING:
            _log.warning(
                "the ledger refuses an entry of a waiting list: those behind it are served",
                extra={
                    "event_id": str(entry.event_id),
                    "entry_id": str(entry.entry_id),
                    "reason": refusal,
                },
            )
    if not await _write_outcome(deps, entry, refusal) and refusal is None:
        # The entry ended while its places were being held.
        await deps.stock.release(event_id=entry.event_id, reservation_id=entry.reservation_id)
    # Above the limit, it has ended.
    return None if refusal is Reason.PURCHASE_LIMIT_EXCEEDED else refusal


async def _write_outcome(deps: Dependencies, chosen: Entry, refusal: Reason | None) -> bool:
    """Writes an offer, or its refusal. False if the entry has no longer this offer."""
    now = deps.clock()
    async with deps.database.transaction() as connection:
        entry = await entries.get_locked(connection, entry_id=chosen.entry_id)
        is_same = entry.offer_number == chosen.offer_number
        if not is_same or entry.state is not State.RESERVING:
            # Written by another process, which did the same; or the entry has ended.
            return is_same and entry.state in (State.OFFERED, State.CLAIMED)
        if refusal is Reason.PURCHASE_LIMIT_EXCEEDED:
            await waiting_list.end(
                connection, [entry], to=State.EXPIRED, reason=EndReason.PURCHASE_LIMIT, now=now
            )
        elif refusal is not None:
            await entries.move(
                connection, entry=entry, to=State.WAITING, now=now, reservation_id=None, lines=None
            )
        else:
            offered = await entries.move(connection, entry=entry, to=State.OFFERED, now=now)
            await outbox.append(connection, [offered], now=now, claim_url=deps.terms.claim_url)
            locked = await entries.lock(connection, event_id=entry.event_id)
            if locked is not None:
                await gate.refresh(connection, locked, now=now)
    return True


async def _read_places(deps: Dependencies, event: Event) -> Places:
    sellers: defaultdict[str, list[UUID]] = defaultdict(list)
    for offer in event.offers:
        if offer.seat_type is not None:
            sellers[offer.seat_type].append(offer.offer_id)
    stock = await deps.stock.availability(event_id=event.event_id, with_seats=bool(sellers))
    places = Places(
        free={pool_id: pool.available + pool.kept for pool_id, pool in stock.pools.items()},
        kept={pool_id: pool.kept for pool_id, pool in stock.pools.items()},
        seats={offer_id: [] for offer_ids in sellers.values() for offer_id in offer_ids},
    )
    if not sellers:
        return places
    columns = seats_table.c
    async with deps.database.reading() as connection:
        rows = await connection.execute(
            sa.select(columns.seat_id, columns.seat_type, columns.row_index, columns.seat_index)
            .where(columns.auditorium_id == event.auditorium_id)
            .order_by(columns.row_index, columns.seat_index)
        )
    for row in rows:
        if row.seat_type in sellers and stock.seats.get(row.seat_id) == "AVAILABLE":
            seat = Seat(row.seat_id, row.row_index, row.seat_index)
            for offer_id in sellers[row.seat_type]:
                places.seats[offer_id].append(seat)
    return places


async def _next_time(connection: AsyncConnection, event: Event, now: datetime) -> datetime | None:
    """When the list is due again; None if it has nothing to do any more."""
    columns = waiting_list_entries.c
    row = (
        await connection.execute(
            sa.select(sa.func.count(), sa.func.min(columns.offer_expire_time)).where(
                columns.event_id == event.event_id, entries.in_states(*entries.LIVE)
            )
        )
    ).one()
    live, next_expiry = row
    is_synced = await connection.scalar(
        sa.select(waiting_lists.c.version == waiting_lists.c.synced_version).where(
            waiting_lists.c.event_id == event.event_id
        )
    )
    is_releasing = await connection.scalar(
        sa.select(sa.exists().where(columns.event_id == event.event_id, columns.is_release_due))
    )
    if not live:
        return None if is_synced and not is_releasing else now
    times: Sequence[datetime | None] = (now + _POLL, next_expiry, event.sale_end_time)
    return max(now, min(time for time in times if time is not None))
