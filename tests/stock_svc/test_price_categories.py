"""Several offers that sell the same seats: each seat is sold once, whatever the offer."""

import asyncio
from collections import Counter

import pytest

from mesh.db.database import Database
from mesh.errors import DomainError, Reason
from mesh.ids import new_id
from stock_svc.stock import Offer, Pool, Seat
from stock_svc.stock_update import TargetStock
from testing.stock_harness import Sale, on_sale

BUYERS = 20


async def a_hall(
    database: Database, *, per_customer_limit: int = 10, event_limit: int | None = None
) -> Sale:
    """Three seats, sold to adults and to children."""
    return await on_sale(
        database,
        offers={"adult": "stalls", "child": "stalls"},
        seats={"adult": ["A1", "A2", "A3"]},
        per_customer_limit=per_customer_limit,
        event_limit=event_limit,
    )


async def refused(sale: Sale, *arguments: object, **details: object) -> DomainError:
    with pytest.raises(DomainError) as error:
        await sale.reserve(*arguments, **details)  # type: ignore[arg-type]
    return error.value


async def test_each_offer_sells_each_seat_once(database: Database) -> None:
    sale = await a_hall(database)
    adult, child = sale.line("adult", seat="A1"), sale.line("child", seat="A2")
    held = await sale.reserve(adult, child)
    for offer in ("adult", "child"):
        for seat in ("A1", "A2"):
            error = await refused(sale, sale.line(offer, seat=seat))
            assert error.reason is Reason.SEAT_UNAVAILABLE
    await sale.commit(held.reservation_id)
    availability = await sale.availability()
    assert {offer.available for offer in availability.offers} == {1}
    assert Counter(seat.state for seat in availability.seats) == {"SOLD": 2, "AVAILABLE": 1}
    await sale.return_sold(held.reservation_id)
    await sale.reserve(sale.line("child", seat="A1"))
    await sale.assert_clean()


async def test_places_without_a_seat_and_seats_of_other_pools_are_refused(
    database: Database,
) -> None:
    sale = await on_sale(
        database,
        offers={"adult": "stalls", "child": "stalls", "high": "balcony"},
        seats={"adult": ["A1"], "high": ["B1"]},
    )
    assert (await refused(sale, sale.line("child"))).reason is Reason.VALIDATION_FAILED
    for offer, seat in (("child", "B1"), ("high", "A1")):
        error = await refused(sale, sale.line(offer, seat=seat))
        assert error.reason is Reason.SEAT_NOT_FOUND
    await sale.assert_clean()


async def test_buyers_of_one_seat_at_two_offers(database: Database) -> None:
    sale = await a_hall(database)
    lines = [sale.line(("adult", "child")[n % 2], seat="A1") for n in range(BUYERS)]
    outcomes = await asyncio.gather(*map(sale.reserve, lines), return_exceptions=True)
    refusals = [outcome for outcome in outcomes if isinstance(outcome, DomainError)]
    assert len(outcomes) - len(refusals) == 1
    assert {refusal.reason for refusal in refusals} == {Reason.SEAT_UNAVAILABLE}
    await sale.assert_clean()


async def test_limits_count_each_offer_and_the_events_limit_all(database: Database) -> None:
    sale = await a_hall(database, per_customer_limit=1, event_limit=2)
    customer = new_id()
    await sale.reserve(sale.line("child", seat="A1"), customer_id=customer)
    error = await refused(sale, sale.line("child", seat="A2"), customer_id=customer)
    assert error.reason is Reason.PURCHASE_LIMIT_EXCEEDED
    assert error.metadata["offer_id"] == str(sale.offers["child"])
    await sale.reserve(sale.line("adult", seat="A2"), customer_id=customer)
    # Both offers allow no more, and neither does the event.
    error = await refused(sale, sale.line("adult", seat="A3"), customer_id=customer)
    assert error.reason is Reason.PURCHASE_LIMIT_EXCEEDED
    await sale.assert_clean()


@pytest.mark.parametrize("is_sold", [False, True])
async def test_a_seat_that_gets_another_offer_is_never_free(
    database: Database, is_sold: bool
) -> None:
    sale = await a_hall(database, per_customer_limit=1)
    held = await sale.reserve(sale.line("adult", seat="A1"))
    if is_sold:
        await sale.commit(held.reservation_id)

    async def change() -> None:
        reservation_id = held.reservation_id
        for n in range(6):
            offer = ("child", "adult")[n % 2]
            changed = await sale.exchange(reservation_id, sale.line(offer, seat="A1"))
            assert changed.state == ("COMMITTED" if is_sold else "ACTIVE")
            reservation_id = changed.reservation_id

    async def try_to_buy() -> None:
        error = await refused(sale, sale.line("child", seat="A1"))
        assert error.reason is Reason.SEAT_UNAVAILABLE

    await asyncio.gather(change(), *(try_to_buy() for _ in range(BUYERS)))
    (seat,) = [seat for seat in (await sale.availability()).seats if seat.state != "AVAILABLE"]
    assert (seat.seat_id, seat.state) == (sale.seats["A1"], "SOLD" if is_sold else "HELD")
    await sale.assert_clean()


async def test_an_update_adds_an_offer_of_seats_on_sale(database: Database) -> None:
    sale = await on_sale(database, seats={"stalls": ["A1", "A2"]})
    await sale.reserve(*sale.lines("A1"))
    student, senior, added = new_id(), new_id(), new_id()
    # Without a new seat, it is sold by seat, too.
    await sale.update(TargetStock(offers=[Offer(senior, sale.pools["stalls"], 1)]))
    target = TargetStock(
        pools=[Pool(sale.pools["stalls"], 3)],
        offers=[Offer(student, sale.pools["stalls"], 1)],
        add_seats=[Seat(added, student)],
    )
    for _ in range(2):
        availability = await sale.update(target)
        assert [(pool.capacity, pool.available) for pool in availability.pools] == [(3, 2)]
    by_student = Sale(
        database,
        sale.event_id,
        sale.pools,
        {**sale.offers, "student": student, "senior": senior},
        {**sale.seats, "A3": added},
        sale.stock,
    )
    for offer in ("student", "senior"):
        without_seat = by_student.line(offer)
        assert (await refused(by_student, without_seat)).reason is Reason.VALIDATION_FAILED
    await by_student.reserve(by_student.line("student", seat="A2"))
    await by_student.reserve(by_student.line("stalls", seat="A3"))
    await sale.assert_clean()
