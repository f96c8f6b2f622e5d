"""Reserving: all or nothing, refusals with their metadata, repeated requests."""

import asyncio
import json
from dataclasses import replace
from datetime import timedelta

import pytest
import sqlalchemy as sa

from mesh.db.database import Database
from mesh.db.pipeline import FORCE_INDEX_SCANS, run_together
from mesh.errors import DomainError, Reason
from mesh.ids import new_id
from stock_svc import ledger, restocking, statements
from stock_svc.reservations import MAX_HOLD, Line, State
from stock_svc.reserve import reserve_all
from testing.stock_harness import HOLD, LAPSED, NOW, Sale, on_sale, reserve_one


async def refused(sale: Sale, *lines: Line, **details: object) -> DomainError:
    """The refusal of a request; checks that the request changed nothing."""
    before = await sale.availability()
    with pytest.raises(DomainError) as error:
        await sale.reserve(*lines, **details)  # type: ignore[arg-type]
    assert await sale.availability() == before
    await sale.assert_clean()
    return error.value


def failures(error: DomainError) -> list[dict[str, object]]:
    listed: list[dict[str, object]] = json.loads(error.metadata["failures"])
    return listed


async def test_what_is_reserved_is_held(database: Database) -> None:
    sale = await on_sale(database, seats={"stalls": ["A1"]}, offers={"place": "floor"})
    customer_id, reservation_id = new_id(), new_id()
    made = await sale.reserve(
        sale.line(quantity=3),
        *sale.lines("A1"),
        customer_id=customer_id,
        reservation_id=reservation_id,
    )
    assert (made.reservation_id, made.customer_id, made.state) == (
        reservation_id,
        customer_id,
        State.ACTIVE,
    )
    assert (made.create_time, made.expire_time) == (NOW, NOW + HOLD)
    assert made.lines == (sale.line(quantity=3), *sale.lines("A1"))
    assert await sale.get(reservation_id) == made
    assert await sale.counters("floor") == (3, 0)
    assert await sale.counters("stalls") == (1, 0)
    await sale.assert_clean()


async def test_sold_out_has_the_number_of_available_places(database: Database) -> None:
    sale = await on_sale(database)
    await sale.reserve(sale.line(quantity=8))
    error = await refused(sale, sale.line(quantity=3))
    assert error.reason is Reason.SOLD_OUT
    offer_id = str(sale.offers["place"])
    assert failures(error) == [
        {"item": 0, "reason": "SOLD_OUT", "offerId": offer_id, "requested": 3, "available": 2}
    ]
    assert error.metadata == {
        "offer_id": offer_id,
        "requested": "3",
        "available": "2",
        "failures": error.metadata["failures"],
    }


async def test_the_demand_on_a_pool_is_summed_over_lines_and_offers(database: Database) -> None:
    sale = await on_sale(database, offers={"adult": "floor", "child": "floor"})
    error = await refused(sale, sale.line("adult", 5), sale.line("child", 5), sale.line("adult", 1))
    assert error.reason is Reason.SOLD_OUT
    assert error.metadata["requested"] == "11"
    await sale.reserve(sale.line("adult", 5), sale.line("child", 5))


async def test_a_shortage_in_one_pool_refuses_the_whole_request(database: Database) -> None:
    sale = await on_sale(
        database, pools={"floor": 10, "balcony": 1}, offers={"low": "floor", "high": "balcony"}
    )
    error = await refused(sale, sale.line("low", 2), sale.line("high", 2))
    assert error.metadata["offer_id"] == str(sale.offers["high"])


