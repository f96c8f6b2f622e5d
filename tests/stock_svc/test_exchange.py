"""The exchange: all or nothing, and the new reservation gets the state of the old one."""

from datetime import timedelta

import pytest

from mesh.db.database import Database
from mesh.errors import DomainError, Reason
from mesh.ids import new_id
from stock_svc.reservations import State
from testing.stock_harness import HOLD, LAPSED, NOW, on_sale


@pytest.mark.parametrize("is_sold", [False, True])
async def test_an_exchange_to_another_event_keeps_the_state(
    database: Database, is_sold: bool
) -> None:
    old, new = await on_sale(database), await on_sale(database)
    made = await old.reserve(old.line(quantity=3))
    if is_sold:
        await old.commit(made.reservation_id)
    got = await old.exchange(made.reservation_id, new.line(quantity=2), to=new)
    ended = await old.get(made.reservation_id)
    assert ended.state is (State.RETURNED if is_sold else State.RELEASED)
    assert got.state is (State.COMMITTED if is_sold else State.ACTIVE)
    assert (got.event_id, got.customer_id) == (new.event_id, made.customer_id)
    assert await old.counters() == (0, 0)
    assert await new.counters() == ((0, 2) if is_sold else (2, 0))
    await old.assert_clean()
    await new.assert_clean()


async def test_within_an_event_the_old_places_are_available_to_the_new_reservation(
    database: Database,
) -> None:
    """The pool is full and the customer at the limit, but for what is given back."""
    sale = await on_sale(database, seats={"stalls": ["A1", "A2"]}, per_customer_limit=2)
    made = await sale.reserve(*sale.lines("A1", "A2"))
    await sale.commit(made.reservation_id)
    fewer = await sale.exchange(made.reservation_id, *sale.lines("A2"))
    assert await sale.seat_states() == {"A1": "AVAILABLE", "A2": "SOLD"}
    await sale.exchange(fewer.reservation_id, *sale.lines("A1", "A2"))
    assert await sale.seat_states() == {"A1": "SOLD", "A2": "SOLD"}
    await sale.assert_clean()


async def test_a_refused_exchange_changes_nothing(database: Database) -> None:
    old = await on_sale(database)
    new = await on_sale(
        database, pools={"floor": 4}, offers={"place": "floor"}, seats={"stalls": ["A1"]},
        per_customer_limit=3,
    )  # fmt: skip
    made = await old.reserve()
    await old.commit(made.reservation_id)
    await new.reserve(new.line(quantity=2), *new.lines("A1"))
    refusals = {
        Reason.SOLD_OUT: [new.line(quantity=3)],
        Reason.SEAT_UNAVAILABLE: new.lines("A1"),
        Reason.OFFER_NOT_FOUND: [old.line()],
    }
    for reason, lines in refusals.items():
        with pytest.raises(DomainError) as refused:
            await old.exchange(made.reservation_id, *lines, to=new)
        assert refused.value.reason is reason
    await new.commit((await new.reserve(customer_id=made.customer_id)).reservation_id)
    await new.sql(f"UPDATE offers SET per_customer_limit = 1 WHERE event_id = '{new.event_id}'")
    assert (await old.get(made.reservation_id)).state is State.COMMITTED
    assert await new.counters() == (2, 1)
    await old.assert_clean()
    await new.assert_clean()


async def test_the_purchase_limit_of_the_new_event_applies(database: Database) -> None:
    old, new = await on_sale(database), await on_sale(database, per_customer_limit=2)
    made = await old.reserve()
    await new.reserve(customer_id=made.customer_id)
    with pytest.raises(DomainError) as refused:
        await old.exchange(made.reservation_id, new.line(quantity=2), to=new)
    assert refused.value.reason is Reason.PURCHASE_LIMIT_EXCEEDED
    assert (await old.get(made.reservation_id)).state is State.ACTIVE


async def test_a_repeated_exchange_returns_the_new_reservation(database: Database) -> None:
    sale = await on_sale(database)
    made = await sale.reserve()
    to_reservation_id = new_id()
    for request_key in ("key", "key", "another key"):
        got = await sale.exchange(
            made.reservation_id,
            sale.line(quantity=2),
            to_reservation_id=to_reservation_id,
            request_key=request_key,
        )
        assert got.reservation_id == to_reservation_id
    by_key = await sale.exchange(made.reservation_id, sale.line(quantity=2), request_key="key")
    assert by_key.reservation_id == to_reservation_id
    assert await sale.counters() == (2, 0)
    with pytest.raises(DomainError) as refused:
        await sale.exchange(made.reservation_id, to_reservation_id=to_reservation_id)
    assert refused.value.reason is Reason.IDEMPOTENCY_KEY_REUSED
    await sale.assert_clean()


async def test_an_existing_hold_replaces_the_old_reservation(database: Database) -> None:
    """The price difference was paid while the new places were held."""
    old, new = await on_sale(database), await on_sale(database, seats={"stalls": ["A1"]})
    made = await old.reserve()
    await old.commit(made.reservation_id)
    hold = await new.reserve(*new.lines("A1"), customer_id=made.customer_id)
    for _ in range(2):
        got = await old.exchange(
            made.reservation_id, *new.lines("A1"), to=new, to_reservation_id=hold.reservation_id
        )
        assert (got.reservation_id, got.state) == (hold.reservation_id, State.COMMITTED)
    assert (await old.get(made.reservation_id)).state is State.RETURNED
    assert await new.seat_states() == {"A1": "SOLD"}
    await old.assert_clean()
    await new.assert_clean()


async def test_a_lapsed_hold_or_one_of_another_customer_does_not_replace_it(
    database: Database,
) -> None:
    sale = await on_sale(database)
    made = await sale.reserve(hold=2 * HOLD)
    await sale.commit(made.reservation_id)
    lapsed = await sale.reserve(customer_id=made.customer_id)
    foreign = await sale.reserve(hold=2 * HOLD)
    for hold, reason in (
        (lapsed, Reason.HOLD_EXPIRED),
        (foreign, Reason.IDEMPOTENCY_KEY_REUSED),
    ):
        with pytest.raises(DomainError) as refused:
            await sale.exchange(
                made.reservation_id, to_reservation_id=hold.reservation_id, now=LAPSED
            )
        assert refused.value.reason is reason
    assert (await sale.get(made.reservation_id)).state is State.COMMITTED
    await sale.assert_clean()


async def test_an_ended_reservation_is_not_exchanged(database: Database) -> None:
    sale = await on_sale(database)
    lapsed, released = await sale.reserve(), await sale.reserve()
    await sale.release(released.reservation_id)
    for reservation_id, reason in (
        (lapsed.reservation_id, Reason.HOLD_EXPIRED),
        (released.reservation_id, Reason.RESERVATION_STATE_INVALID),
        (new_id(), Reason.RESERVATION_NOT_FOUND),
    ):
        with pytest.raises(DomainError) as refused:
            await sale.exchange(reservation_id, now=LAPSED)
        assert refused.value.reason is reason
    await sale.assert_clean()


async def test_an_exchange_uses_places_of_lapsed_holds(database: Database) -> None:
    sale = await on_sale(database)
    made = await sale.reserve(hold=2 * HOLD)
    await sale.reserve(sale.line(quantity=9))
    got = await sale.exchange(made.reservation_id, sale.line(quantity=10), now=LAPSED)
    assert got.state is State.ACTIVE
    assert got.expire_time == NOW + 2 * HOLD
    assert got.create_time - NOW == timedelta(minutes=10)
    await sale.assert_clean()
