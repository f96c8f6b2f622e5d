"""All orders of all sets of up to six reports of one payment, each also with repetitions.

The model is a pure function from reports to a payment's state. All orders are tried with the
model, and a sample of them with the database; with --long a large sample.
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
from payment_svc import payment_reports, payments, tables
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
from testing.payment_harness import NOW, PRICE, SandboxHarness

MAX_EVENTS = 6
SAMPLE = 60
LONG_SAMPLE = 4000


@dataclass(frozen=True)
class ModelState:
    """A payment's state. `observed` is the time of the latest applied report."""

    status: str
    observed: int = 0
    authorized: bool = False
    captures: frozenset[tuple[str, str]] = frozenset()
    refunded: frozenset[str] = frozenset()
    dispute: str = ""


def step(state: ModelState, event: tuple[Any, ...]) -> ModelState:
    """The transition function of the model."""
    kind = event[0]
    if kind == "dispute":
        status = event[1] if state.dispute in {"", "OPEN"} else state.dispute
        return replace(state, dispute=status)
    if kind == "capture":
        return capture(state, *event[1:])
    if kind == "refund":
        refunded = state.refunded | {event[1]}
        return replace(
            state,
            refunded=refunded,
            status="REFUNDED" if len(refunded) == 2 else "PARTIALLY_REFUNDED",
        )
    if state.status not in {"CREATED", "AUTHORIZED", "FAILED"}:
        return state
    at = event[1]
    if kind == "authorized" and at >= state.observed:
        return replace(state, status="AUTHORIZED", observed=at)
    if kind == "failed" and at > state.observed:
        return replace(state, status="FAILED", observed=at)
    return state


def capture(state: ModelState, name: str, amount: str, at: int) -> ModelState:
    if any(name == known for known, _ in state.captures):
        return state
    is_open = state.status in {"CREATED", "AUTHORIZED", "FAILED"}
    if amount == "other":
        state = replace(state, captures=state.captures | {(name, "MISMATCHED")})
        if is_open and at > state.observed:
            return replace(state, status="FAILED", observed=at)
        return state
    if is_open:
        taken = state.captures | {(name, "ACCEPTED")}
        return replace(state, status="CAPTURED", captures=taken, observed=0)
    return replace(state, captures=state.captures | {(name, "SECOND")})


def end(events: Sequence[tuple[Any, ...]], start: ModelState) -> Any:
    """The state after all events, without which of two equal captures pays."""
    state = start
    for event in events:
        state = step(state, event)
    return (
        state.status,
        sorted(verdict for _, verdict in state.captures),
        state.refunded,
        state.dispute,
    )


# Reports of one payment: two attempts to pay, a capture, a second one, one with another amount;
# and of a paid payment its refunds and a dispute that is won.
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
CREATED = ModelState("CREATED")
PAID = ModelState("CAPTURED", captures=frozenset({("ch_1", "ACCEPTED")}))


def sets_of(events: Sequence[tuple[Any, ...]]) -> Iterator[tuple[tuple[Any, ...], ...]]:
    for size in range(1, MAX_EVENTS + 1):
        yield from itertools.combinations(events, size)


def sequences_of(order: Sequence[tuple[Any, ...]]) -> Iterator[list[tuple[Any, ...]]]:
    """An order once, all of it twice, and each report twice in a row."""
    yield list(order)
    yield [*order, *order]
    yield [event for event in order for _ in range(2)]


@pytest.mark.parametrize(("events", "start"), [(BEFORE, CREATED), (AFTER, PAID)])
def test_all_orders_of_all_sets_end_in_the_same_state(
    events: Sequence[tuple[Any, ...]], start: ModelState
) -> None:
    orders = 0
    for chosen in sets_of(events):
        ends = set()
        for order in itertools.permutations(chosen):
            for sequence in sequences_of(order):
                status, verdicts, refunded, dispute = end(sequence, start)
                ends.add((status, tuple(verdicts), refunded, dispute))
                orders += 1
        assert len(ends) == 1, (chosen, ends)
    assert orders == 3 * sum(
        len(list(itertools.permutations(range(7), size))) for size in range(1, MAX_EVENTS + 1)
    )


def report_of(event: tuple[Any, ...], payment: Payment, refunds: dict[str, Any]) -> ProviderReport:
    """The report of a model's event."""
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
            refund = refunds[name]
            return RefundProcessed(
                *common, NOW, refund.refund_id, f"re_{refund.refund_id}", refund.amount
            )
        case ("dispute", status):
            return Disputed(
                *common, NOW, "dp_1", "ch_1", PRICE, "fraudulent", DisputeStatus(status)
            )
    raise LookupError(event)


async def end_in_database(
    harness: SandboxHarness,
    payment: Payment,
    sequence: Sequence[tuple[Any, ...]],
    refunds: dict[str, Any],
) -> Any:
    """The same state in the database. The transaction is rolled back."""
    connection = await harness.database._engine.connect()
    try:
        for event in sequence:
            await payment_reports.apply_report(
                connection, provider=NAME, report=report_of(event, payment, refunds), now=NOW
            )
        stored = await payments.find(connection, payment_id=payment.payment_id, owner=None)
        verdicts = await connection.execute(sa.select(tables.captures.c.verdict))
        processed = await connection.execute(
            sa.select(tables.refunds.c.refund_id).where(tables.refunds.c.status == "PROCESSED")
        )
        names = {refund.refund_id: name for name, refund in refunds.items()}
        dispute = await connection.execute(sa.select(tables.disputes.c.status))
        # The ledger's accounts sum to zero.
        unbalanced = await connection.execute(
            sa.select(sa.func.sum(tables.book_lines.c.amount_minor))
        )
        assert int(unbalanced.scalar_one() or 0) == 0
        return (
            str(stored.status),
            sorted(verdicts.scalars()),
            frozenset(names[refund_id] for refund_id in processed.scalars()),
            dispute.scalar_one_or_none() or "",
        )
    finally:
        await connection.rollback()
        await connection.close()


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("is_paid", [False, True])
async def test_the_database_ends_in_the_state_of_the_model(
    harness: SandboxHarness, is_paid: bool, is_long: bool
) -> None:
    payment = await harness.open()
    refunds: dict[str, Any] = {}
    if is_paid:
        await harness.apply_reports(report_of(("capture", "ch_1", "price", 3), payment, refunds))
        for name, amount in (("first", Money(50_000, "INR")), ("rest", None)):
            refunds[name] = await harness.request_refund(payment, amount)
    events, start = (AFTER, PAID) if is_paid else (BEFORE, CREATED)
    chance = random.Random(3)
    for number in range(LONG_SAMPLE if is_long else SAMPLE):
        # Every second one without captures, which win over all earlier reports.
        pool = [event for event in events if event[0] != "capture"] if number % 2 else events
        order = chance.sample(pool, chance.randint(1, min(len(pool), MAX_EVENTS)))
        sequence = chance.choice(list(sequences_of(order)))
        expected = end(sequence, start)
        assert await end_in_database(harness, payment, sequence, refunds) == expected, sequence


async def test_a_voided_payment_stays_voided_in_any_order(harness: SandboxHarness) -> None:
    """A void is not among the events above: only the provider's answer to a void reports it."""
    payment = await harness.open()
    voided = Voided(payment.payment_id, payment.provider_reference, NOW)
    others = [report_of(event, payment, {}) for event in BEFORE[:4]]
    await harness.apply_reports(voided, *others, *reversed(others))
    assert (await harness.find(payment)).status is Status.VOIDED