async def test_taken_seats_are_named_with_their_state_and_whether_the_caller_holds_them(
    database: Database,
) -> None:
    sale = await on_sale(database, seats={"stalls": ["A1", "A2", "A3", "A4", "A5"]})
    customer_id = new_id()
    held = await sale.reserve(*sale.lines("A1"))
    await sale.reserve(*sale.lines("A2"), customer_id=customer_id)
    sold = await sale.reserve(*sale.lines("A3"))
    await sale.commit(sold.reservation_id)
    async with database.transaction() as connection:
        await restocking.block(
            connection, event_id=sale.event_id, seat_ids=[sale.seats["A4"]], now=NOW
        )
    error = await refused(sale, *sale.lines("A5", "A4", "A3", "A2", "A1"), customer_id=customer_id)
    assert error.reason is Reason.SEAT_UNAVAILABLE
    assert error.message == (
        "1 seat is blocked, 1 seat is held, 1 seat is held by you, 1 seat is sold"
    )
    taken = {"item": 0, "reason": "SEAT_UNAVAILABLE"}
    states: list[tuple[str, dict[str, object]]] = [
        ("A4", {"state": "BLOCKED"}),
        ("A3", {"state": "SOLD"}),
        ("A2", {"state": "HELD", "heldByYou": True}),
        ("A1", {"state": "HELD"}),
    ]
    assert failures(error) == [
        {**taken, "item": number, "seatId": str(sale.seats[name]), **state}
        for number, (name, state) in enumerate(states, start=1)
    ]
    assert error.metadata["seat_ids"].split(",") == sorted(
        str(sale.seats[name]) for name in ("A1", "A2", "A3", "A4")
    )
    await sale.release(held.reservation_id)
    await sale.reserve(*sale.lines("A1", "A5"))


async def test_every_line_at_fault_is_named_with_its_reason(database: Database) -> None:
    sale = await on_sale(
        database,
        pools={"floor": 10, "balcony": 10},
        offers={"floor": "floor", "balcony": "balcony"},
        seats={"stalls": ["A1", "A2"]},
        per_customer_limit=2,
    )
    customer_id = new_id()
    await sale.reserve(sale.line("floor", 2), customer_id=customer_id)
    await sale.reserve(*sale.lines("A1"))
    for _ in range(5):
        await sale.reserve(sale.line("balcony", 2))
    lines = (*sale.lines("A2"), sale.line("floor", 1), sale.line("balcony", 2), *sale.lines("A1"))
    reasons = [(1, "PURCHASE_LIMIT_EXCEEDED"), (2, "SOLD_OUT"), (3, "SEAT_UNAVAILABLE")]
    unlocked = await refused(sale, *lines, customer_id=customer_id)
    # With a lapsed hold, the request is decided under the locks of its pools.
    await sale.reserve(*sale.lines("A2"), hold=timedelta(seconds=1))
    now = NOW + timedelta(seconds=2)
    async with database.transaction() as connection:
        request = sale.request(*lines, customer_id=customer_id, now=now)
        [locked] = await reserve_all(connection, [request], now)
    assert isinstance(locked, DomainError)
    for error in (unlocked, locked):
        assert error.reason is Reason.SEAT_UNAVAILABLE
        assert [(entry["item"], entry["reason"]) for entry in failures(error)] == reasons
        assert failures(error)[0]["owned"] == 2
        assert failures(error)[1]["available"] == 0


async def test_very_many_lines_at_fault_are_counted(database: Database) -> None:
    names = [f"A{n}" for n in range(40)]
    sale = await on_sale(database, seats={"stalls": names})
    for start in range(0, 40, 10):
        await sale.reserve(*sale.lines(*names[start : start + 10]))
    error = await refused(sale, *sale.lines(*names))
    assert len(failures(error)) + int(error.metadata["more_failures"]) == 40
    assert len(failures(error)) >= 10


async def test_a_taken_seat_of_a_full_pool_is_seat_unavailable(database: Database) -> None:
    sale = await on_sale(database, seats={"stalls": ["A1"]})
    await sale.reserve(*sale.lines("A1"))
    error = await refused(sale, *sale.lines("A1"))
    assert error.reason is Reason.SEAT_UNAVAILABLE


async def test_the_purchase_limit_counts_held_and_sold_places(database: Database) -> None:
    sale = await on_sale(database, per_customer_limit=4)
    customer_id = new_id()
    sold = await sale.reserve(sale.line(quantity=2), customer_id=customer_id)
    await sale.commit(sold.reservation_id)
    held = await sale.reserve(sale.line(), customer_id=customer_id)
    error = await refused(sale, sale.line(quantity=2), customer_id=customer_id)
    assert error.reason is Reason.PURCHASE_LIMIT_EXCEEDED
    assert error.metadata == {
        "offer_id": str(sale.offers["place"]),
        "limit": "4",
        "owned": "3",
        "requested": "2",
        "failures": error.metadata["failures"],
    }
    assert failures(error)[0]["limit"] == 4
    await sale.reserve(sale.line(quantity=2))  # by another customer
    await sale.release(held.reservation_id)
    await sale.reserve(sale.line(quantity=2), customer_id=customer_id)


