"""Counts requests in Redis with the generic cell rate algorithm (ITU-T I.371, annex A).

It is equivalent to a token bucket that refills evenly. Which buckets exist is in rules.py.
"""

# Redis stores one number per bucket, the theoretical arrival time (TAT): the time at which the
# bucket is full again. A request moves it forward by one interval and conforms if the TAT is then at
# most the bucket's size ahead of now. When one enforced bucket has no room, none is charged. The
# script uses Redis's clock, so the gateways' clocks do not matter.

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from redis.asyncio import Redis
from redis.commands.core import AsyncScript

from mesh.redis.link import RedisLink
from mesh.rpc.limits import Bucket

_MICROSECONDS = 1_000_000
# The hash tag puts all buckets into one slot of a Redis cluster, so that one script can use them.
_PREFIX = "{limits}:"

# KEYS: the buckets. ARGV: the requests to consume, then for each bucket its interval and size in
# microseconds, and 1 if it is enforced. Returns for each bucket: whether it has room, the remaining
# requests, and the microseconds until it is full or, without room, until it admits this request.
_SCRIPT: Final = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local hits = tonumber(ARGV[1])
local passes = true
local tats, answers = {}, {}
for i, key in ipairs(KEYS) do
  local interval, size = tonumber(ARGV[3 * i - 1]), tonumber(ARGV[3 * i])
  local tat = math.max(tonumber(redis.call('GET', key) or 0), now)
  local new = tat + hits * interval
  local room = new - now <= size
  if room then
    tats[i] = new
    answers[i] = {1, math.floor((size - (new - now)) / interval), math.ceil(new - now)}
  else
    tats[i] = tat
    answers[i] = {0, math.floor((size - (tat - now)) / interval), math.ceil(new - now - size)}
    if ARGV[3 * i + 1] == '1' then
      passes = false
    end
  end
end
if passes then
  for i, key in ipairs(KEYS) do
    if tats[i] > now then
      redis.call('SET', key, string.format('%.0f', tats[i]), 'PX', math.ceil((tats[i] - now) / 1000))
    end
  end
end
return answers
"""


@dataclass(frozen=True, slots=True)
class Demand:
    """A bucket that a request consumes from; `owner` is the user or the address."""

    bucket: Bucket
    owner: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """A bucket's result: whether it has room for the request, and how many more requests.

    `reset_seconds` is the time until the bucket is full again or, without room, until it admits
    the request.
    """

    has_room: bool
    remaining: int
    reset_seconds: float


class Counter:
    """Consumes from buckets in Redis."""

    def __init__(self, link: RedisLink) -> None:
        self._link = link
        self._script: AsyncScript | None = None

    async def count(self, demands: Sequence[Demand], hits: int = 1) -> list[Verdict]:
        """Consumes `hits` from all buckets, or from none when an enforced one has no room.

        Raises RedisAwayError.
        """
        arguments: list[int | float] = [hits]
        for demand in demands:
            interval = demand.bucket.interval_seconds * _MICROSECONDS
            enforced = int(not demand.bucket.limit.shadow)
            arguments += [interval, interval * demand.bucket.size, enforced]
        keys = [f"{_PREFIX}{demand.bucket.name}:{demand.owner}" for demand in demands]
        answers = await self._link.call(lambda client: self._run(client, keys, arguments))
        return [
            Verdict(bool(room), max(0, remaining), wait / _MICROSECONDS)
            for room, remaining, wait in answers
        ]

    async def _run(
        self, client: Redis, keys: list[str], arguments: list[int | float]
    ) -> list[tuple[int, int, int]]:
        # redis-py calls the script by its hash and sends the text only when Redis lacks it.
        script = self._script = self._script or client.register_script(_SCRIPT)
        answers: list[tuple[int, int, int]] = await script(keys, arguments, client)
        return answers
