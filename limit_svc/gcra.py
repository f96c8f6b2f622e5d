"""Counting in Redis: the generic cell rate algorithm for all buckets of a request at once.

Of each bucket Redis keeps one number, the theoretical arrival time (TAT): when the bucket
will be full again. A request moves it one interval on, and passes when it then lies no
further ahead than the bucket's size. No bucket is charged when one refuses. Time is Redis's
own, so that the gateways' clocks do not matter.

Source: ITU-T I.371, annex A; the same as a token bucket that fills evenly.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from redis.asyncio import Redis
from redis.commands.core import AsyncScript

from mesh.redis.link import RedisLink
from mesh.rpc.limits import Bucket

_MICROSECONDS = 1_000_000
# One slot of a Redis cluster, for one script call.
_PREFIX = "{limits}:"

# KEYS: the buckets. ARGV: how many to consume, then of each bucket its interval and its size
# in microseconds, and 1 when it refuses. Answers, of each bucket: whether it has room, how many
# more it takes, microseconds until it is full or takes this request.
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
    """What one bucket says: whether it has room, how many more it takes, and its wait.

    `reset_seconds` is the time until the bucket is full again, or, without room, until it
    takes the request.
    """

    has_room: bool
    remaining: int
    reset_seconds: float


class Counter:
    """Counts in a Redis."""

    def __init__(self, link: RedisLink) -> None:
        self._link = link
        self._script: AsyncScript | None = None

    async def count(self, demands: Sequence[Demand], hits: int = 1) -> list[Verdict]:
        """Consumes from all buckets, or from none when one that is enforced has no room.

        Raises RedisAwayError; then nothing can be said.
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
        # By its hash; a Redis that has forgotten it is sent the text again.
        script = self._script = self._script or client.register_script(_SCRIPT)
        answers: list[tuple[int, int, int]] = await script(keys, arguments, client)
        return answers
