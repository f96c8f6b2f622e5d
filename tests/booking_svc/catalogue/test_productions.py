"""Deleting a production at the same time as an event is added to it."""

import asyncio
from uuid import UUID

import pytest

from booking_svc.catalogue import event_creation, events, productions
from mesh.errors import DomainError, Reason
from testing.booking_harness import BookingHarness, a_new_event
from testing.waiting import wait_for_blocked


async def delete(harness: BookingHarness, production_id: UUID) -> None:
    async with harness.database.transaction() as connection:
        await productions.delete(connection, production_id=production_id, now=harness.clock())


async def test_a_production_is_not_deleted_while_an_event_is_added(harness: BookingHarness) -> None:
    production_id = await harness.a_production()
    async with harness.database.transaction() as connection:
        await productions.require(connection, production_id)
        deleting = asyncio.create_task(delete(harness, production_id))
        await wait_for_blocked(harness.database)
        new = a_new_event(production_id=production_id)
        plan = await event_creation.plan(connection, new=new, now=harness.clock())
        await events.insert(
            connection, event=plan.event, capacities=plan.capacities(), now=harness.clock()
        )
    with pytest.raises(DomainError) as refusal:
        await deleting
    assert refusal.value.reason is Reason.EVENT_STATE_INVALID
    assert refusal.value.metadata == {"event_id": str(plan.event.event_id)}


async def test_an_event_is_not_added_while_its_production_is_deleted(
    harness: BookingHarness,
) -> None:
    production_id = await harness.a_production()

    async def require() -> None:
        async with harness.database.transaction() as connection:
            await productions.require(connection, production_id)

    async with harness.database.transaction() as connection:
        await productions.delete(connection, production_id=production_id, now=harness.clock())
        adding = asyncio.create_task(require())
        await wait_for_blocked(harness.database)
    with pytest.raises(DomainError) as refusal:
        await adding
    assert refusal.value.reason is Reason.PRODUCTION_NOT_FOUND
