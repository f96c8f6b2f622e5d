"""Several prices for the same seats: the offer of each seat decides its price."""

import asyncio
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from booking_svc.bookings.bookings import Actor, Booking, By, Status
from booking_svc.bookings.cancellation import StaffRefund
from booking_svc.bookings.outbox import Updated
from booking_svc.bookings.pricing import RequestedItem
from booking_svc.catalogue import venues
from booking_svc.catalogue.event_update import EventChange, OfferChange
from booking_svc.catalogue.events import Event
from booking_svc.catalogue.venues import Auditorium, Row, Seat
from booking_svc.clients.ports import Failed
from mesh.errors import DomainError, Reason
from mesh.ids import new_id
from mesh.money import Money
from testing.booking_harness import SANDBOX, START, WINDOW, BookingHarness, an_offer
from tests.booking_svc.bookings.test_cancellation import refused
from tests.booking_svc.bookings.test_modification import net, pay_difference
from tests.booking_svc.bookings.test_outbox import outbox_events

ADULT, CHILD = Money(100_000, "INR"), Money(40_000, "INR")
STAFF = By(Actor.STAFF, new_id())


async def a_hall(harness: BookingHarness) -> Auditorium:
    """Row A of three REGULAR seats, of which the last costs 10000 more, and a PREMIUM seat."""

    def seat(number: int, seat_type: str = "REGULAR", price_modifier: int = 0) -> Seat:
        return Seat(new_id(), str(number), seat_type, None, None, price_modifier=price_modifier)

    async with harness.database.transaction() as connection:
        venue = await venues.create_venue(
            connection, name="Hall", time_zone="Asia/Kolkata", address="", now=harness.clock()
        )
        return await venues.create_auditorium(
            connection,
            venue_id=venue.venue_id,
            name=str(new_id()),
            rows=(
                Row("A", (seat(1), seat(2), seat(3, price_modifier=10_000), seat(4, "PREMIUM"))),
            ),
            now=harness.clock(),
        )


async def a_show(
    harness: BookingHarness, hall: Auditorium | None = None, **changes: Any
) -> tuple[Event, list[UUID]]:
    """An event whose REGULAR seats are sold to adults and to children; and its seats."""
    hall = hall or await a_hall(harness)
    event = await harness.an_event(
        seats_for("Adult", ADULT),
        seats_for("Child", CHILD),
        an_offer(name="Box", pool=None, capacity=None, seat_type="PREMIUM"),
        auditorium_id=hall.auditorium_id,
        **changes,
    )
    return event, [seat.seat_id for row in hall.rows for seat in row.seats]


def seats_for(name: str, price: Money, **changes: Any) -> Any:
    terms = {"pool": None, "capacity": None, "seat_type": "REGULAR", **changes}
    return an_offer(name=name, price=price, **terms)


def at(event: Event, name: str, seat_id: UUID) -> RequestedItem:
    """A seat at the offer of that name."""
    (offer_id,) = [offer.offer_id for offer in event.offers if offer.name == name]
    return RequestedItem(offer_id, 1, seat_id)


def names(event: Event, booking: Booking) -> list[tuple[str, int]]:
    """The offer and the price of each item."""
    offers = {offer.offer_id: offer.name for offer in event.offers}
    return [(offers[item.offer_id], item.unit_price.amount_minor) for item in booking.items]


async def confirmed(harness: BookingHarness, event: Event, *items: RequestedItem) -> Booking:
    booking = await harness.place(event, items=items)
    await harness.capture(booking)
    await harness.run_until_idle()
    booking = await harness.booking(booking.booking_id)
    assert booking.status is Status.CONFIRMED
    return booking


async def violations(harness: BookingHarness, event: Event, *items: RequestedItem) -> list[str]:
    with pytest.raises(DomainError) as error:
        await harness.place(event, items=items, checkout=None)
    assert error.value.reason is Reason.VALIDATION_FAILED
    return [f"{violation.field} {violation.description}" for violation in error.value.violations]


async def test_the_offer_decides_the_price_and_each_seat_is_sold_once(
    harness: BookingHarness,
) -> None:
    event, (first, second, third, _) = await a_show(harness)
    assert len({offer.pool_id for offer in event.offers}) == 2
    assert event.total_capacity == 4
    family = [at(event, "Adult", first), at(event, "Child", second), at(event, "Child", third)]
    # The first is priced by what the database has, the second by the memory.
    for _ in range(2):
        booking = await harness.place(event, items=family, checkout=None)
        assert names(event, booking) == [("Adult", 100_000), ("Child", 40_000), ("Child", 50_000)]
        assert booking.total == Money(190_000, "INR")
        for name in ("Adult", "Child"):
            error = await refused(
                Reason.SEAT_UNAVAILABLE, harness.place(event, items=[at(event, name, first)])
            )
            assert error.metadata["seat_ids"] == str(first)
        left = (await harness.stock.availability(event_id=event.event_id, with_seats=False)).offers
        assert [left[offer.offer_id] for offer in event.offers] == [0, 0, 1]
        await harness.cancel(booking.booking_id)
        await harness.run_until_idle()
    assert await harness.audit(event) == ()


