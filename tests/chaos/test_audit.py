"""The audit detects each planted fault and nothing else; a clean sale has no findings.

The clean sale: a concert whose pool of ten places is sold by two offers, and a cinema of three
seats. Each test changes one aspect of it.
"""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from chaos.checks.audit import SWEEP, Fault, audit
from chaos.checks.evidence import Booking, Entry, Event, Evidence, Item, Offer, Order, Pool

NOW = datetime(2030, 5, 1, 12, 0, tzinfo=UTC)
CONCERT, CINEMA = "concert", "cinema"


def an_offer(offer_id: str, pool_id: str, available: int, limit: int = 4) -> Offer:
    return Offer(
        offer_id=offer_id,
        name=offer_id,
        pool_id=pool_id,
        per_customer_limit=limit,
        available=available,
    )


def a_booking(booking_id: str, customer: str, status: str, **changes: Any) -> Booking:
    """Two places of the concert at 500, held until a minute ago."""
    booking = Booking(
        booking_id=booking_id,
        event_id=CONCERT,
        customer_id=customer,
        status=status,
        items=(Item(offer_id="standard", quantity=2),),
        total_minor=1000,
        hold_expire_time=NOW - timedelta(minutes=1),
        payment_id=f"pay-{booking_id}",
    )
    return replace(booking, **changes)


def a_seat_booking(booking_id: str, customer: str, status: str, *seats: str) -> Booking:
    return a_booking(
        booking_id,
        customer,
        status,
        event_id=CINEMA,
        items=tuple(Item(offer_id="regular", quantity=1, seat_id=seat) for seat in seats),
        total_minor=500 * len(seats),
    )


def an_order(key: str, customer: str, *booking_ids: str, **changes: Any) -> Order:
    return Order(key=key, customer_id=customer, booking_ids=list(booking_ids), **changes)


class Sale:
    """A clean sale, to plant faults in."""

    def __init__(self) -> None:
        self.bookings = {
            booking.booking_id: booking
            for booking in (
                a_booking("paid", "ann", "CONFIRMED"),
                a_booking("early", "bob", "CONFIRMED", items=(Item(offer_id="early", quantity=2),)),
                a_booking("declined", "cem", "FAILED"),
                a_booking("expired", "dee", "EXPIRED", payment_id=""),
                a_booking("late", "eve", "EXPIRED", refund_status="PROCESSED"),
                a_booking("dropped", "fay", "CANCELLED"),
                a_booking("free", "gus", "CONFIRMED", total_minor=0, payment_id=""),
                a_seat_booking("seats", "hal", "CONFIRMED", "A1", "A2"),
            )
        }
        self.pools = {
            "ground": Pool(pool_id="ground", capacity=10, held=0, sold=6),
            "screen": Pool(pool_id="screen", capacity=3, held=0, sold=2),
        }
        self.available = {"standard": 4, "early": 4, "regular": 1}
        self.seats = {"A1": "SOLD", "A2": "SOLD", "A3": "AVAILABLE"}
        self.differences: tuple[str, ...] = ()
        self.ledger: list[Entry] = []
        for booking_id in ("paid", "early", "late", "seats"):
            self.money("CAPTURE", f"pay-{booking_id}")
        self.money("REFUND", "pay-late")
        self.payers = {f"pay-{booking_id}": booking_id for booking_id in self.bookings}
        self.orders = {
            "k1": an_order("k1", "ann", "paid", paid="pay-paid", was_confirmed=True),
            # A double click: both answers name the same booking.
            "k2": an_order("k2", "bob", "early", "early", was_confirmed=True),
            "k3": an_order("k3", "cem", "declined"),
            "k4": an_order("k4", "dee", "expired"),
            "k5": an_order("k5", "eve", "late", paid="pay-late"),
            "k6": an_order("k6", "fay", "dropped"),
            "k7": an_order("k7", "gus", "free", was_confirmed=True),
            "k8": an_order("k8", "hal", "seats", paid="pay-seats", was_confirmed=True),
            "k9": an_order("k9", "ida"),
        }

    def money(self, kind: str, payment_id: str, amount: int = 1000) -> None:
        self.ledger.append(
            Entry(
                entry_id=len(self.ledger) + 1,
                payment_id=payment_id,
                kind=kind,
                amount_minor=amount,
            )
        )

    def no_money(self, payment_id: str) -> None:
        self.ledger = [entry for entry in self.ledger if entry.payment_id != payment_id]

    def add(self, booking: Booking, key: str = "") -> None:
        self.bookings[booking.booking_id] = booking
        if key:
            self.orders[key] = an_order(key, booking.customer_id, booking.booking_id)

    def change(self, booking_id: str, **changes: Any) -> None:
        self.bookings[booking_id] = replace(self.bookings[booking_id], **changes)

    def pool(self, pool_id: str, **changes: Any) -> None:
        self.pools[pool_id] = replace(self.pools[pool_id], **changes)

    def faults(self) -> set[Fault]:
        return {finding.fault for finding in audit(self.evidence(), list(self.orders.values()))}

    def evidence(self) -> Evidence:
        concert = Event(
            event_id=CONCERT,
            name="Concert",
            pools=(self.pools["ground"],),
            offers=(
                an_offer("standard", "ground", self.available["standard"]),
                an_offer("early", "ground", self.available["early"]),
            ),
            seats={},
            differences=self.differences,
        )
        cinema = Event(
            event_id=CINEMA,
            name="Cinema",
            pools=(self.pools["screen"],),
            offers=(an_offer("regular", "screen", self.available["regular"]),),
            seats=self.seats,
        )
        return Evidence(
            time=NOW,
            events=(concert, cinema),
            bookings=tuple(self.bookings.values()),
            ledger=tuple(self.ledger),
            payers=self.payers,
        )


