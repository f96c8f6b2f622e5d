"""The audit of a sale: nothing sold twice, no paid booking lost, no charge without a booking.

Pure functions over plain data, which evidence.py reads. A test plants each fault.
"""

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from chaos.checks.evidence import OPEN, SOLD, Booking, Event, Evidence, Order

SWEEP = timedelta(seconds=15)
"""The longest time between the end of a hold and the end of its unpaid booking."""


class Fault(StrEnum):
    """The faults that the audit detects."""

    OVERSOLD = "more places sold and held than the capacity"
    STOCK_DIFFERENCE = "the stock audit reports a difference"
    SOLD_MISMATCH = "sold places differ from those of the confirmed bookings"
    HELD_MISMATCH = "held places differ from those of the open bookings"
    AVAILABILITY_WRONG = "the availability differs from the remaining places"
    SEAT_TWICE = "a seat is in two confirmed bookings"
    SEAT_STATE_WRONG = "the seat map differs from the bookings"
    OVER_LIMIT = "a customer owns more than the offer allows"
    NOT_ENDED = "an unpaid booking is still open after its hold"
    REFUND_OPEN = "a refund is not processed"
    CONFIRMED_UNPAID = "confirmed, but nothing was charged"
    CHARGED_TOO_MUCH = "charged more than the booking's total"
    REFUNDED_YET_CONFIRMED = "confirmed, but the payment was refunded"
    CHARGED_FOR_NOTHING = "charged, but neither confirmed nor refunded in full"
    REFUNDED_TOO_MUCH = "refunded more than was charged"
    UNKNOWN_PAYMENT = "charged for a payment that the mesh does not know"
    PAYMENT_LOST = "the payment page reported success, but the provider's ledger has no capture"
    BOOKING_LOST = "the customer received a booking that does not exist"
    CONFIRMATION_LOST = "the customer saw the booking confirmed, but it is not confirmed"
    KEY_TWICE = "one idempotency key, more than one booking"
    BOOKING_SHARED = "two idempotency keys, one booking"
    BOOKING_UNREPORTED = "a booking that its customer never received"


@dataclass(frozen=True, slots=True)
class Finding:
    """A fault, with ids to search the logs for."""

    fault: Fault
    detail: str
    ids: tuple[str, ...] = ()


def audit(evidence: Evidence, orders: Sequence[Order]) -> list[Finding]:
    """All findings; empty for a clean sale."""
    return [
        *_stock_findings(evidence),
        *_life_findings(evidence),
        *_money_findings(evidence),
        *_customer_findings(evidence, orders),
    ]


def still_open(evidence: Evidence) -> list[Booking]:
    """Bookings that are neither paid nor ended."""
    return [booking for booking in evidence.bookings if booking.status in OPEN]


def _stock_findings(evidence: Evidence) -> Iterator[Finding]:
    for event in evidence.events:
        bookings = [booking for booking in evidence.bookings if booking.event_id == event.event_id]
        for difference in event.differences:
            yield Finding(Fault.STOCK_DIFFERENCE, f"{event.name}: {difference}", (event.event_id,))
        yield from _pool_findings(event, bookings)
        yield from _seat_findings(event, bookings)
        yield from _limit_findings(event, bookings)


def _pool_findings(event: Event, bookings: Sequence[Booking]) -> Iterator[Finding]:
    pool_of = {offer.offer_id: offer.pool_id for offer in event.offers}
    sold = _places(pool_of, bookings, SOLD)
    held = _places(pool_of, bookings, OPEN)
    available = {}
    for pool in event.pools:
        name = f"{event.name}, pool of {_names(event, pool.pool_id)}"
        booked = sold[pool.pool_id]
        available[pool.pool_id] = pool.capacity - booked - held[pool.pool_id]
        if max(pool.sold + pool.held, booked) > pool.capacity:
            yield Finding(
                Fault.OVERSOLD,
                f"{name}: {pool.capacity} places, {pool.sold} sold and {pool.held} held, "
                f"{booked} in confirmed bookings",
                (pool.pool_id,),
            )
        if pool.sold != booked:
            yield Finding(
                Fault.SOLD_MISMATCH,
                f"{name}: {pool.sold} sold, {booked} in confirmed bookings",
                (pool.pool_id,),
            )
        if pool.held != held[pool.pool_id]:
            yield Finding(
                Fault.HELD_MISMATCH,
                f"{name}: {pool.held} held, {held[pool.pool_id]} in open bookings",
                (pool.pool_id,),
            )
    for offer in event.offers:
        if offer.available != available.get(offer.pool_id):
            yield Finding(
                Fault.AVAILABILITY_WRONG,
                f"{event.name}, {offer.name}: {offer.available} available, "
                f"{available.get(offer.pool_id)} expected",
                (offer.offer_id,),
            )


