"""Locks in Redis that save duplicate work. Work that must not happen twice needs PostgreSQL's
locks (mesh/db/leadership.py, row locks): a holder can lose a lock in Redis without noticing.
Algorithm: https://redis.io/docs/latest/develop/clients/patterns/distributed-locks/
"""

import asyncio
import logging
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass

from mesh.redis.link import RedisAwayError, RedisLink

_log = logging.getLogger(__name__)

DATABASE = 1
"""The locks' database index, after the one of the URL: emptying the cache releases no lock."""

DEFAULT_TTL_SECONDS = 30.0
ATTEMPTS = 3
PAUSE_SECONDS = 0.1

# The fencing token is Redis's clock in microseconds, or the previous token + 1 if that is larger:
# it grows even when Redis loses its data. Lua's numbers represent it exactly until the year 2255.
_ACQUIRE = """
if not redis.call('SET', KEYS[1], ARGV[1], 'NX', 'PX', ARGV[2]) then return false end
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local fence = math.max(now, tonumber(redis.call('GET', KEYS[2]) or '0') + 1)
local text = string.format('%.0f', fence)
redis.call('SET', KEYS[2], text, 'EX', 86400)
return text
"""
_RELEASE = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('DEL', KEYS[1])
"""
_EXTEND = """
if redis.call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
"""


@dataclass(frozen=True, slots=True)
class Held:
    """A lock that was acquired, for `ttl_seconds`.

    `fence` is larger than that of all earlier holders. A resource that stores the largest one and
    refuses smaller ones is safe from a holder whose lock has expired.
    """

    name: str
    token: str
    fence: int
    ttl_seconds: float


class Locks:
    """Locks by name, on a link to DATABASE."""

    def __init__(self, link: RedisLink) -> None:
        self._link = link

    @classmethod
    @asynccontextmanager
    async def open(cls, url: str) -> AsyncIterator["Locks"]:
        """Locks on a link of their own."""
        async with RedisLink.open(url, database=DATABASE) as link:
            yield cls(link)

    async def acquire(
        self,
        name: str,
        *,
        ttl_seconds: float = DEFAULT_TTL_SECONDS,
        attempts: int = ATTEMPTS,
        pause_seconds: float = PAUSE_SECONDS,
    ) -> Held | None:
        """Acquires a lock; None when another holder has it. Raises RedisAwayError."""
        token = secrets.token_hex(16)
        for attempt in range(attempts):
            if attempt:
                await asyncio.sleep(pause_seconds)
            fence = await self._link.call(
                lambda client: client.eval(
                    _ACQUIRE, 2, _key(name), f"fence:{name}", token, _milliseconds(ttl_seconds)
                )
            )
            if fence is not None:
                return Held(name, token, int(fence), ttl_seconds)
        return None

    async def extend(self, held: Held) -> bool:
        """Restarts the lock's TTL. False when the lock was lost or Redis is unavailable."""
        return await self._if_held(_EXTEND, held, _milliseconds(held.ttl_seconds))

    async def release(self, held: Held) -> bool:
        """Releases the lock. False when the lock was lost or Redis is unavailable."""
        return await self._if_held(_RELEASE, held)

    async def once(
        self,
        name: str,
        job: Callable[[], Awaitable[None]],
        *,
        ttl_seconds: float = DEFAULT_TTL_SECONDS,
    ) -> bool:
        """Runs a job unless another process started it less than `ttl_seconds` ago.

        Returns whether it ran. Without Redis it always runs, so it must be safe to repeat.
        """
        held = None
        try:
            held = await self.acquire(name, ttl_seconds=ttl_seconds, attempts=1)
            if held is None:
                return False
        except RedisAwayError:
            _log.info("redis is unavailable: running a job without its lock", extra={"job": name})
        is_done = False
        try:
            await job()
            is_done = True
        finally:
            # Failed or cancelled: another process may run it at once.
            if held is not None and not is_done:
                await self.release(held)
        return True

    async def _if_held(self, script: str, held: Held, *arguments: int) -> bool:
        try:
            changed = await self._link.call(
                lambda client: client.eval(script, 1, _key(held.name), held.token, *arguments)
            )
        except RedisAwayError:
            return False
        return bool(changed)


def _key(name: str) -> str:
    return f"lock:{name}"


def _milliseconds(seconds: float) -> int:
    return int(seconds * 1000)
