"""A cache of JSON values in Redis, for what many read and few change.

Optional by design: without Redis each read goes to its source at once. Only what anybody
may read is kept here, because it is not encrypted. Keys are `cache:<area>:<id>`, each
with a time to live.

A change must not be overtaken by a reader that read before it and writes after it: the key
of a changed value is closed for a moment, longer than any read takes, and fills are refused.
"""

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
# Longer than a statement may run, so that whoever read the old value has given up.
_CLOSED_SECONDS = 5
_SCAN_COUNT = 500
# Changes that Redis has not heard of, while it is away. Values live no longer than their TTL.
_MAX_UNTOLD = 10_000

_READS = metrics.counter("cache_reads", "Reads through the cache.", "result")

_T = TypeVar("_T")


class Cache:
    """Values by key. What is stored is JSON; the adapter says what it becomes again."""

    def __init__(self, link: RedisLink) -> None:
        self._link = link
        self._reading: dict[str, asyncio.Task[Any]] = {}
        self._untold: dict[str, None] = {}
        link.on_return(self._tell)

    async def read(
        self,
        key: str,
        adapter: TypeAdapter[_T],
        source: Callable[[], Awaitable[_T]],
        *,
        ttl_seconds: int = DEFAULT_TTL_SECONDS,
    ) -> _T:
        """The value of a key; from `source` when it is not there, once for all who ask meanwhile.

        Raises what `source` raises, and nothing else: a failure is not kept.
        """
        task = self._reading.get(key)
        if task is None:
            # A task of its own: the one who asked first may go away, the others still wait.
            task = asyncio.create_task(self._through(key, adapter, source, ttl_seconds))
            self._reading[key] = task
            task.add_done_callback(lambda done: self._has_read(key, done))
        value: _T = await asyncio.shield(task)
        return value

    async def get(self, key: str, adapter: TypeAdapter[_T]) -> _T | None:
        """The value, or None: not there, not readable any more, or Redis is away."""
        try:
            stored = await self._link.call(lambda client: client.get(_PREFIX + key))
        except RedisAwayError:
            return None
        if stored is None or stored == _CLOSED:
            return None
        try:
            return adapter.validate_json(stored)
        except ValidationError:
            # Of an older version of the code, or damaged: as good as not there.
            return None

    async def set(
        self,
        key: str,
        adapter: TypeAdapter[_T],
        value: _T,
        *,
        ttl_seconds: int = DEFAULT_TTL_SECONDS,
    ) -> bool:
        """Keeps a value unless the key is closed or has one. False also when Redis is away."""
        text = adapter.dump_json(value)
        seconds = min(ttl_seconds, MAX_TTL_SECONDS)
        try:
            return bool(
                await self._link.call(
                    lambda client: client.set(_PREFIX + key, text, ex=seconds, nx=True)
                )
            )
        except RedisAwayError:
            return False

    async def exists(self, key: str) -> bool:
        try:
            stored = await self._link.call(lambda client: client.get(_PREFIX + key))
        except RedisAwayError:
            return False
        return stored is not None and stored != _CLOSED

    async def delete(self, *keys: str) -> None:
        """What the keys stand for has changed, and is committed: forget the old values.

        While Redis is away the keys are remembered, and deleted before it is used again.
        """
        # Whoever reads now may have read the old value: the next to ask must not share it.
        for key in keys:
            self._reading.pop(key, None)
        try:
            await self._close(keys, self._link.call)
        except RedisAwayError:
            self._remember(keys)

    async def delete_matching(self, prefix: str) -> int:
        """Deletes all keys that begin with a prefix, in small steps. Returns how many."""
        escaped = "".join(f"\\{letter}" if letter in "*?[]\\" else letter for letter in prefix)
        cursor, deleted = 0, 0
        while True:
            try:
                # SCAN: KEYS would keep everybody waiting for as long as Redis is large.
                cursor, found = await self._link.call(
                    lambda client, at=cursor: client.scan(  # type: ignore[misc]
                        at, match=f"{_PREFIX}{escaped}*", count=_SCAN_COUNT
                    )
                )
                if found:
                    deleted += await self._link.call(
                        lambda client, keys=found: client.unlink(*keys)  # type: ignore[misc]
                    )
            except RedisAwayError:
                return deleted
            if cursor == 0:
                return deleted

    async def _through(
        self,
        key: str,
        adapter: TypeAdapter[_T],
        source: Callable[[], Awaitable[_T]],
        ttl_seconds: int,
    ) -> _T:
        if (known := await self.get(key, adapter)) is not None:
            _READS.labels("hit").inc()
            return known
        _READS.labels("away" if self._link.is_away else "miss").inc()
        value = await source()
        await self.set(key, adapter, value, ttl_seconds=ttl_seconds)
        return value

    def _has_read(self, key: str, task: asyncio.Task[Any]) -> None:
        if self._reading.get(key) is task:
            del self._reading[key]
        # Everybody who asked may be gone: fetch the error, or asyncio complains about it.
        if not task.cancelled() and (error := task.exception()) is not None:
            _log.debug("a value could not be read", exc_info=error)

    def _remember(self, keys: tuple[str, ...]) -> None:
        if len(self._untold) < _MAX_UNTOLD:
            self._untold.update(dict.fromkeys(keys))

    async def _tell(self) -> None:
        untold = tuple(self._untold)
        if untold:
            await self._close(untold, self._link.direct)
        for key in untold:
            self._untold.pop(key, None)

    async def _close(self, keys: tuple[str, ...], call: Callable[..., Awaitable[Any]]) -> None:
        async def close_all(client: Any) -> None:
            pipeline = client.pipeline(transaction=False)
            for key in keys:
                pipeline.set(_PREFIX + key, _CLOSED, ex=_CLOSED_SECONDS)
            await pipeline.execute()

        await call(close_all)
