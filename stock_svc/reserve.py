"""Reserving: many requests in one transaction, each with its own outcome.

Three round trips, whatever the number: read without locks, lock the pools and read again, write.
Order of locks: lapsed reservations, pools, new request keys.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.db.batches import RacedError
from mesh.db.pipeline import (
    FORCE_INDEX_SCANS,
    Result,
    Statement,
    array,
    columns,
    run_together,
)
from mesh.errors import DomainError, Reason
from stock_svc import allocation, expiry, ledger, statements
from stock_svc.allocation import Demand, EventTerms, OfferTerms, Refused, Remaining, SeatTerms
from stock_svc.ledger import Entry, Kind, LockedPools
from stock_svc.reservations import Line, Reservation, SeatState, from_row
from stock_svc.tables import Key

Outcome = Reservation | DomainError


async def reserve_all(
    connection: AsyncConnection, requests: Sequence[Reservation], now: datetime
) -> list[Outcome]:
    """Makes reservations in order, each whole or not at all; returns the outcome of each, in order.

    A request with the key or the id of an existing reservation returns that one. Outcomes may
    be EVENT_NOT_FOUND, OFFER_NOT_FOUND, SEAT_NOT_FOUND, SOLD_OUT, SEAT_UNAVAILABLE,
    PURCHASE_LIMIT_EXCEEDED, IDEMPOTENCY_KEY_REUSED or VALIDATION_FAILED. Raises RacedError:
    the caller must roll back and may repeat.
    """
    requests = [replace(request, create_time=now, update_time=now) for request in requests]
    outcomes: dict[int, Outcome] = {}
    while pending := [n for n in range(len(requests)) if n not in outcomes]:
        # Requests with equal keys run one after the other: the second sees the first's outcome.
        numbers = _without_equal_keys(requests, pending)
        batch = await _reserve_batch(connection, [requests[n] for n in numbers], now)
        outcomes |= dict(zip(numbers, batch, strict=True))
    return [outcomes[n] for n in range(len(requests))]


def _without_equal_keys(requests: Sequence[Reservation], pending: Sequence[int]) -> list[int]:
    """The numbers of the first pending request of each key and id."""
    seen: set[tuple[UUID, object]] = set()
    numbers = []
    for n in pending:
        keys: set[tuple[UUID, object]] = {
            (requests[n].event_id, requests[n].request_key),
            (requests[n].event_id, requests[n].reservation_id),
        }
        if not keys & seen:
            numbers.append(n)
        seen |= keys
    return numbers


@dataclass(slots=True)
class _Batch:
    """Requests by number. `open` has those without an outcome, `repeated` those whose outcome
    is an existing reservation, `refused` those whose outcome `_explain` adds."""

    requests: Sequence[Reservation]
    now: datetime
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    open: dict[int, Demand] = field(default_factory=dict)
    events: dict[UUID, EventTerms] = field(default_factory=dict)
    repeated: set[int] = field(default_factory=set)
    refused: dict[int, Refused] = field(default_factory=dict)

    def events_of_open(self) -> set[UUID]:
        """Events with stock: `decide` refuses requests for events whose stock was removed since."""
        return {demand.request.event_id for demand in self.open.values()} & self.events.keys()

    def answer_repeated(self, n: int, existing: Reservation) -> bool:
        """Answers a request by its existing reservation. False when that one has lapsed."""
        if existing.has_lapsed(self.now):
            return False
        if existing.fingerprint == self.requests[n].fingerprint:
            self.outcomes[n] = existing
            self.repeated.add(n)
        else:
            self.outcomes[n] = DomainError(
                Reason.IDEMPOTENCY_KEY_REUSED, "this request key was used for other lines"
            )
        self.open.pop(n, None)
        return True

    def refuse(self, n: int, refusal: Refused | DomainError) -> None:
        if isinstance(refusal, Refused):
            self.refused[n] = refusal
        else:
            self.outcomes[n] = refusal
        self.open.pop(n, None)


async def _reserve_batch(
    connection: AsyncConnection, requests: Sequence[Reservation], now: datetime
) -> list[Outcome]:
    batch = _Batch(requests, now)
    with_lapsed = await _read_unlocked(connection, batch)
    while batch.open:
        keys = _pools(batch)
        cleared = 0
        if with_lapsed:
            cleared = await expiry.clear(connection, event_ids=with_lapsed, also_lock=keys, now=now)
        pools, remaining = await _lock(connection, batch, keys)
        refusals, accepted = allocation.decide(batch.open, remaining)
        if refusals and cleared == expiry.MOST_CLEARED:
            continue  # More lapsed holds may take up places.
        await _write(connection, accepted, pools, now)
        for n, refusal in refusals.items():
            batch.refuse(n, refusal)
        batch.outcomes |= {n: demand.request for n, demand in batch.open.items()}
        break
    await _explain(connection, batch)
    await _add_lines(connection, batch)
    return [batch.outcomes[n] for n in range(len(requests))]


def _pools(batch: _Batch) -> set[Key]:
    """The pools to lock: those of the demands, and all pools of an event with a limit."""
    requested = {pool for demand in batch.open.values() for pool in demand.by_pool}
    return requested.union(*(batch.events[event_id].pools for event_id in batch.events_of_open()))


async def _read_unlocked(connection: AsyncConnection, batch: _Batch) -> frozenset[UUID]:
    """Decides what needs no lock. Returns the events that have lapsed holds.

    In a burst most requests come after the last place was sold: they are refused here,
    without a write or a lock.
    """
    requests, now = batch.requests, batch.now
    event_ids = sorted({request.event_id for request in requests})
    offer_keys = sorted({(r.event_id, line.offer_id) for r in requests for line in r.lines})
    seat_keys = sorted({seat for request in requests for seat in allocation.seats_of(request)})
    # In this order: lapsed holds are read before the free places, and existing reservations
    # after them, so that a repeated request that took the last places is not refused.
    _, events, offers, seats, existing = await run_together(
        connection,
        [
            FORCE_INDEX_SCANS,
            Statement(statements.EVENTS, (now, array(event_ids))),
            Statement(statements.OFFERS, columns(offer_keys, 2)),
            Statement(statements.SEATS, columns(seat_keys, 2)),
            _reading_existing(dict(enumerate(requests))),
        ],
    )
    offer_terms = {(row[0], row[1]): OfferTerms(*row[2:]) for row in offers.rows}
    seat_terms = {(row[0], row[1]): SeatTerms(*row[2:]) for row in seats.rows}
    with_lapsed = frozenset(row[0] for row in events.rows if row[3])
    batch.events = {
        event_id: EventTerms(limit, frozenset((event_id, pool_id) for pool_id in pool_ids or ()))
        for event_id, limit, pool_ids, _ in events.rows
    }
    existing_reservations = _existing_from(existing)
    for n, request in enumerate(requests):
        is_repeated = n in existing_reservations
        if is_repeated and batch.answer_repeated(n, existing_reservations[n]):
            continue
        try:
            demand = allocation.demand_of(
                request,
                offers=offer_terms,
                seats=seat_terms,
                has_stock=request.event_id in batch.events,
            )
        except DomainError as refusal:
            batch.refuse(n, refusal)
            continue
        batch.open[n] = demand
        if not is_repeated and request.event_id not in with_lapsed:
            free = {
                pool: demand.available(pool, terms.free, terms.open_places)
                for terms in demand.terms.values()
                for pool in [(request.event_id, terms.pool_id)]
            }
            taken = [seat for seat in demand.seats if seat_terms[seat].taken]
            if failed := allocation.shortages(demand, free, taken):
                batch.refuse(n, Refused(demand, failed))
    return with_lapsed


async def _lock(
    connection: AsyncConnection, batch: _Batch, keys: Collection[Key]
) -> tuple[LockedPools, Remaining]:
    """Locks the pools and reads what only this transaction can change from then on.

    A transaction that changes a total or a seat claim holds the lock of its pool; one that
    changes an event's limit, the locks of all its pools.
    """
    demands = batch.open.values()
    seat_keys = sorted({seat for demand in demands for seat in demand.seats})
    total_keys = sorted({d.total_of(offer_id) for d in demands for offer_id in d.by_offer})
    with_limit = {
        event_id
        for event_id in batch.events_of_open()
        if batch.events[event_id].per_customer_limit is not None
    }
    customers = sorted({d.customer for d in demands if d.request.event_id in with_limit})
    # Most requests have no seats, most events no limit of their own.
    optional = [
        (seat_keys, Statement(statements.SEATS, columns(seat_keys, 2))),
        (customers, Statement(statements.EVENT_TOTALS, columns(customers, 2))),
    ]
    counters, events, totals, existing, *others = await run_together(
        connection,
        [
            *ledger.locking(keys),
            Statement(statements.TOTALS, columns(total_keys, 3)),
            _reading_existing({n: demand.request for n, demand in batch.open.items()}),
            *(statement for needed, statement in optional if needed),
        ],
    )
    seats = others.pop(0).rows if seat_keys else []
    event_totals = others.pop(0).rows if customers else []
    pools = ledger.locked_pools(counters, events)
    if not pools.limits.keys() <= with_limit:
        raise RacedError  # The event got its limit just now: its other pools are not locked.
    for n, reservation in _existing_from(existing).items():
        batch.answer_repeated(n, reservation)
    seat_terms = {(row[0], row[1]): SeatTerms(*row[2:]) for row in seats}
    return pools, Remaining(
        free={key: pool.free for key, pool in pools.pools.items()},
        open_places={
            key: pool.open_places
            for key, pool in pools.pools.items()
            if pool.open_places is not None
        },
        taken={key for key in seat_keys if key not in seat_terms or seat_terms[key].taken},
        totals=Counter({(row[0], row[1], row[2]): row[3] for row in totals.rows}),
        limits=pools.limits,
        event_totals=Counter({(row[0], row[1]): row[2] for row in event_totals}),
    )


async def _write(
    connection: AsyncConnection, accepted: Sequence[Demand], pools: LockedPools, now: datetime
) -> None:
    """Writes the accepted requests. The statements test their guards again."""
    if not accepted:
        return
    owned = Counter[tuple[UUID, UUID, UUID, int]]()
    for demand in accepted:
        for offer_id, quantity in demand.by_offer.items():
            limit = demand.terms[offer_id].per_customer_limit
            owned[(*demand.total_of(offer_id), limit)] += quantity
    made = sorted(
        (demand.request for demand in accepted), key=lambda new: (new.event_id, new.request_key)
    )
    lines = [
        (new.event_id, new.reservation_id, number, line.offer_id, demand.pool_of(line),
         line.seat_id, line.quantity)
        for demand in accepted
        for new in [demand.request]
        for number, line in enumerate(new.lines)
    ]  # fmt: skip
    claims = [
        (event_id, demand.request.reservation_id, seat_id)
        for demand in accepted
        for event_id, seat_id in demand.seats
    ]
    counts = await ledger.post(
        connection,
        entries=[
            Entry(
                *pool,
                Kind.RESERVE,
                held=quantity,
                reservation_id=demand.request.reservation_id,
                opened=demand.taken_from_open(pool),
            )
            for demand in accepted
            for pool, quantity in demand.by_pool.items()
        ],
        seats={seat: SeatState.HELD for demand in accepted for seat in demand.seats},
        locked=pools,
        also=[
            Statement(
                statements.INSERT_RESERVATIONS,
                (
                    now,
                    *columns(
                        (
                            (
                                new.event_id,
                                new.reservation_id,
                                new.customer_id,
                                new.request_key,
                                new.fingerprint,
                                new.expire_time,
                                new.replaces,
                            )
                            for new in made
                        ),
                        7,
                    ),
                ),
            ),
            Statement(statements.INSERT_LINES, columns(lines, 7)),
            Statement(statements.INSERT_CLAIMS, columns(claims, 3)),
            Statement(
                statements.ADD_TO_TOTALS,
                columns(
                    (
                        (*total, quantity, limit, pools.limits.get(total[0]))
                        for (*total, limit), quantity in owned.items()
                    ),
                    6,
                ),
            ),
        ],
        now=now,
    )
    if counts[0] != len(made):
        raise RacedError
    if counts != [len(made), len(lines), len(claims), len(owned)]:
        raise RuntimeError("a guard refused a request that was accepted under its lock")


def _reading_existing(requests: Mapping[int, Reservation]) -> Statement:
    rows = (
        (n, request.event_id, request.reservation_id, request.request_key)
        for n, request in requests.items()
    )
    return Statement(statements.EXISTING, columns(rows, 4))


def _existing_from(result: Result) -> dict[int, Reservation]:
    """The live reservation with a request's key, or else the one with its id, by its number."""
    # The one with the key comes last.
    return {number: from_row(row) for number, *row in result.rows}