async def test_a_seat_of_several_offers_needs_one_that_sells_it(harness: BookingHarness) -> None:
    event, (first, _, _, box) = await a_show(harness)
    for _ in range(2):
        assert await violations(
            harness, event, RequestedItem(None, 1, first), at(event, "Child", box)
        ) == [
            "items[0].offer_id is required: the seat is sold as 'Adult', 'Child'",
            "items[1].offer_id does not sell this seat, but 'Box'",
        ]
        await refused(
            Reason.OFFER_NOT_FOUND,
            harness.place(event, items=[RequestedItem(new_id(), 1, first)], checkout=None),
        )
        # A seat of one offer can name it.
        for item in (RequestedItem(None, 1, box), at(event, "Box", box)):
            booking = await harness.place(event, items=[item], checkout=None)
            assert names(event, booking) == [("Box", 150_000)]
            await harness.cancel(booking.booking_id)
            await harness.run_until_idle()


async def test_buyers_of_one_seat_at_different_prices(harness: BookingHarness) -> None:
    event, (first, *_) = await a_show(harness)
    outcomes = await asyncio.gather(
        *(
            harness.place(event, items=[at(event, ("Adult", "Child")[n % 2], first)], checkout=None)
            for n in range(20)
        ),
        return_exceptions=True,
    )
    assert sum(isinstance(outcome, Booking) for outcome in outcomes) == 1
    assert {outcome.reason for outcome in outcomes if isinstance(outcome, DomainError)} == {
        Reason.SEAT_UNAVAILABLE
    }
    assert await harness.audit(event) == ()


async def test_limits_count_each_offer_and_the_events_limit_all(harness: BookingHarness) -> None:
    hall = await a_hall(harness)
    event = await harness.an_event(
        seats_for("Adult", ADULT),
        seats_for("Child", CHILD, max_per_booking=1, per_customer_limit=1),
        auditorium_id=hall.auditorium_id,
        per_customer_limit=2,
    )
    first, second, third, _ = [seat.seat_id for row in hall.rows for seat in row.seats]
    assert await violations(
        harness, event, at(event, "Child", first), at(event, "Child", second)
    ) == ["items[1].seat_id at most 1 of 'Child' per booking"]
    customer = new_id()

    async def place(name: str, seat_id: UUID) -> Booking:
        return await harness.place(
            event, items=[at(event, name, seat_id)], customer_id=customer, checkout=None
        )

    child = await place("Child", first)
    error = await refused(Reason.PURCHASE_LIMIT_EXCEEDED, place("Child", second))
    assert error.metadata["limit"] == "1"
    await place("Adult", second)
    error = await refused(Reason.PURCHASE_LIMIT_EXCEEDED, place("Adult", third))
    assert error.metadata["limit"] == "2"
    # A seat that gets another offer counts there from then on.
    await harness.update(child, items=[at(event, "Adult", first)])
    await harness.cancel(child.booking_id)
    await harness.run_until_idle()
    await place("Child", third)


@pytest.mark.parametrize("is_remembered", [False, True])
async def test_a_new_price_of_one_offer(harness: BookingHarness, is_remembered: bool) -> None:
    event, (first, second, *_) = await a_show(harness)
    if is_remembered:
        await harness.place(event, items=[at(event, "Child", second)], checkout=None)
    change = EventChange(offers=(OfferChange(name="Child", price=Money(45_000, "INR")),))
    # By another process, so that this one remembers the old price.
    commands = harness.another_process().commands
    await commands.update(event_id=event.event_id, change=change, etag=None)
    booking = await harness.place(event, items=[at(event, "Child", first)])
    assert names(event, booking) == [("Child", 45_000)]
    assert harness.payments.opened == {booking.payment.payment_id: booking.total}  # type: ignore[union-attr]


