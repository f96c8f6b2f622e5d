"""Who is offered what: the rule of waiting_list_plan.py as a pure function."""

from collections.abc import Collection, Mapping, Sequence
from datetime import datetime, timedelta
from uuid import UUID

import pytest

from booking_svc.catalogue import cancellation_policy
from booking_svc.catalogue.events import Event, Offer, StaffStatus
from booking_svc.queueing.waiting_list_entries import Entry, Item, State
from booking_svc.queueing.waiting_list_plan import Places, Plan, Planner, Seat, best
from mesh.ids import new_id
from mesh.money import Money
from testing.booking_harness import START

FLOOR, BALCONY = UUID(int=1), UUID(int=2)
GATHER = timedelta(minutes=15)
OFFERS = tuple(
    Offer(UUID(int=10 + n), name, Money(1, "INR"), pool_id, 100, None, 10, 10)
    for n, (name, pool_id) in enumerate((("Floor", FLOOR), ("Balcony", BALCONY)))
)
EVENT = Event(
    event_id=new_id(),
    name="Monsoon Nights",
    description="",
    production_id=None,
    auditorium_id=None,
    venue_id=None,
    venue_name=None,
    time_zone="UTC",
    start_time=None,
    end_time=None,
    sale_start_time=START,
    sale_end_time=None,
    staff_status=StaffStatus.OPEN,
    currency_code="INR",
    offers=OFFERS,
    cancellation_policy=cancellation_policy.standard(is_dated=False),
    total_capacity=200,
    revision=1,
    create_time=START,
    update_time=START,
)


def entries(*groups: Sequence[int]) -> list[Entry]:
    """Entries in the order of joining; each group has its places of Floor and of Balcony."""
    made = []
    for number, group in enumerate(groups, start=1):
        items = tuple(
            Item(offer.offer_id, quantity)
            for offer, quantity in zip(OFFERS, group, strict=False)
            if quantity
        )
        made.append(
            Entry(
                entry_id=new_id(),
                event_id=EVENT.event_id,
                number=number,
                customer_id=new_id(),
                state=State.WAITING,
                items=items,
                pool_ids=(),
                offer_number=0,
                lines=(),
                reservation_id=None,
                offer_time=None,
                offer_expire_time=None,
                hold_expire_time=None,
                is_release_due=False,
                booking_id=None,
                end_reason=None,
                create_time=START,
                update_time=START,
            )
        )
    return made


def planned(
    waiting: list[Entry],
    floor: int,
    balcony: int = 0,
    *,
    at: timedelta = timedelta(0),
    gathering: Mapping[UUID, datetime] | None = None,
    kept: Mapping[UUID, int] | None = None,
    most: int = 9,
    refused: Collection[UUID] = (),
) -> Plan:
    """The plan when so many places are free, all of them kept."""
    free = {FLOOR: floor, BALCONY: balcony}
    planner = Planner(
        EVENT,
        Places(free, dict(free if kept is None else kept)),
        gathering=gathering or {},
        gather=GATHER,
        most_offers=most,
        now=START + at,
        refused=refused,
    )
    planner.add(waiting)
    return planner.plan()


def served(result: Plan) -> list[int]:
    return [entry.number for entry, _ in result.offers]


@pytest.mark.parametrize(
    ("groups", "floor", "balcony", "numbers"),
    [
        ([[1], [1], [1]], 2, 0, [1, 2]),
        ([[2], [1]], 1, 0, []),
        ([[2], [1]], 3, 0, [1, 2]),
        # A group blocks all pools that it needs, and no others.
        ([[2], [0, 1]], 1, 1, [2]),
        ([[2, 1], [0, 1]], 1, 1, []),
        ([[1, 1], [0, 1], [1]], 0, 1, []),
        ([[2], [1, 1], [0, 1]], 1, 1, []),
    ],
)
def test_strict_order_in_each_pool(
    groups: list[list[int]], floor: int, balcony: int, numbers: list[int]
) -> None:
    assert served(planned(entries(*groups), floor, balcony)) == numbers


def test_places_gather_for_the_group_in_front_for_a_time_and_once() -> None:
    waiting = entries([3], [1], [3], [2])
    first = planned(waiting, 2)
    assert served(first) == []
    assert first.gathering == {FLOOR: START}
    assert first.gather_end == START + GATHER
    early = planned(waiting, 2, at=GATHER - timedelta(seconds=1), gathering=first.gathering)
    assert (served(early), early.opened) == ([], frozenset())
    assert early.gathering == first.gathering
    # After it, those behind are served in order, and what fits nobody is open to everybody.
    late = planned(waiting, 2, at=GATHER, gathering=early.gathering)
    assert served(late) == [2]
    assert late.opened == {FLOOR}
    assert late.gathering == {}
    assert served(planned(waiting, 3, at=GATHER, gathering=early.gathering)) == [1]