@pytest.fixture
def sale() -> Sale:
    return Sale()


def test_a_clean_sale_has_no_findings(sale: Sale) -> None:
    assert audit(sale.evidence(), list(sale.orders.values())) == []


def test_an_oversold_pool(sale: Sale) -> None:
    sale.add(
        a_booking("more", "joe", "CONFIRMED", items=(Item(offer_id="early", quantity=4),)), "k10"
    )
    sale.add(
        a_booking("most", "kim", "CONFIRMED", items=(Item(offer_id="early", quantity=1),)), "k11"
    )
    sale.pool("ground", sold=11)
    for booking_id in ("more", "most"):
        sale.money("CAPTURE", f"pay-{booking_id}")
        sale.payers[f"pay-{booking_id}"] = booking_id
    sale.available.update(standard=-1, early=-1)
    assert sale.faults() == {Fault.OVERSOLD}


def test_an_oversold_pool_that_the_counter_hides(sale: Sale) -> None:
    sale.change("free", items=(Item(offer_id="standard", quantity=4),) * 2)
    assert Fault.OVERSOLD in sale.faults()


def test_held_places_count_towards_the_capacity(sale: Sale) -> None:
    sale.pool("ground", held=5)
    assert sale.faults() == {Fault.OVERSOLD, Fault.HELD_MISMATCH}


def test_a_difference_that_the_stock_audit_reports(sale: Sale) -> None:
    sale.differences = ("pool ground: 6 sold, 5 by movements",)
    assert sale.faults() == {Fault.STOCK_DIFFERENCE}


def test_sold_places_without_a_booking(sale: Sale) -> None:
    sale.pool("ground", sold=7)
    assert sale.faults() == {Fault.SOLD_MISMATCH}


def test_held_places_without_a_booking(sale: Sale) -> None:
    sale.pool("ground", held=1)
    assert sale.faults() == {Fault.HELD_MISMATCH}


def test_an_availability_that_differs_from_the_remaining_places(sale: Sale) -> None:
    sale.available["early"] = 5
    assert sale.faults() == {Fault.AVAILABILITY_WRONG}


def test_a_seat_in_two_confirmed_bookings(sale: Sale) -> None:
    sale.add(a_seat_booking("again", "joe", "CONFIRMED", "A1"), "k10")
    sale.money("CAPTURE", "pay-again", 500)
    sale.payers["pay-again"] = "again"
    sale.pool("screen", sold=3)
    sale.available["regular"] = 0
    assert sale.faults() == {Fault.SEAT_TWICE}


@pytest.mark.parametrize(
    ("seat_id", "state"), [("A1", "AVAILABLE"), ("A3", "SOLD"), ("A3", "HELD")]
)
def test_a_seat_map_that_is_wrong(sale: Sale, seat_id: str, state: str) -> None:
    sale.seats[seat_id] = state
    assert sale.faults() == {Fault.SEAT_STATE_WRONG}


def test_a_booked_seat_that_the_map_does_not_have(sale: Sale) -> None:
    del sale.seats["A1"]
    assert sale.faults() == {Fault.SEAT_STATE_WRONG}


def test_a_customer_with_more_than_the_limit(sale: Sale) -> None:
    sale.change("free", customer_id="ann", items=(Item(offer_id="standard", quantity=2),))
    sale.change("early", customer_id="ann", items=(Item(offer_id="standard", quantity=2),))
    sale.orders["k7"].customer_id = sale.orders["k2"].customer_id = "ann"
    assert sale.faults() == {Fault.OVER_LIMIT}


def test_an_unpaid_booking_that_does_not_end(sale: Sale) -> None:
    sale.change("expired", status="HELD", hold_expire_time=NOW - SWEEP - timedelta(seconds=1))
    sale.pool("ground", held=2)
    sale.available.update(standard=2, early=2)
    assert sale.faults() == {Fault.NOT_ENDED}


