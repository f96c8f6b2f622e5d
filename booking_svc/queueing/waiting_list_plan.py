"""Who is offered what: a pure function over the entries that wait and the free places.

The rule: strict order of joining in each pool. An entry that cannot be served, because its group
does not fit or because one in front keeps another of its pools, keeps the places of the pools in
which it is in front from all behind it while they gather, `gather` long from the first place that
came back in any of them. Then its turn is over: those behind it that fit are served in their order,
and what fits nobody is open to everybody. The entry keeps its place, and gathers anew what comes
back later. So a smaller group cannot pass a bigger one within `gather`, and no place is kept from
others for longer for one entry.
"""

from collections.abc import Collection, Mapping, Sequence
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
    each offer that sells seats, in the order of the auditorium. `plan` takes from it."""

    free: dict[UUID, int]
    kept: dict[UUID, int]
    seats: dict[UUID, list[Seat]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Plan:
    """`offers` has the lines of each entry to serve, in order. `gathering` begins for some entries,
    and ends for others with None; it next ends at `gather_end`. `opened` are the pools whose free
    places are open to everybody."""

    offers: Sequence[tuple[Entry, tuple[Line, ...]]]
    gathering: Mapping[UUID, datetime | None]
    gather_end: datetime | None
    opened: frozenset[UUID]


def plan(
    entries: Sequence[Entry],
    event: Event,
    places: Places,
    *,
    gather: timedelta,
    most_offers: int,
    now: datetime,
    refused: Collection[UUID] = (),
) -> Plan:
    """Plans offers for the entries that wait, which are given in the order of joining.

    `refused` are entries that the ledger has refused for good: they keep no places from others.
    """
    offers: list[tuple[Entry, tuple[Line, ...]]] = []
    gathering: dict[UUID, datetime | None] = {}
    ends: list[datetime] = []
    # Pools in which those behind get nothing yet, and pools whose places have gathered long
    # enough: they do not gather again for those behind.
    blocked: set[UUID] = set()
    gathered: set[UUID] = set()
    skipped: set[UUID] = set()
    for entry in entries:
        if len(offers) == most_offers:
            return Plan(offers, gathering, min(ends, default=None), frozenset())
        needed = entry.by_pool(event)
        if entry.entry_id in refused:
            skipped |= needed.keys()
            if entry.gather_since is not None:
                gathering[entry.entry_id] = None
            continue
        # The pools in which it is in front.
        own = needed.keys() - blocked
        if len(own) == len(needed) and (lines := _take(entry, needed, places)) is not None:
            offers.append((entry, lines))
            continue
        # It keeps places from those behind only while they gather for it.
        is_keeping = any(places.kept.get(pool_id, 0) > 0 for pool_id in own - gathered)
        since = entry.gather_since or now
        if is_keeping and now < since + gather:
            if entry.gather_since is None:
                gathering[entry.entry_id] = since
            ends.append(since + gather)
            blocked |= own - gathered
            continue
        if entry.gather_since is not None:
            gathering[entry.entry_id] = None
        if is_keeping:
            gathered |= own
        else:
            # What is free is open to everybody, or has gathered, or there is nothing.
            blocked |= own - gathered
    passed = (gathered | skipped) - blocked
    opened = frozenset(pool_id for pool_id in passed if places.kept.get(pool_id, 0) > 0)
    return Plan(offers, gathering, min(ends, default=None), opened)


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
