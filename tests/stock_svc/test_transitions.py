"""The moves of a reservation, and that each happens at most once."""

from collections.abc import Awaitable, Callable
from datetime import timedelta

import pytest
import sqlalchemy as sa

from mesh.db.database import Database
from mesh.errors import DomainError, Reason
from mesh.ids import new_id
from stock_svc.expiry import sweep
from stock_svc.reservations import MOVES, Reservation, State
from testing.stock_harness import HOLD, LAPSED, NOW, Sale, on_sale

JUST_BEFORE = LAPSED - timedelta(microseconds=1)


def test_every_state_has_its_moves() -> None:
    assert MOVES.keys() == set(State)


def test_no_move_leads_back_to_active_and_three_states_are_final() -> None:
    assert all(State.ACTIVE not in targets for targets in MOVES.values())
    assert {state for state, targets in MOVES.items() if not targets} == {
        State.RELEASED,
        State.EXPIRED,
        State.RETURNED,
    }


async def in_state(sale: Sale, state: State) -> Reservation:
    """A reservation of one place that has reached a state."""
    made = await sale.reserve()
    match state:
        case State.COMMITTED:
            await sale.commit(made.reservation_id)
        case State.RELEASED:
            await sale.release(made.reservation_id)
        case State.EXPIRED:
            await sweep(sale.database, now=LAPSED)
        case State.RETURNED:
            await sale.sql(
                "UPDATE reservations SET state = 'RETURNED'"
                f" WHERE reservation_id = '{made.reservation_id}'"
            )
        case State.ACTIVE:
            pass
    return made


async def outcome(call: Callable[[], Awaitable[object]]) -> object:
    try:
        result = await call()
    except DomainError as error:
        return error.reason
    return result.state if isinstance(result, Reservation) else result


@pytest.mark.parametrize(
    ("state", "committed", "released", "extended"),
    [
        (State.ACTIVE, State.COMMITTED, True, State.ACTIVE),
        (
            State.COMMITTED,
            State.COMMITTED,
            Reason.RESERVATION_STATE_INVALID,
            Reason.RESERVATION_STATE_INVALID,
        ),
        (
            State.RELEASED,
            Reason.RESERVATION_STATE_INVALID,
            False,
            Reason.RESERVATION_STATE_INVALID,
        ),
        (State.EXPIRED, Reason.HOLD_EXPIRED, False, Reason.HOLD_EXPIRED),
        (
            State.RETURNED,
            Reason.RESERVATION_STATE_INVALID,
            False,
            Reason.RESERVATION_STATE_INVALID,
        ),
    ],
)
async def test_every_state_answers_every_call(
    database: Database, state: State, committed: object, released: object, extended: object
) -> None:
    sale = await on_sale(database)
    for call, expected in ((sale.commit, committed), (sale.release, released)):
        made = await in_state(sale, state)
        assert await outcome(lambda: call(made.reservation_id)) == expected  # noqa: B023
    made = await in_state(sale, state)
    assert await outcome(lambda: sale.extend(made.reservation_id)) == extended


async def test_a_refusal_names_the_state(database: Database) -> None:
    sale = await on_sale(database)
    made = await in_state(sale, State.RELEASED)
    with pytest.raises(DomainError) as refused:
        await sale.commit(made.reservation_id)
    assert refused.value.metadata == {"state": "RELEASED"}


async def test_an_unknown_reservation_is_not_found(database: Database) -> None:
    sale = await on_sale(database)
    assert await outcome(lambda: sale.commit(new_id())) is Reason.RESERVATION_NOT_FOUND
    assert await outcome(lambda: sale.extend(new_id())) is Reason.RESERVATION_NOT_FOUND
    assert await sale.release(new_id()) is False


async def test_a_reservation_of_another_event_is_unknown(database: Database) -> None:
    sale, other = await on_sale(database), await on_sale(database)
    made = await sale.reserve()
    assert await outcome(lambda: other.commit(made.reservation_id)) is Reason.RESERVATION_NOT_FOUND
    assert await other.release(made.reservation_id) is False
    assert (await sale.get(made.reservation_id)).state is State.ACTIVE


