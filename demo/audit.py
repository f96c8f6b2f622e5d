"""The rules of the box office, tested on what the mesh says: nothing sold twice, no paid
booking lost, nobody charged for nothing.

Pure functions over plain data; reading it is evidence.py's business. Each fault has a
test that plants it.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from demo.evidence import OPEN, SOLD, Booking, Event, Evidence, Order

SWEEP = timedelta(seconds=15)
"""Unpaid bookings end so long after their hold, at the latest."""


class Fault(StrEnum):
    """What can be wrong."""

    OVERSOLD = "more sold and held than there is"
    STOCK_DIFFERENCE = "the stock audit reports a difference"
    SOLD_MISMATCH = "places sold are not those of the confirmed bookings"
    HELD_MISMATCH = "places held are not those of the open bookings"
    AVAILABILITY_WRONG = "what can be bought is not what is left"
    SEAT_TWICE = "a seat is in two confirmed bookings"
    SEAT_STATE_WRONG = "the seat map does not say what the bookings say"
    OVER_LIMIT = "a customer owns more than the offer allows"
    NOT_ENDED = "an unpaid booking is still open after its hold"
    REFUND_OPEN = "a refund was not carried out"
    CONFIRMED_UNPAID = "confirmed, but nothing was charged"
    CHARGED_TOO_MUCH = "charged more than the booking costs"
    REFUNDED_YET_CONFIRMED = "confirmed, but the money went back"
    CHARGED_FOR_NOTHING = "charged, but neither confirmed nor refunded in full"
    REFUNDED_TOO_MUCH = "refunded more than was charged"
    UNKNOWN_PAYMENT = "charged for a payment that the mesh does not know"
    PAYMENT_LOST = "the customer was told that the payment succeeded, the ledger has none"
    BOOKING_LOST = "the customer was told of a booking that does not exist"
    CONFIRMATION_LOST = "the customer saw the booking confirmed, it is not any more"
    KEY_TWICE = "one idempotency key, more than one booking"
    BOOKING_SHARED = "two idempotency keys, one booking"
    BOOKING_UNEXPLAINED = "a booking that its customer was never told of"


@dataclass(frozen=True, slots=True)
class Finding:
    """A fault, with the ids to look for in the logs."""

    fault: Fault
    detail: str
    ids: tuple[str, ...] = ()


def audit(evidence: Evidence, orders: Sequence[Order]) -> list[Finding]:
    """Everything that is wrong; empty when all is well."""
    return [
        *_stock_findings(evidence),
        *_life_findings(evidence),
        *_money_findings(evidence),
        *_customer_findings(evidence, orders),
    ]


def still_open(evidence: Evidence) -> list[Booking]:
    """Bookings that are neither paid nor ended yet."""
    return [booking for booking in evidence.bookings if booking.status in OPEN]


def _stock_findings(evidence: Evidence) -> Iterator[Finding]:
    for event in evidence.events:
        bookings = [each for each in evidence.bookings if each.event_id == event.event_id]
        for difference in event.differences:
            yield Finding(Fault.STOCK_DIFFERENCE, f"{event.name}: {difference}", (event.event_id,))
        yield from _pool_findings(event, bookings)
        yield from _seat_findings(event, bookings)
        yield from _limit_findings(event, bookings)


def _pool_findings(event: Event, bookings: Sequence[Booking]) -> Iterator[Finding]:
    pool_of = {offer.offer_id: offer.pool_id for offer in event.offers}
    sold = _places(pool_of, (each for each in bookings if each.status in SOLD))
    held = _places(pool_of, (each for each in bookings if each.status in OPEN))
    left = {}
    for pool in event.pools:
        of_pool = f"{event.name}, pool of {_names(event, pool.pool_id)}"
        booked = sold[pool.pool_id]
        left[pool.pool_id] = pool.capacity - booked - held[pool.pool_id]
        if max(pool.sold + pool.held, booked) > pool.capacity:
            yield Finding(
                Fault.OVERSOLD,
                f"{of_pool}: {pool.capacity} places, {pool.sold} sold and {pool.held} held, "
                f"{booked} in confirmed bookings",
                (pool.pool_id,),
            )
        if pool.sold != booked:
            yield Finding(
                Fault.SOLD_MISMATCH,
                f"{of_pool}: {pool.sold} sold, {booked} in confirmed bookings",
                (pool.pool_id,),
            )
        if pool.held != held[pool.pool_id]:
            yield Finding(
                Fault.HELD_MISMATCH,
                f"{of_pool}: {pool.held} held, {held[pool.pool_id]} in open bookings",
                (pool.pool_id,),
            )
    for offer in event.offers:
        if offer.available != left.get(offer.pool_id):
            yield Finding(
                Fault.AVAILABILITY_WRONG,
                f"{event.name}, {offer.name}: {offer.available} can be bought, "
                f"{left.get(offer.pool_id)} are left",
                (offer.offer_id,),
            )


def _places(pool_of: dict[str, str], bookings: Iterable[Booking]) -> Counter[str]:
    places: Counter[str] = Counter()
    for booking in bookings:
        for item in booking.items:
            places[pool_of[item.offer_id]] += item.quantity
    return places


def _names(event: Event, pool_id: str) -> str:
    return " and ".join(offer.name for offer in event.offers if offer.pool_id == pool_id)


def _seat_findings(event: Event, bookings: Sequence[Booking]) -> Iterator[Finding]:
    owners: defaultdict[str, list[str]] = defaultdict(list)
    expected = dict.fromkeys(event.seats, "AVAILABLE")
    for booking in bookings:
        for item in booking.items:
            if not item.seat_id:
                continue
            if booking.status in SOLD:
                owners[item.seat_id].append(booking.booking_id)
                expected[item.seat_id] = "SOLD"
            elif booking.status in OPEN and item.seat_id not in owners:
                expected[item.seat_id] = "HELD"
    for seat_id, booking_ids in owners.items():
        if len(booking_ids) > 1:
            yield Finding(
                Fault.SEAT_TWICE,
                f"{event.name}: sold {len(booking_ids)} times",
                (seat_id, *booking_ids),
            )
    for seat_id, state in expected.items():
        said = event.seats.get(seat_id, "missing")
        if said != state:
            yield Finding(
                Fault.SEAT_STATE_WRONG,
                f"{event.name}: the map says {said}, the bookings say {state}",
                (seat_id, *owners.get(seat_id, ())),
            )


def _limit_findings(event: Event, bookings: Sequence[Booking]) -> Iterator[Finding]:
    owned: Counter[tuple[str, str]] = Counter()
    for booking in bookings:
        if booking.status in OPEN | SOLD:
            for item in booking.items:
                owned[booking.customer_id, item.offer_id] += item.quantity
    for offer in event.offers:
        for (customer_id, offer_id), quantity in owned.items():
            if offer_id == offer.offer_id and quantity > offer.per_customer_limit:
                yield Finding(
                    Fault.OVER_LIMIT,
                    f"{event.name}, {offer.name}: {quantity}, allowed {offer.per_customer_limit}",
                    (customer_id,),
                )


def _life_findings(evidence: Evidence) -> Iterator[Finding]:
    for booking in evidence.bookings:
        if booking.status in OPEN and _is_over(booking, evidence.time):
            yield Finding(
                Fault.NOT_ENDED,
                f"{booking.status}, held until {booking.hold_expire_time:%H:%M:%S} UTC",
                (booking.booking_id,),
            )
        if booking.refund_status not in {"", "PROCESSED"}:
            yield Finding(Fault.REFUND_OPEN, booking.refund_status, (booking.booking_id,))


def _is_over(booking: Booking, now: datetime) -> bool:
    return booking.hold_expire_time + SWEEP < now


def _money_findings(evidence: Evidence) -> Iterator[Finding]:
    captured: Counter[str] = Counter()
    refunded: Counter[str] = Counter()
    unknown: Counter[str] = Counter()
    for entry in evidence.ledger:
        booking_id = evidence.payers.get(entry.payment_id, "")
        if not booking_id:
            unknown[entry.payment_id] += entry.amount_minor
        elif entry.kind == "CAPTURE":
            captured[booking_id] += entry.amount_minor
        else:
            refunded[booking_id] += entry.amount_minor
    for payment_id, amount in unknown.items():
        yield Finding(Fault.UNKNOWN_PAYMENT, f"{amount} minor units", (payment_id,))
    for booking in evidence.bookings:
        came, went = captured[booking.booking_id], refunded[booking.booking_id]
        fault = _money_fault(booking, came, went)
        if fault is not None:
            yield Finding(
                fault,
                f"{booking.status}, total {booking.total_minor}, charged {came}, "
                f"refunded {went} minor units",
                (booking.booking_id, booking.payment_id),
            )


def _money_fault(booking: Booking, captured: int, refunded: int) -> Fault | None:
    net = captured - refunded
    if net < 0:
        return Fault.REFUNDED_TOO_MUCH
    if booking.status not in SOLD:
        return Fault.CHARGED_FOR_NOTHING if net else None
    if net == booking.total_minor:
        return None
    if captured == 0:
        return Fault.CONFIRMED_UNPAID
    return Fault.CHARGED_TOO_MUCH if net > booking.total_minor else Fault.REFUNDED_YET_CONFIRMED


def _customer_findings(evidence: Evidence, orders: Sequence[Order]) -> Iterator[Finding]:
    known = {booking.booking_id: booking for booking in evidence.bookings}
    paid = {entry.payment_id for entry in evidence.ledger if entry.kind == "CAPTURE"}
    keys: defaultdict[str, list[str]] = defaultdict(list)
    for order in orders:
        told = tuple(dict.fromkeys(order.booking_ids))
        for booking_id in told:
            keys[booking_id].append(order.key)
            if booking_id not in known:
                yield Finding(
                    Fault.BOOKING_LOST, f"key {order.key}", (booking_id, order.customer_id)
                )
            elif order.was_confirmed and known[booking_id].status not in SOLD:
                yield Finding(
                    Fault.CONFIRMATION_LOST, known[booking_id].status, (booking_id, order.paid)
                )
        if len(told) > 1:
            yield Finding(Fault.KEY_TWICE, f"key {order.key}", told)
        if order.paid and order.paid not in paid:
            yield Finding(Fault.PAYMENT_LOST, f"key {order.key}", (order.paid, *told))
    for booking_id, shared in keys.items():
        if len(shared) > 1:
            yield Finding(Fault.BOOKING_SHARED, f"keys {', '.join(shared)}", (booking_id,))
    yield from _unexplained(evidence, orders, told=keys.keys())


def _unexplained(
    evidence: Evidence, orders: Sequence[Order], *, told: Iterable[str]
) -> Iterator[Finding]:
    """Bookings that were never told; each try without an answer may have left one."""
    ours = {order.customer_id for order in orders}
    allowed = Counter(
        order.customer_id for order in orders if order.is_uncertain and not order.booking_ids
    )
    heard = set(told)
    untold: defaultdict[str, list[str]] = defaultdict(list)
    for booking in evidence.bookings:
        if booking.customer_id in ours and booking.booking_id not in heard:
            untold[booking.customer_id].append(booking.booking_id)
    for customer_id, booking_ids in untold.items():
        if len(booking_ids) > allowed[customer_id]:
            yield Finding(
                Fault.BOOKING_UNEXPLAINED,
                f"{len(booking_ids)} never told, {allowed[customer_id]} tries without an answer",
                (customer_id, *booking_ids),
            )