def test_a_booking_that_is_still_held_is_no_fault(sale: Sale) -> None:
    sale.change("expired", status="HELD", hold_expire_time=NOW + timedelta(minutes=5))
    sale.pool("ground", held=2)
    sale.available.update(standard=2, early=2)
    assert sale.faults() == set()


def test_a_refund_that_is_not_carried_out(sale: Sale) -> None:
    sale.change("late", refund_status="PENDING")
    sale.ledger = [entry for entry in sale.ledger if entry.kind == "CAPTURE"]
    assert sale.faults() == {Fault.REFUND_OPEN, Fault.CHARGED_FOR_NOTHING}


def test_confirmed_without_a_capture(sale: Sale) -> None:
    sale.no_money("pay-early")
    assert sale.faults() == {Fault.CONFIRMED_UNPAID}


@pytest.mark.parametrize("booking_id", ["declined", "dropped"])
def test_a_capture_with_neither_confirmation_nor_refund(sale: Sale, booking_id: str) -> None:
    sale.money("CAPTURE", f"pay-{booking_id}")
    assert sale.faults() == {Fault.CHARGED_FOR_NOTHING}


def test_a_refund_of_less_than_all(sale: Sale) -> None:
    sale.money("CAPTURE", "pay-declined")
    sale.money("REFUND", "pay-declined", 999)
    assert sale.faults() == {Fault.CHARGED_FOR_NOTHING}


def test_a_double_capture(sale: Sale) -> None:
    sale.money("CAPTURE", "pay-paid")
    assert sale.faults() == {Fault.CHARGED_TOO_MUCH}


def test_a_double_capture_through_two_payments_of_one_booking(sale: Sale) -> None:
    sale.money("CAPTURE", "pay-other")
    sale.payers["pay-other"] = "paid"
    assert sale.faults() == {Fault.CHARGED_TOO_MUCH}


def test_a_refunded_double_capture_is_no_fault(sale: Sale) -> None:
    sale.money("CAPTURE", "pay-paid")
    sale.money("REFUND", "pay-paid")
    assert sale.faults() == set()


def test_confirmed_and_refunded(sale: Sale) -> None:
    sale.money("REFUND", "pay-paid")
    assert sale.faults() == {Fault.REFUNDED_YET_CONFIRMED}


def test_a_double_refund(sale: Sale) -> None:
    sale.money("REFUND", "pay-late")
    assert sale.faults() == {Fault.REFUNDED_TOO_MUCH}


def test_a_capture_for_an_unknown_payment(sale: Sale) -> None:
    sale.money("CAPTURE", "pay-ghost")
    sale.payers["pay-ghost"] = ""
    assert sale.faults() == {Fault.UNKNOWN_PAYMENT}


def test_a_payment_that_the_customer_made_and_the_ledger_does_not_have(sale: Sale) -> None:
    sale.orders["k3"].paid = "pay-declined"
    assert sale.faults() == {Fault.PAYMENT_LOST}


def test_a_lost_booking(sale: Sale) -> None:
    del sale.bookings["expired"]
    assert sale.faults() == {Fault.BOOKING_LOST}


def test_a_confirmation_that_the_customer_saw_and_that_is_gone(sale: Sale) -> None:
    sale.orders["k6"].was_confirmed = True
    assert sale.faults() == {Fault.CONFIRMATION_LOST}


def test_a_key_with_two_bookings(sale: Sale) -> None:
    sale.add(a_booking("twin", "dee", "EXPIRED", payment_id=""))
    sale.orders["k4"].booking_ids.append("twin")
    assert sale.faults() == {Fault.KEY_TWICE}


def test_a_second_booking_of_a_key_that_the_customer_never_received(sale: Sale) -> None:
    sale.add(a_booking("twin", "dee", "EXPIRED", payment_id=""))
    sale.orders["k4"].is_uncertain = True
    assert sale.faults() == {Fault.BOOKING_UNREPORTED}


def test_a_booking_after_a_refusal(sale: Sale) -> None:
    sale.add(a_booking("ghost", "ida", "EXPIRED", payment_id=""))
    assert sale.faults() == {Fault.BOOKING_UNREPORTED}


def test_a_booking_whose_answer_was_lost_is_no_fault(sale: Sale) -> None:
    sale.add(a_booking("unheard", "ida", "EXPIRED", payment_id=""))
    sale.orders["k9"].is_uncertain = True
    assert sale.faults() == set()


def test_two_keys_that_name_one_booking(sale: Sale) -> None:
    sale.orders["k10"] = an_order("k10", "dee", "expired")
    assert sale.faults() == {Fault.BOOKING_SHARED}


def test_a_booking_of_another_client_is_ignored(sale: Sale) -> None:
    sale.add(a_booking("foreign", "zoe", "EXPIRED", payment_id=""))
    assert sale.faults() == set()
