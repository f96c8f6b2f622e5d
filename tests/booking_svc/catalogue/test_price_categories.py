"""Events whose offers sell the same seats at several prices: their pools, and what can be added."""

from dataclasses import replace

import pytest

from booking_svc.bookings.pricing import RequestedItem
from booking_svc.catalogue.event_update import OfferChange
from mesh.errors import DomainError, Reason
from mesh.money import Money
from testing.booking_harness import BookingHarness, an_offer
from tests.booking_svc.catalogue.test_catalogue import an_auditorium, violated_fields
from tests.booking_svc.catalogue.test_event_update import change, fields, refusal_of

PRICE = Money(40_000, "INR")


@pytest.mark.parametrize("pools", [(None, None, None), ("r", None, "p"), (None, "r", None)])
async def test_offers_of_a_seat_type_share_its_pool(
    harness: BookingHarness, pools: tuple[str | None, ...]
) -> None:
    hall = await an_auditorium(harness)
    event = await harness.an_event(
        an_offer(name="Adult", pool=pools[0], capacity=None, seat_type="REGULAR"),
        an_offer(name="Child", pool=pools[1], capacity=None, seat_type="REGULAR"),
        an_offer(name="Box", pool=pools[2], capacity=None, seat_type="PREMIUM"),
        auditorium_id=hall.auditorium_id,
    )
    adult, child, box = event.offers
    assert adult.pool_id == child.pool_id != box.pool_id
    stock = await harness.stock.availability(event_id=event.event_id, with_seats=True)
    assert (stock.capacity, len(stock.seats)) == (4, 4)
    assert [stock.offers[offer.offer_id] for offer in event.offers] == [2, 2, 2]


async def test_another_pool_for_the_same_seats_is_refused(harness: BookingHarness) -> None:
    hall = await an_auditorium(harness)
    offers = (
        an_offer(name="Adult", pool="a", capacity=None, seat_type="REGULAR"),
        an_offer(name="Child", pool="b", capacity=None, seat_type="REGULAR"),
    )
    assert await violated_fields(harness, offers=offers, auditorium_id=hall.auditorium_id) == {
        "event.offers[1].pool_id"
    }


async def test_offers_of_the_same_seats_differ_in_name(harness: BookingHarness) -> None:
    """Refusals, mails and reschedules name offers."""
    hall = await an_auditorium(harness)
    adult, child, box = (
        an_offer(name=name, capacity=None, seat_type=seat_type)
        for name, seat_type in (("Adult", "REGULAR"), ("ADULT", "REGULAR"), ("Adult", "PREMIUM"))
    )
    assert await violated_fields(
        harness, offers=(adult, child, box), auditorium_id=hall.auditorium_id
    ) == {"event.offers[1].name"}
    event = await harness.an_event(
        adult, replace(child, name="Child"), box, auditorium_id=hall.auditorium_id
    )
    renamed = OfferChange(offer_id=event.offers[1].offer_id, name="adult")
    assert fields(await refusal_of(harness, event, offers=(renamed,))) == ["event.offers[0].name"]


async def test_offers_are_added_to_seats_on_sale(harness: BookingHarness) -> None:
    hall = await an_auditorium(harness)
    (first, second), (third, _) = [[seat.seat_id for seat in row.seats] for row in hall.rows]
    event = await harness.an_event(
        an_offer(name="Adult", capacity=None, seat_type="REGULAR"),
        auditorium_id=hall.auditorium_id,
    )
    held = await harness.place(event, items=[RequestedItem(None, 1, first)], checkout=None)
    assert held.total == Money(150_000, "INR")
    # Taken off sale before: a new offer does not bring it back.
    await change(harness, event, remove_seat_ids=(second,))

    elsewhere = OfferChange(name="Child", price=PRICE, seat_type="REGULAR", pool="b")
    refusal = await refusal_of(harness, event, offers=(elsewhere,))
    assert fields(refusal) == ["event.offers[0].pool_id"]
    changed, stock = await change(
        harness,
        event,
        offers=(
            OfferChange(name="Child", price=PRICE, seat_type="REGULAR"),
            OfferChange(name="Box", price=PRICE, seat_type="PREMIUM"),
            OfferChange(name="Box, child", price=PRICE, seat_type="PREMIUM"),
        ),
    )
    adult, child, box, small_box = changed.offers
    assert adult.pool_id == child.pool_id != box.pool_id == small_box.pool_id
    assert (stock.capacity, stock.available) == (3, 2)
    # From now on the offer must be named; what is booked keeps its own.
    with pytest.raises(DomainError) as refused:
        await harness.place(changed, items=[RequestedItem(None, 1, third)], checkout=None)
    assert fields(refused.value) == ["items[0].offer_id"]
    await change(harness, event, add_seat_ids=(second,))
    booking = await harness.place(
        changed,
        items=[
            RequestedItem(child.offer_id, 1, second),
            RequestedItem(small_box.offer_id, 1, third),
        ],
        checkout=None,
    )
    assert booking.total == Money(80_000, "INR")
    with pytest.raises(DomainError) as refused:
        await harness.place(changed, items=[RequestedItem(child.offer_id, 1, first)])
    assert refused.value.reason is Reason.SEAT_UNAVAILABLE
    assert (await harness.booking(held.booking_id)).items == held.items
    assert await harness.audit(event) == ()
