"""The connection to Redis: fails fast, so that callers go on without Redis.

A call takes at most 100 ms. After a failure all calls fail at once until a background task's
ping succeeds.
"""

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import TypeVar

from redis.asyncio import ConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError

from mesh.observability import metrics
from mesh.outages import OutageError

_log = logging.getLogger(__name__)

CALL_TIMEOUT_SECONDS = 0.1
"""Limit of a whole call, including the connect."""

_POOL_SIZE = 10
# Time to wait for a connection, as a share of the time for the call.
_WAIT_SHARE = 0.2
_PROBE_SECONDS = 0.5
_HEALTH_CHECK_SECONDS = 15

_AWAY = metrics.counter("redis_away", "Times at which Redis became unavailable.")
_IS_AWAY = metrics.gauge("redis_unavailable", "Links to a Redis that does not answer.")

_T = TypeVar("_T")


class RedisAwayError(OutageError):
    """Redis did not answer in time, or was not called because it is unavailable."""


class RedisLink:
    """One Redis client per process, shared by cache, locks and counters."""

    def __init__(self, client: Redis, call_seconds: float) -> None:
        self._client = client
        self._call_seconds = call_seconds
        # Instead of a blocking pool, whose timeout would look like an unavailable Redis.
        self._connections = asyncio.Semaphore(_POOL_SIZE)
        self._probe: asyncio.Task[None] | None = None
        self._on_return: list[Callable[[], Awaitable[None]]] = []

    @classmethod
    @asynccontextmanager
    async def open(
        cls, url: str, *, call_seconds: float = CALL_TIMEOUT_SECONDS, database: int = 0
    ) -> AsyncIterator["RedisLink"]:
        """A link that connects with the first call. `url` is redis://, rediss:// or unix://.

        `database` counts from the URL's database index.
        """
        pool = ConnectionPool.from_url(
            url,
            max_connections=_POOL_SIZE,
            socket_timeout=call_seconds,
            socket_connect_timeout=call_seconds,
            health_check_interval=_HEALTH_CHECK_SECONDS,
            # A retry would cost a second timeout.
            retry=Retry(NoBackoff(), 0),
        )
        pool.connection_kwargs["db"] = int(pool.connection_kwargs.get("db") or 0) + database
        link = cls(Redis.from_pool(pool), call_seconds)
        try:
            yield link
        finally:
            await link.close()

    @property
    def is_away(self) -> bool:
        return self._probe is not None

    def on_return(self, catch_up: Callable[[], Awaitable[None]]) -> None:
        """Runs `catch_up` when Redis is available again, before other calls reach it."""
        self._on_return.append(catch_up)

    async def call(self, command: Callable[[Redis], Awaitable[_T]]) -> _T:
        """Runs a command. Raises RedisAwayError, at once while Redis is unavailable."""
        if self.is_away:
            raise RedisAwayError("known")
        try:
            return await self._bounded(command)
        except (RedisError, OSError) as error:
            self._start_probe(type(error).__name__)
            raise RedisAwayError(type(error).__name__) from error

    async def direct(self, command: Callable[[Redis], Awaitable[_T]]) -> _T:
        """Runs a command even while Redis counts as unavailable; for probes and `on_return`."""
        try:
            return await self._bounded(command)
        except (RedisError, OSError) as error:
            raise RedisAwayError(type(error).__name__) from error

    async def ping(self) -> None:
        """Raises RedisAwayError when Redis does not answer; for health checks."""
        await self.direct(lambda client: client.ping())

    async def close(self) -> None:
        if self._probe is not None:
            self._probe.cancel()
            await asyncio.gather(self._probe, return_exceptions=True)
        await self._client.aclose()

    async def _bounded(self, command: Callable[[Redis], Awaitable[_T]]) -> _T:
        try:
            async with asyncio.timeout(self._call_seconds * _WAIT_SHARE):
                await self._connections.acquire()
        except TimeoutError:
            raise RedisAwayError("busy") from None
        try:
            # The socket's timeouts bound each read and write, this one bounds the whole call.
            async with asyncio.timeout(self._call_seconds):
                return await command(self._client)
        finally:
            self._connections.release()

    def _start_probe(self, error: str) -> None:
        if self._probe is None:
            self._probe = asyncio.create_task(self._wait_for_return(error))

    async def _wait_for_return(self, error: str) -> None:
        # The first ping follows at once: this process may have been too busy to read the answer.
        if not await self._has_returned():
            _AWAY.inc()
            _log.warning("redis is unavailable", extra={"error": error})
            with _IS_AWAY.track_inprogress():
                await asyncio.sleep(_PROBE_SECONDS)
                while not await self._has_returned():
                    await asyncio.sleep(_PROBE_SECONDS)
            _log.info("redis is available again")
        self._probe = None

    async def _has_returned(self) -> bool:
        try:
            await self.ping()
            for catch_up in self._on_return:
                await catch_up()
        except RedisAwayError:
            return False
        return True
