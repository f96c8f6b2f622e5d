"""Events cached in Redis, for the processes' own caches (availability.py), which ask once a second.

Without Redis they come from the database. Bookings do not use it (event_memory.py).
"""

from uuid import UUID

from pydantic import TypeAdapter

from booking_svc.catalogue import events
from booking_svc.catalogue.events import Event
from mesh.db.database import Database
from mesh.redis.cache import Cache

# A change deletes the entry at once. This bounds stale reads after a crash before the delete.
TTL_SECONDS = 10

_EVENTS: TypeAdapter[Event] = TypeAdapter(Event)


class EventCache:
    def __init__(self, database: Database, cache: Cache) -> None:
        self._database = database
        self._cache = cache

    async def get(self, event_id: UUID) -> Event:
        """Raises EVENT_NOT_FOUND."""

        async def read() -> Event:
            async with self._database.reading() as connection:
                return await events.get(connection, event_id=event_id)

        return await self._cache.read(_key(event_id), _EVENTS, read, ttl_seconds=TTL_SECONDS)

    async def forget(self, event_id: UUID) -> None:
        """Deletes the cached event. Call it after the commit of a change."""
        await self._cache.delete(_key(event_id))


def _key(event_id: UUID) -> str:
    return f"event:{event_id}"
