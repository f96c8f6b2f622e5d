"""Waiting rooms forget accounts some time after the event, and erased accounts at once."""

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from datetime import timedelta
from uuid import UUID

import pytest
import pytest_asyncio
import sqlalchemy as sa

from booking_svc import housekeeping
from booking_svc.__main__ import apply_accounts
from booking_svc.catalogue.events import Event
from booking_svc.clients.ports import Deleted, Erased
from booking_svc.queueing.retention import RETENTION
from booking_svc.queueing.standing import State
from booking_svc.queueing.tables import queue_accounts, queue_admissions
from mesh.db.database import Database
from mesh.errors import DomainError, Reason
from mesh.ids import new_id
from testing.booking_harness import BookingHarness
from testing.queue_harness import QueueHarness, an_event_with_room

MINUTE = timedelta(minutes=1)


@pytest_asyncio.fixture
async def harness(
    open_database: Callable[[str], AbstractAsyncContextManager[Database]],
) -> AsyncIterator[BookingHarness]:
    async with open_database("booking_svc") as database, open_database("stock_svc") as ledger:
        yield BookingHarness(database, ledger)


async def an_event_that_admitted(
    harness: BookingHarness, queueing: QueueHarness, *customers: UUID
) -> Event:
    event = await an_event_with_room(harness, queueing)
    harness.clock.now = event.sale_start_time - MINUTE
    tickets = [await queueing.join(event, customer) for customer in customers]
    await queueing.open_sale(event)
    await queueing.advance(MINUTE)
    for ticket, customer in zip(tickets, customers, strict=True):
        assert (await queueing.poll(ticket, customer)).token is not None
    return event


async def known(harness: BookingHarness) -> tuple[set[UUID], set[UUID]]:
    """The accounts that have tickets, and those that have admissions."""
    async with harness.database.reading() as connection:
        accounts = await connection.scalars(sa.select(queue_accounts.c.user_id))
        admissions = await connection.scalars(sa.select(queue_admissions.c.user_id))
        return set(accounts), set(admissions)


async def test_accounts_are_forgotten_some_time_after_the_end(harness: BookingHarness) -> None:
    queueing = QueueHarness.of(harness)
    customers = {new_id(), new_id()}
    event = await an_event_that_admitted(harness, queueing, *customers)
    # While the sale goes on, nobody is forgotten, however long it takes.
    ends = [event.end_time, event.sale_end_time]
    end = max(time for time in ends if time is not None)
    harness.clock.now = end + RETENTION
    await housekeeping.sweep(harness.database, harness.clock)
    assert await known(harness) == (customers, customers)
    harness.clock.advance(MINUTE)
    await housekeeping.sweep(harness.database, harness.clock)
    assert await known(harness) == (set(), set())
    # The draw and what was admitted stay.
    room = await queueing.queues.room(event_id=event.event_id, to_staff=True)
    assert (room.participants, room.admitted) == (2, 2)


async def test_a_cancelled_event_forgets_accounts_too(harness: BookingHarness) -> None:
    queueing = QueueHarness.of(harness)
    event = await an_event_that_admitted(harness, queueing, new_id())
    await harness.cancel_event(event)
    harness.clock.advance(RETENTION)
    await housekeeping.sweep(harness.database, harness.clock)
    assert len((await known(harness))[0]) == 1
    harness.clock.advance(MINUTE)
    await housekeeping.sweep(harness.database, harness.clock)
    assert await known(harness) == (set(), set())


async def test_an_erased_account_is_forgotten_and_its_ticket_stays_used(
    harness: BookingHarness,
) -> None:
    queueing = QueueHarness.of(harness)
    erased, other = new_id(), new_id()
    event = await an_event_with_room(harness, queueing)
    harness.clock.now = event.sale_start_time - MINUTE
    await queueing.join(event, other)
    await queueing.join(event, erased)
    anonymous = await queueing.join(event)
    await queueing.open_sale(event)
    await queueing.advance(MINUTE)
    assert (await queueing.poll(anonymous, erased)).standing.state is State.ADMITTED
    for change in (Deleted(erased), Erased(erased)):
        async with harness.database.transaction() as connection:
            await apply_accounts(connection, [change], harness.clock())
    accounts, admissions = await known(harness)
    assert accounts == {other}
    assert erased not in admissions
    # Not even by a process that does not remember the admission.
    restarted = QueueHarness(harness.database, harness.clock)
    with pytest.raises(DomainError) as refusal:
        await restarted.poll(anonymous, new_id())
    assert refusal.value.reason is Reason.ALREADY_ADMITTED