def test_nothing_gathers_while_nothing_is_kept() -> None:
    result = planned(entries([3], [1]), 1, kept={}, gathering={FLOOR: START})
    assert (served(result), result.gathering, result.opened) == ([], {}, frozenset())


def test_a_pool_gathers_for_a_time_whoever_is_in_front() -> None:
    gathering: Mapping[UUID, datetime] = {}
    for minute in range(15):
        # Each minute the group in front leaves, and another one joins.
        result = planned(entries([3], [2]), 1, at=timedelta(minutes=minute), gathering=gathering)
        assert (served(result), result.opened) == ([], frozenset())
        gathering = result.gathering
    assert gathering == {FLOOR: START}
    result = planned(entries([3], [2]), 1, at=GATHER, gathering=gathering)
    assert result.opened == {FLOOR}
    assert result.gathering == {}


def test_what_a_served_group_leaves_does_not_gather_anew() -> None:
    waiting = entries([2], [2])
    result = planned(waiting, 3, at=timedelta(minutes=10), gathering={FLOOR: START})
    assert served(result) == [1]
    assert (result.gathering, result.gather_end) == ({FLOOR: START}, START + GATHER)
    # Until the ledger no longer keeps any.
    assert planned(waiting[1:], 0, gathering=result.gathering).gathering == {}


def test_a_pool_gathers_also_for_one_behind_a_sold_out_pool() -> None:
    waiting = entries([1], [1, 1], [1, 3])
    first = planned(waiting, 0, 2)
    assert (served(first), first.opened) == ([], frozenset())
    assert first.gathering == {BALCONY: START}
    assert first.gather_end == START + GATHER
    late = planned(waiting, 0, 2, at=GATHER, gathering=first.gathering)
    assert (served(late), late.opened) == ([], frozenset({BALCONY}))
    assert late.gathering == {}


def test_each_pool_gathers_in_its_own_time() -> None:
    waiting = entries([2], [1, 1], [0, 1])
    later = START + timedelta(minutes=1)
    assert planned(waiting, 1, 1).gathering == {FLOOR: START, BALCONY: START}
    # The floor still gathers for the first; the balcony has gathered for the second.
    late = planned(waiting, 1, 1, at=GATHER, gathering={FLOOR: later, BALCONY: START})
    assert (served(late), late.opened) == ([3], frozenset())
    assert late.gathering == {FLOOR: later, BALCONY: START}
    assert late.gather_end == later + GATHER
    # The first keeps nothing any more: both pools are the second's.
    late = planned(
        waiting[:2],
        1,
        1,
        at=GATHER + timedelta(minutes=1),
        gathering={FLOOR: later, BALCONY: later},
    )
    assert served(late) == [2]


def test_a_pool_that_has_gathered_does_not_end_the_gathering_of_another() -> None:
    waiting = entries([2], [2, 2], [1])
    result = planned(waiting, 1, 1, gathering={FLOOR: START - GATHER})
    assert (served(result), result.opened) == ([3], frozenset())
    assert result.gathering == {FLOOR: START - GATHER, BALCONY: START}


def test_an_entry_refused_for_good_keeps_nothing_from_others() -> None:
    waiting = entries([1], [1], [1])
    numbers = {waiting[0].entry_id, waiting[2].entry_id}
    result = planned(waiting, 2, refused=numbers)
    assert (served(result), result.opened) == ([2], frozenset({FLOOR}))


def test_a_round_has_a_limit() -> None:
    assert served(planned(entries(*[[1]] * 5), 5, most=3)) == [1, 2, 3]


def seats(*places: tuple[int, int]) -> list[Seat]:
    return [Seat(new_id(), row, index) for row, index in places]


@pytest.mark.parametrize(
    ("free", "quantity", "chosen"),
    [
        ([(0, 0), (0, 2), (0, 3)], 2, [1, 2]),
        ([(0, 8), (1, 9), (1, 10)], 2, [1, 2]),
        ([(0, 0), (0, 1), (0, 2)], 2, [0, 1]),
        ([(0, 0), (0, 2), (1, 4)], 2, [0, 1]),
        ([(0, 5)], 1, [0]),
    ],
)
def test_seats_next_to_each_other(
    free: list[tuple[int, int]], quantity: int, chosen: list[int]
) -> None:
    made = seats(*free)
    assert list(best(made, quantity)) == [made[n] for n in chosen]
