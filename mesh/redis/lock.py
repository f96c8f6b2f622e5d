"""A lock in Redis for jobs that one process should do and two may: it saves work, no more.

What must not happen twice is decided by PostgreSQL (mesh/db/leadership.py, row locks). A lock
in Redis can be lost without its holder noticing: by a pause longer than its time to live,
or by Redis losing its memory. Where a late holder could do harm, the fencing token
tells: it grows with each holder, and what is written refuses a smaller one than it has seen.

SET NX PX with a random token, compare-and-delete and compare-and-extend in Lua:
https://redis.io/docs/latest/develop/clients/patterns/distributed-locks/
"""

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from mesh.redis.link import RedisAwayError, RedisLink

_log = logging.getLogger(__name__)

DEFAULT_TTL_SECONDS = 30.0
ATTEMPTS = 3
PAUSE_SECONDS = 0.1

# The clock in microseconds, or one more than before: it grows even when Redis forgets the
# last one, and Lua's numbers hold it exactly until the year 2255.
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
    """A lock that is ours until its time is over. `fence` is larger than any holder's before."""

    name: str
    token: str
    fence: int
    ttl_seconds: float


class Locks:
    """Locks by name."""

    def __init__(self, link: RedisLink) -> None:
        self._link = link

    async def acquire(
        self,
        name: str,
        *,
        ttl_seconds: float = DEFAULT_TTL_SECONDS,
        attempts: int = ATTEMPTS,
        pause_seconds: float = PAUSE_SECONDS,
    ) -> Held | None:
        """Takes a lock. None when another holder has it. Raises RedisAwayError."""
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
        """Begins a lock's time anew. False when it is not ours any more, or Redis is away."""
        return await self._if_ours(_EXTEND, held, _milliseconds(held.ttl_seconds))

    async def release(self, held: Held) -> bool:
        """Gives a lock back. False when it was not ours any more, or Redis is away."""
        return await self._if_ours(_RELEASE, held)

    async def once(
        self,
        name: str,
        job: Callable[[], Awaitable[None]],
        *,
        ttl_seconds: float = DEFAULT_TTL_SECONDS,
    ) -> bool:
        """Does a job unless another process does it or did it less than `ttl_seconds` ago.

        Without Redis the job is done: it must be one that may be done twice. Returns
        whether it was done.
        """
        held = None
        try:
            held = await self.acquire(name, ttl_seconds=ttl_seconds, attempts=1)
            if held is None:
                return False
        except RedisAwayError:
            _log.info("no lock to be had, doing the job all the same", extra={"job": name})
        is_done = False
        try:
            await job()
            is_done = True
        finally:
            # Failed or cut off: another process may try at once.
            if held is not None and not is_done:
                await self.release(held)
        return True

    async def _if_ours(self, script: str, held: Held, *arguments: int) -> bool:
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
