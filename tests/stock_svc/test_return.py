"""Returning sold places, once."""

import pytest

from mesh.db.database import Database
from mesh.errors import DomainError, Reason
from mesh.ids import new_id
from stock_svc.reservations import State
from testing.stock_harness import LAPSED, on_sale


async def test_returned_places_and_seats_are_sold_again(database: Database) -> None:
    sale = await on_sale(
        database, offers={"place": "floor"}, seats={"stalls": ["A1"]}, per_customer_limit=10
    )
    made = await sale.reserve(sale.line(quantity=10), *sale.lines("A1"))
    await sale.commit(made.reservation_id)
    returned = await sale.return_sold(made.reservation_id, now=LAPSED)
    assert (returned.state, returned.lines) == (State.RETURNED, made.lines)
    assert await sale.counters() == (0, 0)
    await sale.reserve(sale.line(quantity=10), *sale.lines("A1"), customer_id=made.customer_id)
    await sale.assert_clean()


async def test_returning_again_returns_the_same(database: Database) -> None:
    sale = await on_sale(database)
    made = await sale.reserve()
    await sale.commit(made.reservation_id)
    first = await sale.return_sold(made.reservation_id)
    assert await sale.return_sold(made.reservation_id, now=LAPSED) == first
    assert await sale.available() == 10
    await sale.assert_clean()


async def test_only_a_committed_reservation_is_returned(database: Database) -> None:
    sale = await on_sale(database)
    held, released = await sale.reserve(), await sale.reserve()
    await sale.release(released.reservation_id)
    for reservation in (held, released):
        with pytest.raises(DomainError) as refused:
            await sale.return_sold(reservation.reservation_id)
        assert refused.value.reason is Reason.RESERVATION_STATE_INVALID
    with pytest.raises(DomainError) as refused:
        await sale.return_sold(new_id())
    assert refused.value.reason is Reason.RESERVATION_NOT_FOUND
    assert await sale.counters() == (1, 0)
    await sale.assert_clean()
