"""Who is offered what: a pure function over the entries that wait and the free places.

The rule: strict order of joining in each pool. An entry that cannot be served, because its group
does not fit or because one in front keeps another of its pools, keeps the places of the pools in
which it is in front from all behind it while they gather: `gather` long from the first place that
came back in the pool, whoever is in front meanwhile. Then those behind it that fit are served in
their order, and what fits nobody is open to everybody. The entry keeps its place, and what comes
back later gathers anew. So no pool keeps places from everybody for longer than `gather`, whatever
its entries do, and a smaller group passes a bigger one after that time only.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import UUID

from booking_svc.catalogue.events import Event
from booking_svc.clients.ports import Line
from booking_svc.queueing.waiting_list_entries import Entry


@dataclass(frozen=True, slots=True)
class Seat:
    """A free seat; `row` and `index` are its place in the auditorium."""

    seat_id: UUID
    row: int
    index: int


@dataclass(slots=True)
class Places:
    """The free places of each pool, how many of them are kept for the list, and the free seats of
    each offer that sells seats, in the order of the auditorium. `Planner` takes from it."""

    free: dict[UUID, int]
    kept: dict[UUID, int]
    seats: dict[UUID, list[Seat]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plan:
    """`offers` has the lines of each entry to serve, in order. `gathering` has the pools whose
    places gather and since when; it next ends at `gather_end`. `opened` are the pools whose free
    places are open to everybody."""

    offers: Sequence[tuple[Entry, tuple[Line, ...]]]
    gathering: Mapping[UUID, datetime]
    gather_end: datetime | None
    opened: frozenset[UUID]


class Planner:
    """Plans offers for the entries that wait, which `add` is given in the order of joining.

    `gathering` is that of the plan before. `refused` are entries that the ledger has refused for
    good: they keep no places from others.
    """

    def __init__(
        self,
        event: Event,
        places: Places,
        *,
        gathering: Mapping[UUID, datetime],
        gather: timedelta,
        most_offers: int,
        now: datetime,
        refused: Collection[UUID] = (),
    ) -> None:
        self._event = event
        self._places = places
        self._gather = gather
        self._most_offers = most_offers
        self._now = now
        self._refused = refused
        self._offers: list[tuple[Entry, tuple[Line, ...]]] = []
        # It ends when all kept places of the pool have gone, or are open to everybody: not when
        # entries leave, or others come in front.
        self._gathering = {
            pool_id: since for pool_id, since in gathering.items() if places.kept.get(pool_id, 0)
        }
        # Pools in which those behind get nothing yet, and pools whose places have gathered long
        # enough: nobody keeps these from those behind.
        self._blocked: set[UUID] = set()
        self._gathered: set[UUID] = set()
        self._skipped: set[UUID] = set()

    @property
    def is_full(self) -> bool:
        return len(self._offers) >= self._most_offers

    @property
    def undecided(self) -> set[UUID]:
        """Pools with free places in which nobody yet was in front without being served."""
        free = {pool_id for pool_id, count in self._places.free.items() if count > 0}
        return free - self._blocked - self._gathered

    @property
    def obtainable(self) -> dict[UUID, int]:
        """How many places of each offer the next entry could get, of offers that have any."""
        return {
            offer.offer_id: count
            for offer in self._event.offers
            if offer.pool_id not in self._blocked
            and (count := self._places.free.get(offer.pool_id, 0)) > 0
        }

    def add(self, entries: Iterable[Entry]) -> None:
        """Plans for further entries: all that wait for one of `undecided`, or could be served."""
        for entry in entries:
            if self.is_full:
                return
            needed = entry.by_pool(self._event)
            if entry.entry_id in self._refused:
                self._skipped |= needed.keys()
                continue
            # The pools in which it is in front.
            own = needed.keys() - self._blocked
            if len(own) == len(needed):
                lines = _take(entry, needed, self._places)
                if lines is not None:
                    self._offers.append((entry, lines))
                    continue
            for pool_id in own - self._gathered:
                self._keep(pool_id)

    def _keep(self, pool_id: UUID) -> None:
        """Keeps the places of a pool for the entry in front, unless they have gathered."""
        if self._places.kept.get(pool_id, 0) > 0:
            since = self._gathering.setdefault(pool_id, self._now)
            if self._now >= since + self._gather:
                self._gathered.add(pool_id)
                return
        # Also if nothing is kept: what is free is open to everybody.
        self._blocked.add(pool_id)

    def plan(self) -> Plan:
        kept = {pool_id for pool_id, count in self._places.kept.items() if count > 0}
        ends = [
            self._gathering[pool_id] + self._gather
            for pool_id in kept & self._blocked & self._gathering.keys()
        ]
        opened: set[UUID] = set()
        if not self.is_full:
            opened = ((self._gathered | self._skipped) - self._blocked) & kept
        gathering = {
            pool_id: since for pool_id, since in self._gathering.items() if pool_id not in opened
        }
        return Plan(self._offers, gathering, min(ends, default=None), frozenset(opened))


def _take(entry: Entry, needed: Mapping[UUID, int], places: Places) -> tuple[Line, ...] | None:
    """Takes the places of an entry; None, and nothing is taken, if they are not all there."""
    if any(places.free.get(pool_id, 0) < quantity for pool_id, quantity in needed.items()):
        return None
    lines: list[Line] = []
    taken: set[UUID] = set()
    for item in entry.items:
        if item.offer_id not in places.seats:
            lines.append(Line(item.offer_id, item.quantity))
            continue
        # Several offers can sell the same seats.
        free = [seat for seat in places.seats[item.offer_id] if seat.seat_id not in taken]
        if len(free) < item.quantity:
            return None
        chosen = best(free, item.quantity)
        taken |= {seat.seat_id for seat in chosen}
        lines += [Line(item.offer_id, 1, seat.seat_id) for seat in chosen]
    for pool_id, quantity in needed.items():
        places.free[pool_id] -= quantity
        places.kept[pool_id] = max(0, places.kept.get(pool_id, 0) - quantity)
    if taken:
        for offer_id, seats in places.seats.items():
            places.seats[offer_id] = [seat for seat in seats if seat.seat_id not in taken]
    return tuple(lines)


def best(seats: Sequence[Seat], quantity: int) -> Sequence[Seat]:
    """The first seats next to each other in a row, or else the first ones.

    `seats` are in the order of the auditorium. Seats of other types between two of them, and
    seats that are taken, separate them.
    """
    run: list[Seat] = []
    for seat in seats:
        is_next = run and (seat.row, seat.index) == (run[-1].row, run[-1].index + 1)
        run = [*run, seat] if is_next else [seat]
        if len(run) == quantity:
            return run
    return seats[:quantity]
