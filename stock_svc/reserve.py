"""Reserving: many requests in one transaction, each with its own outcome.

Three round trips, however many requests: read without locks what can be refused at once;
lock the pools in sorted order and read what is exact from then on; write what was granted.
Requests are served in their order, each all or nothing; that one is refused changes nothing
for another. Order of locks: lapsed reservations, pools, then the new request keys.
"""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.db import outbox
from mesh.db.batches import RacedError
from mesh.db.outbox import NewEvent
from mesh.db.pipeline import FORCE_INDEX_SCANS, Result, Statement, columns, run_together
from mesh.errors import DomainError, Reason
from stock_svc import demand, expiry, statements
from stock_svc.demand import Demand, EventTerms, Key, OfferTerms, SeatTerms
from stock_svc.granting import Locked, decide, short
from stock_svc.outbox import PoolNow, SeatNow, messages
from stock_svc.reservation import Line, Reservation
from stock_svc.states import SeatState

# Lapsed holds that one transaction clears out of its way at a time.
CLEARED_AT_ONCE = 1000

Outcome = Reservation | DomainError


async def reserve_all(
    connection: AsyncConnection, wanted: Sequence[Reservation], *, now: datetime
) -> list[Outcome]:
    """Makes the reservations that can be made; the outcome of each, in order.

    The same request again, by its key or by its id, gets the first reservation. Outcomes may
    be EVENT_NOT_FOUND, OFFER_NOT_FOUND, SEAT_NOT_FOUND, SOLD_OUT, SEAT_UNAVAILABLE,
    PURCHASE_LIMIT_EXCEEDED, IDEMPOTENCY_KEY_REUSED or VALIDATION_FAILED. Raises RacedError:
    then the transaction must be undone.
    """
    wanted = [replace(one, create_time=now, update_time=now) for one in wanted]
    outcomes: dict[int, Outcome] = {}
    left = list(range(len(wanted)))
    while left:
        # Of equal keys one at a time: the next finds what became of the one before.
        wave = _without_equals(wanted, left)
        found = await _reserve_wave(connection, [wanted[n] for n in wave], now)
        outcomes |= dict(zip(wave, found, strict=True))
        left = [n for n in left if n not in outcomes]
    return [outcomes[n] for n in range(len(wanted))]


def _without_equals(wanted: Sequence[Reservation], left: Sequence[int]) -> list[int]:
    seen: set[tuple[UUID, object]] = set()
    wave = []
    for n in left:
        keys: set[tuple[UUID, object]] = {
            (wanted[n].event_id, wanted[n].request_key),
            (wanted[n].event_id, wanted[n].reservation_id),
        }
        if not keys & seen:
            wave.append(n)
        seen |= keys
    return wave


@dataclass(slots=True)
class _Wave:
    """Requests on their way: `open` are those without an outcome yet, by their numbers, and
    `repeated` those that get an earlier reservation."""

    wanted: Sequence[Reservation]
    now: datetime
    outcomes: dict[int, Outcome] = field(default_factory=dict)
    open: dict[int, Demand] = field(default_factory=dict)
    events: dict[UUID, EventTerms] = field(default_factory=dict)
    repeated: set[int] = field(default_factory=set)

    def events_of_open(self) -> set[UUID]:
        """Known events; one whose stock was removed just now is not, and is refused later."""
        return {one.wanted.event_id for one in self.open.values()} & self.events.keys()

    def settle_first(self, n: int, first: Reservation) -> bool:
        """Answers a repeated request by its first reservation; not by one that has lapsed."""
        if first.has_lapsed(self.now):
            return False
        if first.fingerprint == self.wanted[n].fingerprint:
            self.outcomes[n] = first
            self.repeated.add(n)
        else:
            self.outcomes[n] = DomainError(
                Reason.IDEMPOTENCY_KEY_REUSED, "this request key was used for other lines"
            )
        self.open.pop(n, None)
        return True

    def refuse(self, n: int, refusal: DomainError) -> None:
        self.outcomes[n] = refusal
        self.open.pop(n, None)


async def _reserve_wave(
    connection: AsyncConnection, wanted: Sequence[Reservation], now: datetime
) -> list[Outcome]:
    wave = _Wave(wanted, now)
    lapsed = await _look(connection, wave)
    while wave.open:
        pools = _pools(wave)
        cleared = 0
        if lapsed:
            cleared = await expiry.clear(
                connection, event_ids=lapsed, also_lock=pools, limit=CLEARED_AT_ONCE, now=now
            )
        locked = await _lock(connection, wave, pools)
        refusals, granted = decide(wave.open, locked)
        if refusals and cleared == CLEARED_AT_ONCE:
            continue  # There may be more lapsed holds in the way.
        await _write(connection, granted, locked, now)
        wave.outcomes |= {n: one.wanted for n, one in wave.open.items() if n not in refusals}
        wave.outcomes |= refusals
        break
    await _add_lines(connection, wave)
    return [wave.outcomes[n] for n in range(len(wanted))]


