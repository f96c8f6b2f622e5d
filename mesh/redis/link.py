"""Redis as everybody here may use it: fast when it is there, out of the way when it is not.

Nothing that sells may depend on it, and nobody may wait for it: a call takes a tenth of a
second at most, and after the first one that fails no further call is tried until Redis
answers a ping again. That ping is a task of its own, so no customer pays for finding out.
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

_log = logging.getLogger(__name__)

CALL_TIMEOUT_SECONDS = 0.1
"""For a whole call, connecting included."""

_POOL_SIZE = 10
# Of the time for the call itself.
_WAIT_FOR_A_PLACE = 0.2
_PROBE_SECONDS = 0.5
_HEALTH_CHECK_SECONDS = 15

_AWAY = metrics.counter("redis_away", "How often Redis was found to be away.")

_T = TypeVar("_T")


class RedisAwayError(Exception):
    """Redis did not answer, or was not asked because it is known to be away."""


class RedisLink:
    """One client per process, shared by cache and locks."""

    def __init__(self, client: Redis, call_seconds: float) -> None:
        self._client = client
        self._call_seconds = call_seconds
        # In place of a pool that blocks: that many callers at once do not mean that Redis is away.
        self._places = asyncio.Semaphore(_POOL_SIZE)
        self._probe: asyncio.Task[None] | None = None
        self._on_return: list[Callable[[], Awaitable[None]]] = []

    @classmethod
    @asynccontextmanager
    async def open(
        cls, url: str, *, call_seconds: float = CALL_TIMEOUT_SECONDS
    ) -> AsyncIterator["RedisLink"]:
        """Connects with the first call. `url` is redis://, rediss:// or unix://."""
        pool = ConnectionPool.from_url(
            url,
            max_connections=_POOL_SIZE,
            socket_timeout=call_seconds,
            socket_connect_timeout=call_seconds,
            health_check_interval=_HEALTH_CHECK_SECONDS,
            # A second try would cost a second timeout.
            retry=Retry(NoBackoff(), 0),
        )
        link = cls(Redis.from_pool(pool), call_seconds)
        try:
            yield link
        finally:
            await link.close()

    @property
    def is_away(self) -> bool:
        return self._probe is not None

    def on_return(self, catch_up: Callable[[], Awaitable[None]]) -> None:
        """Runs `catch_up` whenever Redis has come back, before the first call reaches it."""
        self._on_return.append(catch_up)

    async def call(self, command: Callable[[Redis], Awaitable[_T]]) -> _T:
        """Runs a command. Raises RedisAwayError, at once when Redis is known to be away."""
        if self.is_away:
            raise RedisAwayError("known")
        try:
            return await self._bounded(command)
        except (RedisError, OSError) as error:
            self._notice(type(error).__name__)
            raise RedisAwayError(type(error).__name__) from error

    async def direct(self, command: Callable[[Redis], Awaitable[_T]]) -> _T:
        """For what catches up while Redis comes back: asks it also when it counts as away."""
        try:
            return await self._bounded(command)
        except (RedisError, OSError) as error:
            raise RedisAwayError(type(error).__name__) from error

    async def ping(self) -> None:
        """Raises RedisAwayError when Redis does not answer now; for health checks."""
        await self.direct(lambda client: client.ping())

    async def close(self) -> None:
        if self._probe is not None:
            self._probe.cancel()
            await asyncio.gather(self._probe, return_exceptions=True)
        await self._client.aclose()

    async def _bounded(self, command: Callable[[Redis], Awaitable[_T]]) -> _T:
        try:
            async with asyncio.timeout(self._call_seconds * _WAIT_FOR_A_PLACE):
                await self._places.acquire()
        except TimeoutError:
            raise RedisAwayError("busy") from None
        try:
            # The socket's own timeouts hold for each step, this one for all of them together.
            async with asyncio.timeout(self._call_seconds):
                return await command(self._client)
        finally:
            self._places.release()

    def _notice(self, error: str) -> None:
        if self._probe is None:
            self._probe = asyncio.create_task(self._wait_for_return(error))

    async def _wait_for_return(self, error: str) -> None:
        # At once: it may have been this process that was too busy to listen.
        if not await self._has_returned():
            _AWAY.inc()
            _log.warning("redis is away, going on without it", extra={"error": error})
            await asyncio.sleep(_PROBE_SECONDS)
            while not await self._has_returned():
                await asyncio.sleep(_PROBE_SECONDS)
            _log.info("redis is back")
        self._probe = None

    async def _has_returned(self) -> bool:
        try:
            await self.ping()
            for catch_up in self._on_return:
                await catch_up()
        except RedisAwayError:
            return False
        return True