async def test_an_unpaid_seat_gets_another_offer_and_is_never_free(
    harness: BookingHarness,
) -> None:
    event, (first, second, *_) = await a_show(harness)
    held = await harness.place(
        event, items=[at(event, "Adult", first), at(event, "Adult", second)], checkout=None
    )

    async def change() -> Booking:
        changed = held
        for name in ("Child", "Adult", "Child"):
            # A seat without an offer keeps the one that it has.
            items = [at(event, name, first), RequestedItem(None, 1, second)]
            changed = await harness.update(held, items=items)
        return changed

    async def try_to_buy() -> None:
        item = at(event, "Child", first)
        await refused(Reason.SEAT_UNAVAILABLE, harness.place(event, items=[item], checkout=None))

    others = asyncio.gather(*(try_to_buy() for _ in range(20)))
    changed = await change()
    await others
    assert names(event, changed) == [("Child", 40_000), ("Adult", 100_000)]
    assert changed.hold_expire_time == held.hold_expire_time
    paying = await harness.checkout(held.booking_id)
    assert harness.payments.opened == {paying.payment.payment_id: Money(140_000, "INR")}  # type: ignore[union-attr]
    await harness.capture(paying)
    await harness.run_until_idle()
    assert (await harness.booking(held.booking_id)).status is Status.CONFIRMED
    assert await harness.audit(event) == ()


@pytest.mark.parametrize(
    ("days", "by", "staff_refund", "back"),
    [
        (20, None, None, 58_200),
        (10, None, None, 30_000),
        (5, None, None, 0),
        (5, STAFF, StaffRefund(100, None), 60_000),
        (1, STAFF, StaffRefund(None, Money(50_000, "INR")), 50_000),
    ],
)
async def test_a_cheaper_offer_of_a_paid_seat_is_refunded_by_the_policy(
    harness: BookingHarness,
    days: int,
    by: By | None,
    staff_refund: StaffRefund | None,
    back: int,
) -> None:
    event, (first, second, *_) = await a_show(harness)
    booking = await confirmed(harness, event, at(event, "Adult", first), at(event, "Adult", second))
    assert event.start_time is not None
    harness.clock.now = event.start_time - timedelta(days=days)
    # The price of a seat that keeps its offer stays.
    await harness.reprice(event, Money(170_000, "INR"))
    changed = await harness.update(
        booking,
        # Without an offer: the one it has.
        items=[at(event, "Child", first), RequestedItem(None, 1, second)],
        by=by,
        staff_refund=staff_refund,
    )
    assert names(event, changed) == [("Child", 40_000), ("Adult", 100_000)]
    assert (changed.status, changed.total) == (Status.CONFIRMED, Money(140_000, "INR"))
    await harness.run_until_idle()
    assert net(harness, booking) == 200_000 - back
    assert (await outbox_events(harness, 3))[2].change == Updated(
        Money(200_000, "INR"), Money(back, "INR") if back else None
    )
    assert await harness.available(event) == 2
    assert await harness.audit(event) == ()


async def test_a_dearer_offer_of_a_paid_seat_is_paid_first(harness: BookingHarness) -> None:
    event, (first, second, *_) = await a_show(harness)
    booking = await confirmed(harness, event, at(event, "Child", first))
    items = [at(event, "Adult", first)]
    # Neither another seat nor more than there are.
    for others in ([at(event, "Adult", second)], [*items, at(event, "Child", second)]):
        await refused(Reason.BOOKING_STATE_INVALID, harness.update(booking, items=others))
    waiting = await harness.update(booking, items=items)
    assert names(event, waiting) == [("Child", 40_000)]
    assert waiting.change is not None
    assert waiting.change.difference == Money(60_000, "INR")
    assert waiting.change.payment_url
    assert await harness.available(event) == 3
    await refused(Reason.BOOKING_STATE_INVALID, harness.update(booking, items=items))
    for _ in range(2):
        await harness.capture_payment(booking, waiting.change.payment_id, waiting.change.difference)
        await harness.run_until_idle()
    changed = await harness.booking(booking.booking_id)
    assert (names(event, changed), changed.change) == ([("Adult", 100_000)], None)
    assert await harness.available(event) == 3
    await harness.cancel(booking.booking_id)
    await harness.run_until_idle()
    assert net(harness, booking) == 3_000
    assert await harness.available(event) == 4
    assert await harness.audit(event) == ()


