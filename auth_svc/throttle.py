"""Counts of attempts by subject: each failed attempt lengthens the pause after it.

Subjects are accounts, existing or not, and addresses and devices; sign_in_guard.py chooses them.

An attempt counts when it is admitted, before its password is verified, so concurrent attempts gain
nothing; success clears the count. Counts are in Redis, or in the database while Redis is down.
"""

import hashlib
import hmac
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from auth_svc.tables import login_throttles
from mesh.db.database import Database
from mesh.errors import DomainError, Reason
from mesh.redis.link import RedisAwayError, RedisLink

FREE_ATTEMPTS = 5
"""For typing errors: the pauses start after this number of attempts in a row."""

FIRST_PAUSE = timedelta(seconds=1)
MAX_PAUSE = timedelta(hours=1)
FORGET_AFTER = timedelta(days=1)
"""A count expires this long after its last attempt."""

# 1 s doubled this often exceeds an hour.
_MAX_DOUBLINGS = 12


@dataclass(frozen=True, slots=True)
class Allowance:
    """Attempts without a pause, and the longest pause after them."""

    free_attempts: int = FREE_ATTEMPTS
    max_pause: timedelta = MAX_PAUSE


PER_ACCOUNT = Allowance()

# KEYS: the account. ARGV: now, first pause, longest pause and expiry, all in ms; free attempts;
# maximum of doublings. Returns the ms to wait, or counts the attempt and returns 0.
_ADMIT = """
local failures = tonumber(redis.call('HGET', KEYS[1], 'failures') or '0')
local due = tonumber(redis.call('HGET', KEYS[1], 'due') or '0')
local now = tonumber(ARGV[1])
if now < due then return due - now end
failures = failures + 1
local pause = 0
if failures >= tonumber(ARGV[5]) then
  local doublings = math.min(failures - tonumber(ARGV[5]), tonumber(ARGV[6]))
  pause = math.min(tonumber(ARGV[2]) * 2 ^ doublings, tonumber(ARGV[3]))
end
redis.call('HSET', KEYS[1], 'failures', failures, 'due', string.format('%.0f', now + pause))
redis.call('PEXPIRE', KEYS[1], ARGV[4])
return 0
"""

# ARGV: how many attempts.
_REFUND = """
if redis.call('EXISTS', KEYS[1]) == 1 then
  local failures = tonumber(redis.call('HGET', KEYS[1], 'failures') or '0')
  redis.call('HSET', KEYS[1], 'failures', math.max(failures - tonumber(ARGV[1]), 0))
  redis.call('HSET', KEYS[1], 'due', 0)
end
return 0
"""


class LoginThrottle:
    """Counts attempts by account. `key` is the key of the accounts' digests, which are stored.

    Without `link` all counts are in the database.
    """

    def __init__(self, *, database: Database, link: RedisLink | None, key: bytes) -> None:
        self._database = database
        self._link = link
        self._key = key

    async def admit(
        self, account: str, *, now: datetime, allowance: Allowance = PER_ACCOUNT
    ) -> None:
        """Counts an attempt. Raises LOGIN_THROTTLED during the pause after the previous one."""
        wait_seconds = await self._admit_cached(account, allowance, now=now)
        if wait_seconds is None:
            async with self._database.transaction() as connection:
                wait_seconds = await self._admit_row(connection, account, allowance, now=now)
        if wait_seconds > 0:
            raise DomainError(
                Reason.LOGIN_THROTTLED,
                "too many attempts; try again later",
                retry_after_seconds=wait_seconds,
            )

    async def refund_attempt(self, account: str, *, attempts: int = 1) -> None:
        """Uncounts attempts, e.g. one whose password was not verified."""
        if await self._run(_REFUND, account, attempts) is None:
            async with self._database.transaction() as connection:
                await connection.execute(
                    sa.update(login_throttles)
                    .where(login_throttles.c.account == self._digest(account))
                    .where(login_throttles.c.attempts > 0)
                    .values(
                        attempts=sa.func.greatest(login_throttles.c.attempts - attempts, 0),
                        due_time=login_throttles.c.update_time,
                    )
                )

    async def clear(self, account: str) -> None:
        """Deletes an account's count in the cache, after a success."""
        if self._link is None:
            return
        with suppress(RedisAwayError):
            await self._link.call(lambda client: client.delete(self._name(account)))

    async def clear_row(self, connection: AsyncConnection, account: str) -> None:
        """Deletes an account's count in the database, from a time without the cache."""
        await connection.execute(
            sa.delete(login_throttles).where(login_throttles.c.account == self._digest(account))
        )

    async def _admit_cached(
        self, account: str, allowance: Allowance, *, now: datetime
    ) -> float | None:
        """Seconds to wait, 0 for none; None without the cache."""
        wait = await self._run(
            _ADMIT,
            account,
            now.timestamp() * 1000,
            FIRST_PAUSE.total_seconds() * 1000,
            allowance.max_pause.total_seconds() * 1000,
            FORGET_AFTER.total_seconds() * 1000,
            allowance.free_attempts,
            _MAX_DOUBLINGS,
        )
        return None if wait is None else wait / 1000

    async def _admit_row(
        self, connection: AsyncConnection, account: str, allowance: Allowance, *, now: datetime
    ) -> float:
        digest, row = self._digest(account), login_throttles.c
        attempts = sa.case((row.update_time < now - FORGET_AFTER, 0), else_=row.attempts) + 1
        doublings = sa.func.least(attempts - allowance.free_attempts, _MAX_DOUBLINGS)
        pause = sa.case(
            (attempts < allowance.free_attempts, timedelta(0)),
            else_=sa.func.least(FIRST_PAUSE * sa.func.power(2, doublings), allowance.max_pause),
        )
        # Test and count in one statement: the row lock orders concurrent attempts.
        admitted = await connection.execute(
            postgresql.insert(login_throttles)
            .values(account=digest, attempts=1, due_time=now, update_time=now)
            .on_conflict_do_update(
                index_elements=[row.account],
                set_={"attempts": attempts, "due_time": now + pause, "update_time": now},
                where=row.due_time <= now,
            )
        )
        if admitted.rowcount == 1:
            return 0.0
        due = await connection.scalar(sa.select(row.due_time).where(row.account == digest))
        return max(0.001, (due - now).total_seconds()) if due is not None else 0.0

    async def _run(self, script: str, account: str, *arguments: float) -> int | None:
        """The result of a script for an account; None without the cache."""
        if self._link is None:
            return None
        name, values = self._name(account), [str(int(value)) for value in arguments]
        try:
            return int(await self._link.call(lambda client: client.eval(script, 1, name, *values)))
        except RedisAwayError:
            return None

    def _name(self, account: str) -> str:
        return f"auth:login:{self._digest(account).hex()}"

    def _digest(self, account: str) -> bytes:
        return hmac.digest(self._key, account.encode(), hashlib.sha256)
