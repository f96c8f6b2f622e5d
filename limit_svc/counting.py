"""Counts requests in Redis, by the algorithm of each limit. Which limits exist is in rules.py.

docs/gateway.md shows by numbers what each algorithm admits.
"""

# A request is charged to all buckets, or to none when one enforced bucket has no room. Refused
# requests are not charged. The script uses Redis's clock, so the gateways' clocks do not matter.
#
# token: the generic cell rate algorithm (ITU-T I.371, annex A). Redis stores one number per bucket,
#   the theoretical arrival time (TAT) at which the bucket is full again. A request moves it forward
#   by one interval and has room if the TAT is then at most the bucket's size ahead of now.
# fixed: the number of the window, counted from 1970, and its requests.
# sliding: the times of the requests in the last window, oldest first; exact, one entry per request.

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from redis.asyncio import Redis
from redis.commands.core import AsyncScript

from mesh.redis.link import RedisLink
from mesh.rpc.limits import Bucket
from mesh.rpc.policy import LimitAlgorithm

_MICROSECONDS = 1_000_000
# The hash tag puts all buckets into one slot of a Redis cluster, so that one script can use them.
_PREFIX = "{limits}:"
_KINDS = {
    LimitAlgorithm.TOKEN_BUCKET: "token",
    LimitAlgorithm.FIXED_WINDOW: "fixed",
    LimitAlgorithm.SLIDING_WINDOW: "sliding",
}

# KEYS: the buckets. ARGV: the time in microseconds or 0 for Redis's, the requests to consume, then
# for each bucket its kind, size in requests, window in microseconds (token: interval), and 1 if it is
# enforced. Returns for each bucket: whether it has room, the remaining requests, and the microseconds
# until it is unused again or, without room, until it admits this request.
_SCRIPT: Final = """
local now, hits = tonumber(ARGV[1]), tonumber(ARGV[2])
if now == 0 then
  local time = redis.call('TIME')
  now = time[1] * 1000000 + time[2]
end
local kinds = {}

function kinds.token(key, size, interval)
  local tat = math.max(tonumber(redis.call('GET', key) or 0), now)
  local new, most = tat + hits * interval, size * interval
  local room = new - now <= most
  local kept = room and new or tat
  local wait = room and new - now or new - now - most
  return room, (most - (kept - now)) / interval, wait, function()
    if new > now then
      redis.call('SET', key, string.format('%.0f', new), 'PX', math.ceil((new - now) / 1000))
    end
  end
end

function kinds.fixed(key, size, window)
  local number = math.floor(now / window)
  local stored, count = string.match(redis.call('GET', key) or '', '^(%d+) (%d+)$')
  count = tonumber(stored) == number and tonumber(count) or 0
  local room, wait = count + hits <= size, (number + 1) * window - now
  return room, size - count - (room and hits or 0), wait, function()
    local text = string.format('%.0f %d', number, count + hits)
    redis.call('SET', key, text, 'PX', math.ceil(wait / 1000))
  end
end

function kinds.sliding(key, size, window)
  local oldest = redis.call('LINDEX', key, 0)
  while oldest and tonumber(oldest) <= now - window do
    redis.call('LPOP', key)
    oldest = redis.call('LINDEX', key, 0)
  end
  local count = redis.call('LLEN', key)
  local room, wait = count + hits <= size, window
  if not room then
    -- The request for whose end this one waits; with more hits than fit, the newest.
    local leaving = redis.call('LINDEX', key, math.min(count + hits - size, count) - 1)
    wait = leaving and tonumber(leaving) + window - now or window
  end
  return room, size - count - (room and hits or 0), wait, function()
    for _ = 1, hits do
      redis.call('RPUSH', key, string.format('%.0f', now))
    end
    redis.call('PEXPIRE', key, math.ceil(window / 1000))
  end
end

local passes, charges, answers = true, {}, {}
for i, key in ipairs(KEYS) do
  local at = 4 * i - 1
  local room, left, wait, charge =
    kinds[ARGV[at]](key, tonumber(ARGV[at + 1]), tonumber(ARGV[at + 2]))
  answers[i] = {room and 1 or 0, math.floor(left), math.ceil(wait)}
  if room then
    charges[i] = charge
  elseif ARGV[at + 3] == '1' then
    passes = false
  end
end
if passes then
  for _, charge in pairs(charges) do
    charge()
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

    `reset_seconds` is the time until all requests of the limit are available again or, without
    room, until it admits the request.
    """

    has_room: bool
    remaining: int
    reset_seconds: float


class Counter:
    """Consumes from buckets in Redis. `clock` returns seconds since 1970; default: Redis's."""

    def __init__(self, link: RedisLink, clock: Callable[[], float] = lambda: 0.0) -> None:
        self._link = link
        self._clock = clock
        self._script: AsyncScript | None = None

    async def count(self, demands: Sequence[Demand], hits: int = 1) -> list[Verdict]:
        """Consumes `hits` from all buckets, or from none when an enforced one has no room.

        Raises RedisAwayError.
        """
        arguments: list[int | float | str] = [round(self._clock() * _MICROSECONDS), hits]
        keys = []
        for demand in demands:
            kind, bucket = _KINDS[demand.bucket.limit.algorithm], demand.bucket
            is_token = bucket.limit.algorithm is LimitAlgorithm.TOKEN_BUCKET
            seconds = bucket.interval_seconds if is_token else bucket.limit.window_seconds
            enforced = int(not bucket.limit.shadow)
            arguments += [kind, bucket.size, seconds * _MICROSECONDS, enforced]
            # A changed algorithm starts with an unused bucket.
            keys.append(f"{_PREFIX}{kind}:{bucket.name}:{demand.owner}")
        answers = await self._link.call(lambda client: self._run(client, keys, arguments))
        return [
            Verdict(bool(room), max(0, remaining), wait / _MICROSECONDS)
            for room, remaining, wait in answers
        ]

    async def _run(
        self, client: Redis, keys: list[str], arguments: list[int | float | str]
    ) -> list[tuple[int, int, int]]:
        # redis-py calls the script by its hash and sends the text only when Redis lacks it.
        script = self._script = self._script or client.register_script(_SCRIPT)
        answers: list[tuple[int, int, int]] = await script(keys, arguments, client)
        return answers