async def test_the_purchase_limit_sums_over_the_lines_of_one_request(
    database: Database,
) -> None:
    sale = await on_sale(database, per_customer_limit=4)
    error = await refused(sale, sale.line(quantity=3), sale.line(quantity=2))
    assert error.reason is Reason.PURCHASE_LIMIT_EXCEEDED
    assert (error.metadata["owned"], error.metadata["requested"]) == ("0", "5")


async def test_unknown_offers_seats_and_events_are_not_found(database: Database) -> None:
    sale = await on_sale(
        database, offers={"place": "floor"}, seats={"stalls": ["A1"], "circle": ["B1"]}
    )
    assert (await refused(sale, Line(new_id(), 1))).reason is Reason.OFFER_NOT_FOUND
    unknown_seat = Line(sale.offers["stalls"], 1, new_id())
    assert (await refused(sale, unknown_seat)).reason is Reason.SEAT_NOT_FOUND
    seat_of_another_offer = Line(sale.offers["stalls"], 1, sale.seats["B1"])
    error = await refused(sale, seat_of_another_offer)
    assert error.reason is Reason.SEAT_NOT_FOUND
    assert error.metadata == {"seat_ids": str(sale.seats["B1"])}
    seat_at_an_offer_without_seats = Line(sale.offers["place"], 1, sale.seats["A1"])
    assert (await refused(sale, seat_at_an_offer_without_seats)).reason is Reason.SEAT_NOT_FOUND
    with pytest.raises(DomainError) as error_of_event:
        await replace(sale, event_id=new_id()).reserve()
    assert error_of_event.value.reason is Reason.EVENT_NOT_FOUND


async def test_a_seat_of_another_event_is_not_found(database: Database) -> None:
    sale = await on_sale(database, seats={"stalls": ["A1"]})
    other = await on_sale(database, seats={"stalls": ["A1"]})
    error = await refused(sale, Line(sale.offers["stalls"], 1, other.seats["A1"]))
    assert error.reason is Reason.SEAT_NOT_FOUND


async def test_invalid_lines_are_refused_by_their_field(database: Database) -> None:
    sale = await on_sale(database, seats={"stalls": ["A1", "A2"]})
    a1, a2 = sale.lines("A1", "A2")
    for lines, field in (
        ((a1, a2, a1), "lines[2].seat_id"),
        ((a1, replace(a2, quantity=2)), "lines[1].quantity"),
        ((a1, replace(a2, seat_id=None)), "lines[1].seat_id"),
    ):
        error = await refused(sale, *lines)
        assert error.reason is Reason.VALIDATION_FAILED
        assert [violation.field for violation in error.violations] == [field]


@pytest.mark.parametrize(
    "hold", [timedelta(0), timedelta(seconds=-1), MAX_HOLD + timedelta(seconds=1)]
)
async def test_the_expire_time_must_be_in_the_future_and_within_the_maximum(
    database: Database, hold: timedelta
) -> None:
    error = await refused(await on_sale(database), hold=hold)
    assert [violation.field for violation in error.violations] == ["expire_time"]


async def test_a_repeated_request_returns_the_existing_reservation(database: Database) -> None:
    sale = await on_sale(database, offers={"adult": "floor", "child": "floor"})
    adult, child = sale.line("adult", 2), sale.line("child")
    customer_id = new_id()
    first = await sale.reserve(adult, child, customer_id=customer_id, request_key="key")
    again = await sale.reserve(child, adult, customer_id=customer_id, request_key="key")
    assert again == first
    assert await sale.counters() == (3, 0)
    await sale.commit(first.reservation_id)
    sold = await sale.reserve(adult, child, customer_id=customer_id, request_key="key")
    assert (sold.reservation_id, sold.state) == (first.reservation_id, State.COMMITTED)
    await sale.assert_clean()


async def test_a_repeated_request_returns_the_existing_reservation_of_a_sold_out_pool(
    database: Database,
) -> None:
    sale = await on_sale(database)
    customer_id = new_id()
    first = await sale.reserve(customer_id=customer_id, request_key="key")
    await sale.reserve(sale.line(quantity=9))
    assert await sale.reserve(customer_id=customer_id, request_key="key") == first