async def test_a_repeated_move_changes_nothing(database: Database) -> None:
    sale = await on_sale(database, offers={"place": "floor"}, seats={"stalls": ["A1", "A2"]})
    sold = await sale.reserve(sale.line(quantity=2), *sale.lines("A1"))
    first = await sale.commit(sold.reservation_id)
    assert await sale.commit(sold.reservation_id) == first
    freed = await sale.reserve(sale.line(quantity=3), *sale.lines("A2"))
    assert [await sale.release(freed.reservation_id) for _ in range(3)] == [True, False, False]
    assert await sale.counters("floor") == (0, 2)
    assert await sale.seat_states() == {"A1": "SOLD", "A2": "AVAILABLE"}
    await sale.assert_clean()


async def test_a_hold_lapses_exactly_at_its_expire_time(database: Database) -> None:
    sale = await on_sale(database)
    in_time, late = await sale.reserve(), await sale.reserve()
    await sale.commit(in_time.reservation_id, now=JUST_BEFORE)
    with pytest.raises(DomainError) as refused:
        await sale.commit(late.reservation_id, now=LAPSED)
    assert refused.value.reason is Reason.HOLD_EXPIRED
    assert await sale.release(late.reservation_id, now=LAPSED) is False


async def test_a_committed_reservation_never_expires(own_database: Database) -> None:
    sale = await on_sale(own_database)
    sold = await sale.reserve()
    await sale.commit(sold.reservation_id)
    later = NOW + timedelta(days=365)
    assert await sweep(own_database, now=later) == 0
    assert (await sale.commit(sold.reservation_id, now=later)).state is State.COMMITTED


async def test_a_hold_is_extended_once(database: Database) -> None:
    sale = await on_sale(database)
    made = await sale.reserve()
    first_end = NOW + timedelta(minutes=20)
    assert (await sale.extend(made.reservation_id, to=first_end)).expire_time == first_end
    again = await sale.extend(made.reservation_id, to=first_end + timedelta(hours=1))
    assert again.expire_time == first_end
    assert (await sale.commit(made.reservation_id, now=LAPSED + HOLD / 2)).state is State.COMMITTED


async def test_a_lapsed_hold_is_not_extended(database: Database) -> None:
    sale = await on_sale(database)
    made = await sale.reserve()
    assert (
        await outcome(lambda: sale.extend(made.reservation_id, now=LAPSED)) is Reason.HOLD_EXPIRED
    )
    extended = await sale.reserve()
    await sale.extend(extended.reservation_id)
    far = NOW + timedelta(hours=1)
    assert (
        await outcome(lambda: sale.extend(extended.reservation_id, now=far)) is Reason.HOLD_EXPIRED
    )


@pytest.mark.parametrize(
    ("statement", "constraint"),
    [
        ("UPDATE pools SET held = capacity + 1", "pools_oversold_check"),
        ("UPDATE pools SET held = -1", "pools_held_check"),
        ("UPDATE pools SET sold = -1", "pools_sold_check"),
        ("UPDATE customer_totals SET quantity = 101", "customer_totals_purchase_limit_check"),
        ("UPDATE customer_totals SET quantity = -1", "customer_totals_quantity_check"),
        ("UPDATE reservation_lines SET quantity = 0", "reservation_lines_quantity_check"),
        ("UPDATE seat_claims SET state = 'LOST'", "seat_claims_state_check"),
        ("UPDATE reservations SET state = 'LOST'", "reservations_state_check"),
        (
            "INSERT INTO seat_claims SELECT event_id, reservation_id, seat_id, 'SOLD'"
            " FROM seat_claims CROSS JOIN (SELECT reservation_id FROM reservations"
            " WHERE state = 'RELEASED') AS other (reservation_id)",
            "seat_claims_live_idx",
        ),
        (
            "UPDATE reservations SET state = 'ACTIVE', request_key = 'k'",
            "reservations_live_request_key_idx",
        ),
    ],
)
async def test_constraints_refuse_impossible_rows(
    database: Database, statement: str, constraint: str
) -> None:
    """Also when a statement lacks its guard."""
    sale = await on_sale(database, offers={"place": "floor"}, seats={"stalls": ["A1"]})
    await sale.release((await sale.reserve()).reservation_id)
    await sale.reserve(sale.line(), *sale.lines("A1"))
    if "CROSS JOIN" in statement:
        statement = statement.replace(
            "event_id, reservation_id,", "event_id, other.reservation_id,"
        )
    with pytest.raises(sa.exc.IntegrityError, match=constraint):
        await sale.sql(statement)
