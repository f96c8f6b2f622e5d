"""Many requests in one transaction: each has its own outcome, independent of the others."""

import asyncio
from collections.abc import Sequence
from datetime import datetime

from mesh.db.batches import commit_each
from mesh.db.database import Database
from mesh.errors import DomainError, Reason
from mesh.ids import new_id
from stock_svc import batches, expiry, transitions
from stock_svc.reservations import Reservation, State
from stock_svc.reserve import Outcome, reserve_all
from stock_svc.transitions import Move, Order
from testing.stock_harness import HOLD, LAPSED, NOW, Sale, on_sale


async def reserve_together(
    database: Database, *requests: Reservation, now: datetime = NOW
) -> Sequence[Outcome]:
    async with database.transaction() as connection:
        return await reserve_all(connection, requests, now)


def shown(outcomes: Sequence[Outcome]) -> list[str]:
    return [str(o.reason if isinstance(o, DomainError) else o.state) for o in outcomes]


async def test_each_request_has_its_own_outcome_over_several_events(database: Database) -> None:
    floor = await on_sale(database, pools={"floor": 3})
    hall = await on_sale(database, seats={"stalls": ["A1", "A2"]})
    unknown = Sale(database, new_id(), {}, {}, {}, floor.stock)
    outcomes = await reserve_together(
        database,
        floor.request(floor.line(quantity=2)),
        floor.request(floor.line(quantity=2)),
        hall.request(*hall.lines("A1", "A2")),
        hall.request(*hall.lines("A2")),
        floor.request(*hall.lines("A1")),
        unknown.request(floor.line()),
        floor.request(),
        floor.request(),
    )
    assert shown(outcomes) == [
        "ACTIVE", "SOLD_OUT", "ACTIVE", "SEAT_UNAVAILABLE", "OFFER_NOT_FOUND", "EVENT_NOT_FOUND",
        "ACTIVE", "SOLD_OUT",
    ]  # fmt: skip
    refusal = outcomes[1]
    assert isinstance(refusal, DomainError)
    assert refusal.metadata["available"] == "1"
    for outcome in outcomes:
        if isinstance(outcome, Reservation):
            sale = floor if outcome.event_id == floor.event_id else hall
            assert await sale.get(outcome.reservation_id) == outcome
    assert await floor.counters() == (3, 0)
    await floor.assert_clean()
    await hall.assert_clean()


async def test_the_purchase_limit_counts_the_requests_accepted_before(database: Database) -> None:
    sale = await on_sale(database, per_customer_limit=3)
    customer_id = new_id()
    outcomes = await reserve_together(
        database,
        *(sale.request(sale.line(quantity=2), customer_id=customer_id) for _ in range(2)),
        sale.request(customer_id=customer_id),
        sale.request(sale.line(quantity=2)),
    )
    assert shown(outcomes) == ["ACTIVE", "PURCHASE_LIMIT_EXCEEDED", "ACTIVE", "ACTIVE"]
    refusal = outcomes[1]
    assert isinstance(refusal, DomainError)
    assert refusal.metadata["owned"] == "2"
    await sale.assert_clean()


async def test_equal_requests_in_one_batch_are_one_reservation(database: Database) -> None:
    sale = await on_sale(database, pools={"floor": 1})
    customer_id, reservation_id = new_id(), new_id()
    outcomes = await reserve_together(
        database,
        sale.request(customer_id=customer_id, request_key="key"),
        sale.request(customer_id=customer_id, request_key="key"),
        sale.request(sale.line(quantity=2), customer_id=customer_id, request_key="key"),
        sale.request(request_key="other", reservation_id=reservation_id),
        sale.request(request_key="another", reservation_id=reservation_id),
    )
    assert shown(outcomes) == [
        "ACTIVE", "ACTIVE", "IDEMPOTENCY_KEY_REUSED", "SOLD_OUT", "SOLD_OUT",
    ]  # fmt: skip
    assert outcomes[0] == outcomes[1]
    again = await reserve_together(
        database, sale.request(customer_id=customer_id, request_key="key")
    )
    assert list(again) == [outcomes[0]]
    await sale.assert_clean()


async def test_a_batch_uses_the_places_of_lapsed_holds(database: Database) -> None:
    sale = await on_sale(database, pools={"floor": 2}, offers={"place": "floor"},
                         seats={"stalls": ["A1"]})  # fmt: skip
    held = await sale.reserve(sale.line(quantity=2), *sale.lines("A1"), request_key="key")
    outcomes = await reserve_together(
        database,
        sale.request(now=LAPSED),
        sale.request(*sale.lines("A1"), now=LAPSED),
        sale.request(sale.line(quantity=2), now=LAPSED),
        sale.request(request_key="key", now=LAPSED),
        now=LAPSED,
    )
    assert shown(outcomes) == ["ACTIVE", "ACTIVE", "SOLD_OUT", "ACTIVE"]
    assert (await sale.get(held.reservation_id)).state is State.EXPIRED
    await sale.assert_clean()


async def test_more_lapsed_holds_than_one_clear_expires_are_cleared(
    own_database: Database,
) -> None:
    """All of them must expire before the requests fit."""
    count = expiry.MOST_CLEARED + 5
    sale = await on_sale(own_database, pools={"floor": count})
    held = [sale.request() for _ in range(count)]
    for start in range(0, count, batches.MAX_BATCH):
        outcomes = await reserve_together(own_database, *held[start : start + batches.MAX_BATCH])
        assert set(shown(outcomes)) == {"ACTIVE"}
    made = sale.request(sale.line(quantity=100), now=LAPSED)
    requests = [sale.request(sale.line(quantity=100), now=LAPSED) for _ in range(9)]
    everything = await reserve_together(own_database, made, *requests, now=LAPSED)
    assert set(shown(everything)) == {"ACTIVE"}
    rest = await reserve_together(
        own_database, sale.request(sale.line(quantity=5), now=LAPSED), now=LAPSED
    )
    assert shown(rest) == ["ACTIVE"]
    await sale.assert_clean()