def _pools(wave: _Wave) -> set[Key]:
    """Those whose locks make everything exact: all of an event that has a limit of its own."""
    wanted = {pool for one in wave.open.values() for pool in one.by_pool}
    return wanted.union(*(wave.events[event_id].pools for event_id in wave.events_of_open()))


async def _look(connection: AsyncConnection, wave: _Wave) -> frozenset[UUID]:
    """Answers what needs no lock. Returns the events that have lapsed holds.

    The many who come too late are refused here, without a write or a wait.
    """
    event_ids = sorted({one.event_id for one in wave.wanted})
    offer_keys = sorted({(o.event_id, line.offer_id) for o in wave.wanted for line in o.lines})
    seat_keys = sorted({seat for one in wave.wanted for seat in demand.seats_of(one)})
    # In this order: a hold that lapsed is known before the places are counted, and of two
    # equal requests the second finds the first if that one took the last places.
    _, lapsed, offers, seats, known, *firsts = await run_together(
        connection,
        [
            FORCE_INDEX_SCANS,
            Statement(statements.LAPSED, (event_ids, wave.now)),
            Statement(statements.OFFERS, columns(offer_keys, 2)),
            Statement(statements.SEATS, columns(seat_keys, 2)),
            Statement(statements.KNOWN_EVENTS, (event_ids,)),
            *_firsts(dict(enumerate(wave.wanted))),
        ],
    )
    offer_terms = {(row[0], row[1]): OfferTerms(*row[2:]) for row in offers.rows}
    seat_terms = {(row[0], row[1]): SeatTerms(*row[2:]) for row in seats.rows}
    with_lapsed = frozenset(row[0] for row in lapsed.rows)
    wave.events = {
        row[0]: EventTerms(row[1], frozenset((row[0], pool_id) for pool_id in row[2] or ()))
        for row in known.rows
    }
    first_of = _firsts_from(firsts)
    for n, one in enumerate(wave.wanted):
        if n in first_of and wave.settle_first(n, first_of[n]):
            continue
        try:
            wave.open[n] = demand.of_request(
                one, offers=offer_terms, seats=seat_terms, is_known=one.event_id in wave.events
            )
        except DomainError as refusal:
            wave.refuse(n, refusal)
            continue
        if n not in first_of and one.event_id not in with_lapsed:
            free = {
                (one.event_id, terms.pool_id): terms.free for terms in wave.open[n].terms.values()
            }
            taken = [seat for seat in wave.open[n].seats if seat_terms[seat].taken]
            if (too_little := short(wave.open[n], free, taken)) is not None:
                wave.refuse(n, too_little)
    return with_lapsed


async def _lock(connection: AsyncConnection, wave: _Wave, pools: set[Key]) -> Locked:
    """Locks the pools and reads what nobody else can change from then on.

    Whoever changes a total or a seat claim holds the lock of its pool; whoever changes an
    event's limit, the locks of all its pools.
    """
    seat_keys = sorted({seat for one in wave.open.values() for seat in one.seats})
    total_keys = sorted(
        {
            (one.wanted.event_id, offer_id, one.wanted.customer_id)
            for one in wave.open.values()
            for offer_id in one.by_offer
        }
    )
    event_ids = sorted({event_id for event_id, _ in pools})
    limited = {
        event_id
        for event_id in wave.events_of_open()
        if wave.events[event_id].per_customer_limit is not None
    }
    customers = {
        (one.wanted.event_id, one.wanted.customer_id)
        for one in wave.open.values()
        if one.wanted.event_id in limited
    }
    found, totals, seats, versions, *others = await run_together(
        connection,
        [
            Statement(statements.LOCK_POOLS, columns(sorted(pools), 2)),
            Statement(statements.TOTALS, columns(total_keys, 3)),
            Statement(statements.SEATS, columns(seat_keys, 2)),
            Statement(statements.VERSIONS, (event_ids,)),
            *_firsts({n: one.wanted for n, one in wave.open.items()}),
            *_event_totals(customers),
        ],
    )
    limits = {row[0]: row[2] for row in versions.rows if row[2] is not None}
    if not limits.keys() <= limited:
        raise RacedError  # The event has just got its limit: its other pools are not locked.
    for n, first in _firsts_from(others[:2]).items():
        wave.settle_first(n, first)
    locked = {(row[0], row[1]): PoolNow(*row) for row in found.rows}
    seat_terms = {(row[0], row[1]): SeatTerms(*row[2:]) for row in seats.rows}
    return Locked(
        pools=locked,
        free={key: pool.capacity - pool.held - pool.sold for key, pool in locked.items()},
        totals=Counter({(row[0], row[1], row[2]): row[3] for row in totals.rows}),
        seats=seat_terms,
        taken={key for key in seat_keys if key not in seat_terms or seat_terms[key].taken},
        versions={row[0]: row[1] or 0 for row in versions.rows},
        limits=limits,
        event_totals=Counter({(row[0], row[1]): row[2] for row in others[2].rows})
        if customers
        else Counter(),
    )