async def _explain(connection: AsyncConnection, batch: _Batch) -> None:
    """Adds the outcomes of the refused requests, with every line at fault.

    Reads the holders of taken seats, and what customers own of offers that a request of several
    lines has as well. A request for places of one offer is refused without a read.
    """
    if not batch.refused:
        return
    seat_keys, total_keys = set(), set()
    for refused in batch.refused.values():
        request = refused.demand.request
        seat_keys |= {(request.event_id, seat_id) for seat_id in refused.seats.values()}
        if len(refused.failed) < len(request.lines):
            total_keys |= {refused.demand.total_of(offer_id) for offer_id in refused.demand.terms}
    holders: dict[Key, tuple[str | None, UUID | None]] = {}
    totals: dict[tuple[UUID, UUID, UUID], int] = {}
    if seat_keys or total_keys:
        seats, owned = await run_together(
            connection,
            [
                Statement(statements.TAKEN_SEATS, columns(sorted(seat_keys), 2)),
                Statement(statements.TOTALS, columns(sorted(total_keys), 3)),
            ],
        )
        holders = {(row[0], row[1]): (row[2], row[3]) for row in seats.rows}
        totals = {(row[0], row[1], row[2]): row[3] for row in owned.rows}
    for n, refused in batch.refused.items():
        batch.outcomes[n] = allocation.error_of(refused, holders, totals)


async def _add_lines(connection: AsyncConnection, batch: _Batch) -> None:
    """Reads the lines of existing reservations."""
    existing_reservations = {
        n: existing
        for n in batch.repeated
        if isinstance(existing := batch.outcomes[n], Reservation)
    }
    if not existing_reservations:
        return
    keys = sorted({(r.event_id, r.reservation_id) for r in existing_reservations.values()})
    [result] = await run_together(connection, [Statement(statements.LINES, columns(keys, 2))])
    lines: dict[Key, list[Line]] = {}
    for event_id, reservation_id, _, *line in result.rows:
        lines.setdefault((event_id, reservation_id), []).append(Line(*line))
    for n, existing in existing_reservations.items():
        key = (existing.event_id, existing.reservation_id)
        batch.outcomes[n] = replace(existing, lines=tuple(lines[key]))
