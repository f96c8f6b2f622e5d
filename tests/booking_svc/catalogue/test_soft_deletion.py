"""Deleting a production or an auditorium at the same time as an event is added to it."""

import asyncio
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.catalogue import event_creation, events, productions, venues
from mesh.errors import DomainError, Reason
from testing.booking_harness import PROVIDERS, BookingHarness, a_new_event, an_offer
from testing.waiting import wait_for_blocked
from tests.booking_svc.catalogue.test_catalogue import an_auditorium

Call = Callable[[AsyncConnection], Awaitable[None]]


async def _owner(harness: BookingHarness, kind: str) -> tuple[Call, Call, dict[str, Any]]:
    """The calls that require and delete an owner of events, and the values of its event."""
    if kind == "production":
        production_id = await harness.a_production()
        return (
            partial(productions.require, production_id=production_id),
            lambda connection: productions.delete(
                connection, production_id=production_id, now=harness.clock()
            ),
            {"production_id": production_id},
        )
    auditorium_id = (await an_auditorium(harness)).auditorium_id
    return (
        partial(venues.require_auditorium, auditorium_id=auditorium_id),
        lambda connection: venues.delete_auditorium(
            connection, auditorium_id=auditorium_id, now=harness.clock()
        ),
        {
            "auditorium_id": auditorium_id,
            "offers": (an_offer(capacity=None, seat_type="REGULAR"),),
        },
    )


async def _run(harness: BookingHarness, call: Call) -> None:
    async with harness.database.transaction() as connection:
        await call(connection)


@pytest.mark.parametrize("kind", ["production", "auditorium"])
async def test_nothing_is_deleted_while_an_event_is_added(
    harness: BookingHarness, kind: str
) -> None:
    require, delete, values = await _owner(harness, kind)
    async with harness.database.transaction() as connection:
        await require(connection)
        deleting = asyncio.create_task(_run(harness, delete))
        await wait_for_blocked(harness.database)
        new = a_new_event(**values)
        plan = await event_creation.plan(connection, new=new, limits=PROVIDERS, now=harness.clock())
        await events.insert(
            connection, event=plan.event, capacities=plan.capacities(), now=harness.clock()
        )
    with pytest.raises(DomainError) as refusal:
        await deleting
    assert refusal.value.reason is Reason.EVENT_STATE_INVALID
    assert refusal.value.metadata == {"event_id": str(plan.event.event_id)}
    # Once the event is over.
    assert plan.event.end_time is not None
    harness.clock.now = plan.event.end_time
    await _run(harness, delete)


@pytest.mark.parametrize("kind", ["production", "auditorium"])
async def test_no_event_is_added_while_its_owner_is_deleted(
    harness: BookingHarness, kind: str
) -> None:
    require, delete, _ = await _owner(harness, kind)
    async with harness.database.transaction() as connection:
        await delete(connection)
        adding = asyncio.create_task(_run(harness, require))
        await wait_for_blocked(harness.database)
    with pytest.raises(DomainError) as refusal:
        await adding
    assert refusal.value.reason in (Reason.PRODUCTION_NOT_FOUND, Reason.AUDITORIUM_NOT_FOUND)