async def test_a_request_that_fails_in_the_database_fails_alone(own_database: Database) -> None:
    """A trigger fails for one customer: the batch is split until this request is alone."""
    sale = await on_sale(own_database, pools={"floor": 20})
    unlucky = new_id()
    await sale.sql(
        "CREATE FUNCTION break_it() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " RAISE EXCEPTION 'broken' USING ERRCODE = 'internal_error'; END $$",
        "CREATE TRIGGER breaks BEFORE INSERT ON reservations FOR EACH ROW"
        f" WHEN (NEW.customer_id = '{unlucky}') EXECUTE FUNCTION break_it()",
    )
    requests = [sale.request() for _ in range(9)]
    requests.insert(4, sale.request(customer_id=unlucky))
    outcomes = await commit_each(own_database, requests, reserve_all, clock=lambda: NOW)
    expected = ["ACTIVE"] * 10
    expected[4] = str(Reason.INTERNAL)
    assert shown(outcomes) == expected
    assert await sale.counters() == (9, 0)
    await sale.assert_clean()


async def test_a_batch_that_was_rolled_back_is_repeated(own_database: Database) -> None:
    """As after a deadlock: the first attempt fails as a whole, the second succeeds."""
    sale = await on_sale(own_database)
    await sale.sql(
        "CREATE SEQUENCE attempts",
        "CREATE FUNCTION fail_once() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " IF nextval('attempts') = 1 THEN"
        " RAISE EXCEPTION 'deadlock' USING ERRCODE = 'deadlock_detected'; END IF;"
        " RETURN NULL; END $$",
        "CREATE TRIGGER fails AFTER INSERT ON reservations"
        " FOR EACH STATEMENT EXECUTE FUNCTION fail_once()",
    )
    outcomes = await commit_each(
        own_database, [sale.request() for _ in range(5)], reserve_all, clock=lambda: NOW
    )
    assert shown(outcomes) == ["ACTIVE"] * 5
    await sale.assert_clean()


async def test_concurrent_batches_sell_each_place_once(own_database: Database) -> None:
    """Four coalescers, as in four processes, over overlapping pools."""
    pooled = await on_sale(own_database, pools={"floor": 40, "balcony": 15},
                        offers={"place": "floor", "high": "balcony"})  # fmt: skip
    seated = await on_sale(own_database, seats={"stalls": [f"A{n}" for n in range(10)]})
    coalescers = [batches.coalesced_reserve(own_database, lambda: NOW) for _ in range(4)]
    calls = []
    for n in range(160):
        lines = [pooled.line("high"), pooled.line("place")] if n % 3 else [pooled.line("place")]
        request = pooled.request(*lines) if n % 4 else seated.request(*seated.lines(f"A{n % 10}"))
        calls.append(coalescers[n % 4].submit(request))
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    errors = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    reasons = {error.reason for error in errors if isinstance(error, DomainError)}
    assert all(isinstance(error, DomainError) for error in errors)
    assert reasons == {Reason.SOLD_OUT, Reason.SEAT_UNAVAILABLE}
    assert await pooled.counters("floor") == (40, 0)
    assert await pooled.counters("balcony") == (15, 0)
    assert set((await seated.seat_states()).values()) <= {"HELD", "AVAILABLE"}
    await pooled.assert_clean()
    await seated.assert_clean()


async def test_orders_of_a_batch_are_carried_out_in_order(database: Database) -> None:
    sale = await on_sale(database, pools={"floor": 9}, offers={"place": "floor"},
                         seats={"stalls": ["A1", "A2"]})  # fmt: skip
    seated = await sale.reserve(sale.line(quantity=2), *sale.lines("A1"))
    other, lapsed = await sale.reserve(*sale.lines("A2")), await sale.reserve(hold=HOLD / 2)

    def order(move: Move, made: Reservation) -> Order:
        return Order(move, sale.event_id, made.reservation_id, NOW + 2 * HOLD)

    async with database.transaction() as connection:
        outcomes = await transitions.move_all(
            connection,
            [
                order(Move.EXTEND, seated),
                order(Move.COMMIT, seated),
                order(Move.RELEASE, seated),
                order(Move.RETURN, seated),
                order(Move.COMMIT, seated),
                order(Move.COMMIT, other),
                order(Move.COMMIT, other),
                order(Move.COMMIT, lapsed),
                order(Move.RELEASE, lapsed),
                Order(Move.RELEASE, sale.event_id, new_id()),
                Order(Move.COMMIT, sale.event_id, new_id()),
            ],
            NOW + HOLD / 2,
        )
    results = [
        str(outcome.reason) if isinstance(outcome, DomainError)
        else (outcome.reservation and str(outcome.reservation.state), outcome.has_moved)
        for outcome in outcomes
    ]  # fmt: skip
    assert results == [
        ("ACTIVE", True),
        ("COMMITTED", True),
        "RESERVATION_STATE_INVALID",
        ("RETURNED", True),
        "RESERVATION_STATE_INVALID",
        ("COMMITTED", True),
        ("COMMITTED", False),
        "HOLD_EXPIRED",
        ("ACTIVE", False),
        (None, False),
        "RESERVATION_NOT_FOUND",
    ]
    assert await sale.seat_states() == {"A1": "AVAILABLE", "A2": "SOLD"}
    assert (await sale.get(seated.reservation_id)).expire_time == NOW + 2 * HOLD
    await sale.assert_clean()
