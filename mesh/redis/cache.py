"""A cache of JSON values in Redis; without Redis each read goes to its source.

Values are not encrypted: only data that any client may read belongs here.
"""

# Keys are `cache:<area>:<id>`, each with a TTL. A reader that read the source before a change could
# write its stale value after it. So a change closes its key for 5 s, longer than any read takes;
# a closed key accepts no values.

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

from mesh.observability import metrics
from mesh.redis.link import RedisAwayError, RedisLink

_log = logging.getLogger(__name__)

DEFAULT_TTL_SECONDS = 300
MAX_TTL_SECONDS = 3600

_PREFIX = "cache:"
_CLOSED = b"closed"
# Longer than statement_timeout, so that readers of the old value have finished or failed.
_CLOSED_SECONDS = 5
_SET = """
if redis.call('GET', KEYS[1]) == ARGV[3] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'EX', ARGV[2])
return 1
"""
_SCAN_COUNT = 500
# Most keys to remember for deletion while Redis is unavailable. Others expire by their TTL.
_MAX_PENDING = 10_000

_READS = metrics.counter("cache_reads", "Reads through the cache.", "result")

_T = TypeVar("_T")


class Cache:
    """Values by key, stored as JSON and converted by pydantic's adapters."""

    def __init__(self, link: RedisLink) -> None:
        self._link = link
        self._reading: dict[str, asyncio.Task[Any]] = {}
        self._pending_deletes: dict[str, None] = {}
        link.on_return(self._delete_pending)

    async def read(
        self,
        key: str,
        adapter: TypeAdapter[_T],
        source: Callable[[], Awaitable[_T]],
        *,
        ttl_seconds: int = DEFAULT_TTL_SECONDS,
    ) -> _T:
        """Returns a key's value; on a miss calls `source` once for all concurrent readers.

        Raises only what `source` raises. Errors are not cached.
        """
        task = self._reading.get(key)
        if task is None:
            # A separate task, so that cancelling the first reader does not affect the others.
            task = asyncio.create_task(self._read_through(key, adapter, source, ttl_seconds))
            self._reading[key] = task
            task.add_done_callback(lambda done: self._end_reading(key, done))
        value: _T = await asyncio.shield(task)
        return value

    async def get(self, key: str, adapter: TypeAdapter[_T]) -> _T | None:
        """The value; None when it is missing or unreadable, or Redis is unavailable."""
        try:
            stored = await self._link.call(lambda client: client.get(_PREFIX + key))
        except RedisAwayError:
            return None
        if stored is None or stored == _CLOSED:
            return None
        try:
            return adapter.validate_json(stored)
        except ValidationError:
            # Written by another version of the code: a miss.
            return None

    async def set(
        self,
        key: str,
        adapter: TypeAdapter[_T],
        value: _T,
        *,
        ttl_seconds: int = DEFAULT_TTL_SECONDS,
    ) -> bool:
        """Stores a value, over an earlier one, unless the key is closed. Returns whether it did."""
        text = adapter.dump_json(value)
        seconds = min(ttl_seconds, MAX_TTL_SECONDS)
        try:
            return bool(
                await self._link.call(
                    lambda client: client.eval(_SET, 1, _PREFIX + key, text, seconds, _CLOSED)
                )
            )
        except RedisAwayError:
            return False

    async def exists(self, key: str) -> bool:
        """Whether the key has a value; False while Redis is unavailable."""
        try:
            stored = await self._link.call(lambda client: client.get(_PREFIX + key))
        except RedisAwayError:
            return False
        return stored is not None and stored != _CLOSED

    async def delete(self, *keys: str) -> bool:
        """Deletes values whose source has changed. Call it after the change has committed.

        Returns whether any of the keys had a value. While Redis is unavailable that is False; the
        keys are remembered and deleted before it is used again.
        """
        # A running read may have the old value: later readers must not share it.
        for key in keys:
            self._reading.pop(key, None)
        try:
            return await self._close(keys, self._link.call)
        except RedisAwayError:
            if len(self._pending_deletes) < _MAX_PENDING:
                self._pending_deletes.update(dict.fromkeys(keys))
            return False

    async def delete_matching(self, prefix: str) -> int:
        """Deletes all keys that begin with a prefix, 500 at a time. Returns the number."""
        escaped = "".join(f"\\{letter}" if letter in "*?[]\\" else letter for letter in prefix)
        cursor, deleted = 0, 0
        while True:
            try:
                # SCAN, because KEYS blocks Redis while it walks all keys.
                cursor, matching = await self._link.call(
                    lambda client, at=cursor: client.scan(  # type: ignore[misc]
                        at, match=f"{_PREFIX}{escaped}*", count=_SCAN_COUNT
                    )
                )
                if matching:
                    deleted += await self._link.call(
                        lambda client, keys=matching: client.unlink(*keys)  # type: ignore[misc]
                    )
            except RedisAwayError:
                return deleted
            if cursor == 0:
                return deleted

    async def _read_through(
        self,
        key: str,
        adapter: TypeAdapter[_T],
        source: Callable[[], Awaitable[_T]],
        ttl_seconds: int,
    ) -> _T:
        if (cached := await self.get(key, adapter)) is not None:
            _READS.labels("hit").inc()
            return cached
        _READS.labels("away" if self._link.is_away else "miss").inc()
        value = await source()
        await self.set(key, adapter, value, ttl_seconds=ttl_seconds)
        return value

    def _end_reading(self, key: str, task: asyncio.Task[Any]) -> None:
        if self._reading.get(key) is task:
            del self._reading[key]
        # All readers may be cancelled. asyncio warns about an exception that nobody retrieved.
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.debug("a value could not be read", exc_info=error)

    async def _delete_pending(self) -> None:
        keys = tuple(self._pending_deletes)
        if keys:
            await self._close(keys, self._link.direct)
        for key in keys:
            self._pending_deletes.pop(key, None)

    async def _close(self, keys: tuple[str, ...], call: Callable[..., Awaitable[Any]]) -> bool:
        """Returns whether any of the keys had a value."""

        async def close_all(client: Any) -> list[bytes | None]:
            pipeline = client.pipeline(transaction=False)
            for key in keys:
                pipeline.set(_PREFIX + key, _CLOSED, ex=_CLOSED_SECONDS, get=True)
            before: list[bytes | None] = await pipeline.execute()
            return before

        return any(value not in (None, _CLOSED) for value in await call(close_all))