async def _write(
    connection: AsyncConnection, granted: Sequence[Demand], locked: Locked, now: datetime
) -> None:
    """Writes what was granted. The statements test everything again, in themselves."""
    if not granted:
        return
    held, entries = Counter[Key](), Counter[Key]()
    owned = Counter[tuple[UUID, UUID, UUID, int]]()
    for one in granted:
        held.update(one.by_pool)
        entries.update(one.by_pool.keys())
        for offer_id, quantity in one.by_offer.items():
            limit = one.terms[offer_id].per_customer_limit
            owned[one.wanted.event_id, offer_id, one.wanted.customer_id, limit] += quantity
    made = sorted((one.wanted for one in granted), key=lambda new: (new.event_id, new.request_key))
    lines = [
        (new.event_id, new.reservation_id, number, line.offer_id, one.pool_of(line), line.seat_id,
         line.quantity)
        for one in granted
        for new in [one.wanted]
        for number, line in enumerate(new.lines)
    ]  # fmt: skip
    claims = [
        (event, one.wanted.reservation_id, seat) for one in granted for event, seat in one.seats
    ]
    movements = [
        (event_id, pool_id, "RESERVE", 0, quantity, 0, one.wanted.reservation_id)
        for one in granted
        for (event_id, pool_id), quantity in one.by_pool.items()
    ]
    changes = _changes(granted, held, entries, locked)
    results = await run_together(
        connection,
        [
            Statement(
                statements.INSERT_RESERVATIONS,
                (
                    now,
                    [new.event_id for new in made],
                    [new.reservation_id for new in made],
                    [new.customer_id for new in made],
                    [new.request_key for new in made],
                    [new.fingerprint for new in made],
                    [new.expire_time for new in made],
                    [new.replaces for new in made],
                ),
            ),
            Statement(statements.INSERT_LINES, columns(lines, 7)),
            Statement(statements.INSERT_CLAIMS, columns(claims, 3)),
            Statement(
                statements.ADD_TO_TOTALS,
                columns(
                    (
                        (*key[:3], count, key[3], locked.limits.get(key[0]))
                        for key, count in owned.items()
                    ),
                    6,
                ),
            ),
            Statement(statements.INSERT_MOVEMENTS, (now, *columns(movements, 7))),
            Statement(
                statements.CHANGE_POOLS,
                columns(((*key, 0, count, 0, entries[key]) for key, count in held.items()), 6),
            ),
            outbox.insertion(connection, changes, now=now),
        ],
    )
    if results[0].count != len(made):
        raise RacedError
    expected = [len(made), len(lines), len(claims), len(owned), len(movements), len(held)]
    if [result.count for result in results[:6]] != expected:
        raise RuntimeError("a guard refused what was granted under its lock")


def _changes(
    granted: Sequence[Demand], held: Counter[Key], entries: Counter[Key], locked: Locked
) -> list[NewEvent]:
    """What other services are told: the counters are known, since the pools are locked."""
    pools = [
        PoolNow(
            *key, now.capacity, now.held + count, now.sold, now.version + entries[key]
        )
        for key, count in held.items()
        for now in [locked.pools[key]]
    ]  # fmt: skip
    seats = [SeatNow(*seat, SeatState.HELD) for one in granted for seat in one.seats]
    versions = dict(locked.versions)
    for (event_id, _), count in entries.items():
        versions[event_id] += count
    return messages(pools, seats, versions)


def _event_totals(customers: Collection[tuple[UUID, UUID]]) -> list[Statement]:
    """None for events without a limit of their own, which most are."""
    if not customers:
        return []
    return [Statement(statements.EVENT_TOTALS, columns(sorted(customers), 2))]


def _firsts(wanted: Mapping[int, Reservation]) -> list[Statement]:
    by_id = [(n, one.event_id, one.reservation_id) for n, one in wanted.items()]
    by_key = [(n, one.event_id, one.request_key) for n, one in wanted.items()]
    return [
        Statement(statements.FIRST_BY_ID, columns(by_id, 3)),
        Statement(statements.FIRST_BY_KEY, columns(by_key, 3)),
    ]


def _firsts_from(results: Sequence[Result]) -> dict[int, Reservation]:
    """The reservation that has a request's key, or else its id, by the request's number."""
    return {row[0]: statements.reservation(row[1:]) for result in results for row in result.rows}


async def _add_lines(connection: AsyncConnection, wave: _Wave) -> None:
    """The first reservations of repeated requests with their lines, which were not read yet."""
    firsts = {n: first for n in wave.repeated if isinstance(first := wave.outcomes[n], Reservation)}
    if not firsts:
        return
    keys = sorted({(first.event_id, first.reservation_id) for first in firsts.values()})
    [found] = await run_together(connection, [Statement(statements.LINES, columns(keys, 2))])
    lines: dict[Key, list[Line]] = {}
    for event_id, reservation_id, _, *line in found.rows:
        lines.setdefault((event_id, reservation_id), []).append(Line(*line))
    for n, first in firsts.items():
        its_lines = tuple(lines[first.event_id, first.reservation_id])
        wave.outcomes[n] = replace(first, lines=its_lines)