@pytest.mark.parametrize("how", ["expires", "fails", "late", "cancelled"])
async def test_an_unpaid_difference_leaves_the_offer_as_it_is(
    harness: BookingHarness, how: str
) -> None:
    event, (first, *_) = await a_show(harness)
    booking = await confirmed(harness, event, at(event, "Child", first))
    waiting = await harness.update(booking, items=[at(event, "Adult", first)])
    assert waiting.change is not None
    payment_id, difference = waiting.change.payment_id, waiting.change.difference
    if how == "fails":
        await harness.deliver(
            Failed(booking.booking_id, payment_id, "card_declined", is_final=True)
        )
    elif how == "cancelled":
        await harness.cancel(booking.booking_id)
    harness.clock.advance(WINDOW)
    await harness.run_until_idle()
    if how == "late":
        await harness.capture_payment(booking, payment_id, difference)
        await harness.run_until_idle()
    after = await harness.booking(booking.booking_id)
    assert (names(event, after), after.change) == ([("Child", 40_000)], None)
    is_cancelled = how == "cancelled"
    assert after.status is (Status.CANCELLED if is_cancelled else Status.CONFIRMED)
    assert net(harness, booking) == (1_200 if is_cancelled else 40_000)
    assert await harness.available(event) == (4 if is_cancelled else 3)
    assert await harness.audit(event) == ()


async def test_a_free_seat_gets_an_offer_with_a_price(harness: BookingHarness) -> None:
    hall = await a_hall(harness)
    event = await harness.an_event(
        seats_for("Adult", ADULT),
        seats_for("Infant", Money(0, "INR")),
        auditorium_id=hall.auditorium_id,
    )
    first = hall.rows[0].seats[0].seat_id
    booking = await harness.place(event, items=[at(event, "Infant", first)])
    assert booking.status is Status.CONFIRMED
    items = [at(event, "Adult", first)]
    error = await refused(Reason.VALIDATION_FAILED, harness.update(booking, items=items))
    assert [violation.field for violation in error.violations] == ["checkout"]
    await harness.update(booking, items=items, checkout=SANDBOX)
    await pay_difference(harness, booking)
    await harness.run_until_idle()
    changed = await harness.booking(booking.booking_id)
    assert (names(event, changed), changed.status) == ([("Adult", 100_000)], Status.CONFIRMED)
    assert await harness.audit(event) == ()


async def test_only_staff_change_the_offer_after_the_sale(harness: BookingHarness) -> None:
    event, (first, *_) = await a_show(harness, sale_end_time=START + timedelta(days=1))
    booking = await confirmed(harness, event, at(event, "Adult", first))
    harness.clock.advance(timedelta(days=2))
    items = [at(event, "Child", first)]
    await refused(Reason.SALE_NOT_ACTIVE, harness.update(booking, items=items))
    changed = await harness.update(booking, items=items, by=STAFF)
    assert names(event, changed) == [("Child", 40_000)]


@pytest.mark.parametrize("has_namesakes", [False, True])
async def test_a_reschedule_keeps_the_offers_by_their_names(
    harness: BookingHarness, has_namesakes: bool
) -> None:
    hall, production = await a_hall(harness), new_id()
    event, (first, second, _, box) = await a_show(harness, hall, production_id=production)
    later = {
        "production_id": production,
        "start_time": START + timedelta(days=40),
        "end_time": START + timedelta(days=40, hours=3),
    }
    if has_namesakes:
        other, _ = await a_show(harness, hall, **later)
        expected = [("Adult", 100_000), ("Child", 40_000), ("Box", 150_000)]
    else:
        # One price for all.
        other = await harness.an_event(
            seats_for("Everybody", ADULT),
            an_offer(name="Adult", pool=None, capacity=None, seat_type="PREMIUM"),
            auditorium_id=hall.auditorium_id,
            **later,
        )
        expected = [("Everybody", 100_000), ("Everybody", 100_000), ("Adult", 150_000)]
    booking = await confirmed(
        harness,
        event,
        at(event, "Adult", first),
        at(event, "Child", second),
        at(event, "Box", box),
    )
    await harness.reschedule(booking, other)
    if not has_namesakes:
        await pay_difference(harness, booking)
    await harness.run_until_idle()
    moved = await harness.booking(booking.booking_id)
    assert (moved.event_id, names(other, moved)) == (other.event_id, expected)
    assert [*await harness.audit(event), *await harness.audit(other)] == []


async def test_a_late_payment_gets_the_seat_at_its_offer(harness: BookingHarness) -> None:
    event, (first, *_) = await a_show(harness)
    booking = await harness.place(event, items=[at(event, "Child", first)])
    harness.clock.advance(WINDOW)
    await harness.run_until_idle()
    await harness.capture(booking)
    await harness.run_until_idle()
    late = await harness.booking(booking.booking_id)
    assert (late.status, names(event, late)) == (Status.CONFIRMED, [("Child", 40_000)])
    assert await harness.audit(event) == ()
