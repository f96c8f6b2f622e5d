"""Events through the cache: the same as without it, whatever happens to Redis."""

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest
import sqlalchemy as sa

from booking_svc.catalogue import events
from booking_svc.catalogue.cancellation_policy import PurchaseWindow
from booking_svc.catalogue.event_cache import EventCache
from booking_svc.catalogue.tables import events as events_table
from mesh.errors import DomainError, Reason
from mesh.ids import new_id
from mesh.redis.cache import Cache
from mesh.redis.link import RedisLink
from testing.booking_harness import BookingHarness, an_offer
from testing.redis_server import RedisProcess, redis_process


@pytest.fixture
async def server() -> AsyncIterator[RedisProcess]:
    async with redis_process() as server:
        yield server


@pytest.fixture
async def cache(harness: BookingHarness, server: RedisProcess) -> AsyncIterator[EventCache]:
    async with RedisLink.open(server.url, call_seconds=2) as link:
        yield EventCache(harness.database, Cache(link))


async def rename(harness: BookingHarness, event: events.Event, name: str) -> None:
    async with harness.database.transaction() as connection:
        await connection.execute(
            sa.update(events_table)
            .where(events_table.c.event_id == event.event_id)
            .values(name=name)
        )


@pytest.mark.parametrize("policy", [None, PurchaseWindow(timedelta(hours=3))])
async def test_an_event_comes_from_the_cache_as_it_is_in_the_database(
    harness: BookingHarness, cache: EventCache, policy: PurchaseWindow | None
) -> None:
    event = await harness.an_event(
        an_offer(), an_offer(pool="balcony", name="Balcony"), cancellation_policy=policy
    )
    async with harness.database.reading() as connection:
        stored = await events.get(connection, event_id=event.event_id)
    assert await cache.get(event.event_id) == stored
    await rename(harness, event, "unseen")
    assert await cache.get(event.event_id) == stored


async def test_a_change_that_is_told_is_seen(harness: BookingHarness, cache: EventCache) -> None:
    event = await harness.an_event()
    await cache.get(event.event_id)
    await rename(harness, event, "Another Name")
    await cache.forget(event.event_id)
    for _ in range(2):
        assert (await cache.get(event.event_id)).name == "Another Name"


async def test_an_unknown_event_stays_unknown(cache: EventCache) -> None:
    for _ in range(2):
        with pytest.raises(DomainError) as refused:
            await cache.get(new_id())
        assert refused.value.reason is Reason.EVENT_NOT_FOUND


@pytest.mark.parametrize("how", ["kill", "freeze"])
async def test_without_redis_events_come_from_the_database(
    harness: BookingHarness, cache: EventCache, server: RedisProcess, how: str
) -> None:
    event = await harness.an_event()
    await cache.get(event.event_id)
    if how == "kill":
        await server.kill()
    else:
        server.freeze()
    await rename(harness, event, "Another Name")
    for _ in range(3):
        assert (await cache.get(event.event_id)).name == "Another Name"
