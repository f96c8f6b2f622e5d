"""All orders of all sets of up to six reports about one payment, each also told twice.

The model is a pure function, smaller than the code: what is true of a payment after some
reports. It is exhaustive in milliseconds each; that the database does the same is checked
for a sample, and with --long for a large one.
"""

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from mesh.money import Money
from payment_svc import payment_reports, payments, refunds, tables
from payment_svc.payments import Payment, Status
from payment_svc.providers.base import (
    Authorized,
    Captured,
    Disputed,
    DisputeStatus,
    Failed,
    ProviderReport,
    RefundProcessed,
    Voided,
)
from payment_svc.providers.sandbox import NAME
from testing.payment_harness import NOW, PRICE, Desk, a_key

MAX_EVENTS = 6
SAMPLE = 60
LONG_SAMPLE = 4000


@dataclass(frozen=True)
class Seen:
    """What is true of a payment. `observed` is the time of the newest report that counted."""

    status: str
    observed: int = 0
    authorized: bool = False
    captures: frozenset[tuple[str, str]] = frozenset()
    refunded: frozenset[str] = frozenset()
    dispute: str = ""


def step(seen: Seen, event: tuple[Any, ...]) -> Seen:
    """The transition function of the model."""
    kind = event[0]
    if kind == "dispute":
        status = event[1] if seen.dispute in {"", "OPEN"} else seen.dispute
        return replace(seen, dispute=status)
    if kind == "capture":
        return capture(seen, *event[1:])
    if kind == "refund":
        refunded = seen.refunded | {event[1]}
        return replace(
            seen,
            refunded=refunded,
            status="REFUNDED" if len(refunded) == 2 else "PARTIALLY_REFUNDED",
        )
    if seen.status not in {"CREATED", "AUTHORIZED", "FAILED"}:
        return seen
    at = event[1]
    if kind == "authorized" and at >= seen.observed:
        return replace(seen, status="AUTHORIZED", observed=at)
    if kind == "failed" and at > seen.observed:
        return replace(seen, status="FAILED", observed=at)
    return seen


def capture(seen: Seen, name: str, amount: str, at: int) -> Seen:
    if any(name == known for known, _ in seen.captures):
        return seen
    is_open = seen.status in {"CREATED", "AUTHORIZED", "FAILED"}
    if amount == "other":
        seen = replace(seen, captures=seen.captures | {(name, "MISMATCHED")})
        if is_open and at > seen.observed:
            return replace(seen, status="FAILED", observed=at)
        return seen
    if is_open:
        taken = seen.captures | {(name, "ACCEPTED")}
        return replace(seen, status="CAPTURED", captures=taken, observed=0)
    return replace(seen, captures=seen.captures | {(name, "SECOND")})


def end(events: Sequence[tuple[Any, ...]], start: Seen) -> Any:
    """What is left to tell two ends apart; which of two equal captures pays is no matter."""
    seen = start
    for event in events:
        seen = step(seen, event)
    return seen.status, sorted(verdict for _, verdict in seen.captures), seen.refunded, seen.dispute


# What can be told of one payment: two tries to pay, money taken, taken twice, the wrong
# money; and once it is paid, its refunds and a dispute that is won.
BEFORE: list[tuple[Any, ...]] = [
    ("authorized", 1),
    ("failed", 2),
    ("authorized", 2),
    ("failed", 3),
    ("capture", "ch_1", "price", 3),
    ("capture", "ch_2", "price", 4),
    ("capture", "ch_3", "other", 5),
]
AFTER: list[tuple[Any, ...]] = [
    ("refund", "first"),
    ("refund", "rest"),
    ("dispute", "OPEN"),
    ("dispute", "WON"),
    ("failed", 9),
    ("authorized", 9),
    ("capture", "ch_2", "price", 9),
]
CREATED = Seen("CREATED")
PAID = Seen("CAPTURED", captures=frozenset({("ch_1", "ACCEPTED")}))


def sets_of(events: Sequence[tuple[Any, ...]]) -> Iterator[tuple[tuple[Any, ...], ...]]:
    for size in range(1, MAX_EVENTS + 1):
        yield from itertools.combinations(events, size)


def told(order: Sequence[tuple[Any, ...]]) -> Iterator[list[tuple[Any, ...]]]:
    """An order told once, all of it twice, and each report twice in a row."""
    yield list(order)
    yield [*order, *order]
    yield [event for event in order for _ in range(2)]


