"""Events as most read them: from Redis when it is there, from the database when it is not.

For showing only. What sells reads the database, in its transaction.
"""

from uuid import UUID

from pydantic import TypeAdapter

from booking_svc.catalogue import events
from booking_svc.catalogue.events import Event
from mesh.db.database import Database
from mesh.redis.cache import Cache

# Changes are told at once; this bounds what a process that died in between can leave behind.
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
        """The event has changed, and the change is committed."""
        await self._cache.delete(_key(event_id))


def _key(event_id: UUID) -> str:
    return f"event:{event_id}"