def _places(
    pool_of: dict[str, str], bookings: Iterable[Booking], statuses: Collection[str]
) -> Counter[str]:
    """Places by pool of the bookings with these statuses."""
    places: Counter[str] = Counter()
    for booking in bookings:
        if booking.status in statuses:
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
        shown = event.seats.get(seat_id, "missing")
        if shown != state:
            yield Finding(
                Fault.SEAT_STATE_WRONG,
                f"{event.name}: {shown} on the map, {state} by the bookings",
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
        charged, returned = captured[booking.booking_id], refunded[booking.booking_id]
        fault = _money_fault(booking, charged, returned)
        if fault is not None:
            yield Finding(
                fault,
                f"{booking.status}, total {booking.total_minor}, charged {charged}, "
                f"refunded {returned} minor units",
                (booking.booking_id, booking.payment_id),
            )


def _money_fault(booking: Booking, captured: int, refunded: int) -> Fault | None:
    net = captured - refunded
    if net < 0:
        return Fault.REFUNDED_TOO_MUCH
    if booking.status not in SOLD:
        return Fault.CHARGED_FOR_NOTHING if net else None
    if net == booking.total_minor - booking.compensated_minor:
        return None
    if captured == 0:
        return Fault.CONFIRMED_UNPAID
    return Fault.CHARGED_TOO_MUCH if net > booking.total_minor else Fault.REFUNDED_YET_CONFIRMED


def _customer_findings(evidence: Evidence, orders: Sequence[Order]) -> Iterator[Finding]:
    known = {booking.booking_id: booking for booking in evidence.bookings}
    paid = {entry.payment_id for entry in evidence.ledger if entry.kind == "CAPTURE"}
    keys: defaultdict[str, list[str]] = defaultdict(list)
    for order in orders:
        received = tuple(dict.fromkeys(order.booking_ids))
        for booking_id in received:
            keys[booking_id].append(order.key)
            if booking_id not in known:
                yield Finding(
                    Fault.BOOKING_LOST, f"key {order.key}", (booking_id, order.customer_id)
                )
            elif order.was_confirmed and known[booking_id].status not in SOLD:
                yield Finding(
                    Fault.CONFIRMATION_LOST, known[booking_id].status, (booking_id, order.paid)
                )
        if len(received) > 1:
            yield Finding(Fault.KEY_TWICE, f"key {order.key}", received)
        if order.paid and order.paid not in paid:
            yield Finding(Fault.PAYMENT_LOST, f"key {order.key}", (order.paid, *received))
    for booking_id, shared in keys.items():
        if len(shared) > 1:
            yield Finding(Fault.BOOKING_SHARED, f"keys {', '.join(shared)}", (booking_id,))
    yield from _unreported(evidence, orders, received=keys.keys())


def _unreported(
    evidence: Evidence, orders: Sequence[Order], *, received: Collection[str]
) -> Iterator[Finding]:
    """Bookings that no customer received. Each attempt without an answer may have made one."""
    customer_ids = {order.customer_id for order in orders}
    allowed = Counter(
        order.customer_id for order in orders if order.is_uncertain and not order.booking_ids
    )
    unreported: defaultdict[str, list[str]] = defaultdict(list)
    for booking in evidence.bookings:
        if booking.customer_id in customer_ids and booking.booking_id not in received:
            unreported[booking.customer_id].append(booking.booking_id)
    for customer_id, booking_ids in unreported.items():
        if len(booking_ids) > allowed[customer_id]:
            yield Finding(
                Fault.BOOKING_UNREPORTED,
                f"{len(booking_ids)} not received, {allowed[customer_id]} attempts without an answer",
                (customer_id, *booking_ids),
            )