@pytest.mark.parametrize(("events", "start"), [(BEFORE, CREATED), (AFTER, PAID)])
def test_all_orders_of_all_sets_end_the_same(
    events: Sequence[tuple[Any, ...]], start: Seen
) -> None:
    orders = 0
    for chosen in sets_of(events):
        ends = set()
        for order in itertools.permutations(chosen):
            for sequence in told(order):
                status, verdicts, refunded, dispute = end(sequence, start)
                ends.add((status, tuple(verdicts), refunded, dispute))
                orders += 1
        assert len(ends) == 1, (chosen, ends)
    assert orders == 3 * sum(
        len(list(itertools.permutations(range(7), size))) for size in range(1, MAX_EVENTS + 1)
    )


def report_of(event: tuple[Any, ...], payment: Payment, made: dict[str, Any]) -> ProviderReport:
    """The report that the model's event stands for."""
    common = (payment.payment_id, payment.provider_reference)

    def time(seconds: int) -> Any:
        return NOW + timedelta(seconds=seconds)

    match event:
        case ("authorized", at):
            return Authorized(*common, time(at), "upi")
        case ("failed", at):
            return Failed(*common, time(at), "card_declined")
        case ("capture", name, amount, at):
            money = PRICE if amount == "price" else Money(1, "INR")
            return Captured(*common, time(at), name, money, "card")
        case ("refund", name):
            refund = made[name]
            return RefundProcessed(
                *common, NOW, refund.refund_id, f"re_{refund.refund_id}", refund.amount
            )
        case ("dispute", status):
            return Disputed(
                *common, NOW, "dp_1", "ch_1", PRICE, "fraudulent", DisputeStatus(status)
            )
    raise LookupError(event)


async def end_in_database(
    desk: Desk, payment: Payment, sequence: Sequence[tuple[Any, ...]], made: dict[str, Any]
) -> Any:
    """The same end, as the database has it. It is rolled back."""
    connection = await desk.database._engine.connect()
    try:
        for event in sequence:
            await payment_reports.apply_report(
                connection, provider=NAME, report=report_of(event, payment, made), now=NOW
            )
        found = await payments.find(connection, payment_id=payment.payment_id, owner=None)
        verdicts = await connection.execute(sa.select(tables.captures.c.verdict))
        processed = await connection.execute(
            sa.select(tables.refunds.c.refund_id).where(tables.refunds.c.status == "PROCESSED")
        )
        names = {refund.refund_id: name for name, refund in made.items()}
        dispute = await connection.execute(sa.select(tables.disputes.c.status))
        # Sums of the book's accounts: nothing is written twice.
        unbalanced = await connection.execute(
            sa.select(sa.func.sum(tables.book_lines.c.amount_minor))
        )
        assert int(unbalanced.scalar_one() or 0) == 0
        return (
            str(found.status),
            sorted(verdicts.scalars()),
            frozenset(names[one] for one in processed.scalars()),
            dispute.scalar_one_or_none() or "",
        )
    finally:
        await connection.rollback()
        await connection.close()


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("is_paid", [False, True])
async def test_the_database_ends_as_the_model(desk: Desk, is_paid: bool, is_long: bool) -> None:
    payment = await desk.open()
    made: dict[str, Any] = {}
    if is_paid:
        await desk.apply_report(report_of(("capture", "ch_1", "price", 3), payment, made))
        async with desk.database.transaction() as connection:
            for name, amount in (("first", Money(50_000, "INR")), ("rest", None)):
                made[name] = await refunds.request(
                    connection,
                    payment_id=payment.payment_id,
                    amount=amount,
                    reason="",
                    key=a_key(name),
                    now=NOW,
                )
    events, start = (AFTER, PAID) if is_paid else (BEFORE, CREATED)
    chance = random.Random(3)
    for number in range(LONG_SAMPLE if is_long else SAMPLE):
        # Every other one without money taken, which would outweigh all that came before it.
        pool = [event for event in events if event[0] != "capture"] if number % 2 else events
        order = chance.sample(pool, chance.randint(1, min(len(pool), MAX_EVENTS)))
        sequence = chance.choice(list(told(order)))
        expected = end(sequence, start)
        assert await end_in_database(desk, payment, sequence, made) == expected, sequence


async def test_what_was_given_up_stays_given_up_in_any_order(desk: Desk) -> None:
    """A void is no report among others: only the provider that did it tells of it."""
    payment = await desk.open()
    voided = Voided(payment.payment_id, payment.provider_reference, NOW)
    others = [report_of(event, payment, {}) for event in BEFORE[:4]]
    await desk.apply_report(voided, *others, *reversed(others))
    assert (await desk.find(payment)).status is Status.VOIDED