async def test_a_request_for_a_full_pool_writes_nothing_and_waits_for_no_lock(
    database: Database,
) -> None:
    """In a burst most requests are refused: they must not wait for the lock of one row."""
    sale = await on_sale(database)
    await sale.reserve(sale.line(quantity=10))
    async with database.transaction() as other, database.transaction() as connection:
        await ledger.lock(other, {(sale.event_id, pool_id) for pool_id in sale.pools.values()})
        async with asyncio.timeout(60):
            with pytest.raises(DomainError) as sold_out:
                await reserve_one(connection, sale.request(), now=NOW)
        assert sold_out.value.reason is Reason.SOLD_OUT
        assert await connection.scalar(sa.text("SELECT pg_current_xact_id_if_assigned()")) is None


async def test_a_key_or_id_that_was_used_for_another_request_is_refused(database: Database) -> None:
    sale = await on_sale(database)
    customer_id, reservation_id = new_id(), new_id()
    await sale.reserve(customer_id=customer_id, request_key="key", reservation_id=reservation_id)
    for lines, details in (
        ([sale.line(quantity=2)], {"request_key": "key", "customer_id": customer_id}),
        ([sale.line()], {"request_key": "key"}),
        ([sale.line()], {"customer_id": customer_id, "reservation_id": reservation_id}),
    ):
        error = await refused(sale, *lines, **details)
        assert error.reason is Reason.IDEMPOTENCY_KEY_REUSED


async def test_a_request_key_can_be_used_again_for_another_event(database: Database) -> None:
    for _ in range(2):
        sale = await on_sale(database)
        await sale.reserve(request_key="key")
        assert await sale.counters() == (1, 0)


async def test_a_repeated_id_returns_the_reservation_in_any_state(
    database: Database,
) -> None:
    sale = await on_sale(database)
    request = {"customer_id": new_id(), "reservation_id": new_id(), "request_key": "key"}
    first = await sale.reserve(**request)  # type: ignore[arg-type]
    assert await sale.reserve(**request) == first  # type: ignore[arg-type]
    await sale.release(first.reservation_id)
    again = await sale.reserve(**request)  # type: ignore[arg-type]
    assert again.state is State.RELEASED
    assert await sale.counters() == (0, 0)


@pytest.mark.parametrize("ending", ["released", "lapsed"])
async def test_a_request_key_can_be_used_again_after_its_reservation_ended(
    database: Database, ending: str
) -> None:
    sale = await on_sale(database)
    customer_id = new_id()
    first = await sale.reserve(customer_id=customer_id, request_key="key")
    if ending == "released":
        await sale.release(first.reservation_id)
    again = await sale.reserve(customer_id=customer_id, request_key="key", now=LAPSED)
    assert again.reservation_id != first.reservation_id
    assert await sale.counters() == (1, 0)
    await sale.assert_clean()


async def test_a_repeated_id_of_a_lapsed_reservation_returns_it_expired(database: Database) -> None:
    sale = await on_sale(database)
    request = {"customer_id": new_id(), "reservation_id": new_id(), "request_key": "key"}
    await sale.reserve(**request)  # type: ignore[arg-type]
    again = await sale.reserve(**request, now=LAPSED)
    assert again.state is State.EXPIRED
    assert await sale.counters() == (0, 0)


async def test_existing_reservations_are_looked_up_by_key_however_small_the_table_was(
    database: Database,
) -> None:
    """A plan that is made while the table is empty is used until PostgreSQL analyses the table."""
    sql = statements.EXISTING
    for number in range(sql.count("%s")):
        sql = sql.replace("%s", f"${number + 1}", 1)
    async with database.transaction() as connection:
        await run_together(connection, [FORCE_INDEX_SCANS])
        for statement in (
            # As new: earlier tests may have left pages and statistics, which change the plan.
            "TRUNCATE reservations CASCADE",
            "DELETE FROM pg_statistic WHERE starelid = 'reservations'::regclass",
            "SET LOCAL plan_cache_mode = force_generic_plan",
            f"PREPARE existing (int[], uuid[], uuid[], text[]) AS {sql}",
        ):
            await connection.exec_driver_sql(statement)
        plan = await connection.exec_driver_sql("EXPLAIN EXECUTE existing ('{}', '{}', '{}', '{}')")
        conditions = [line for (line,) in plan if "Index Cond" in line]
        await connection.exec_driver_sql("DEALLOCATE existing")
    assert ["reservation_id =" in line or "request_key =" in line for line in conditions] == [
        True,
        True,
    ]
