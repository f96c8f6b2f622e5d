"""Counting in a real Redis: bursts, rates, windows, several buckets, shadow limits."""

import asyncio
import time
from collections.abc import AsyncIterator

import pytest
from redis.asyncio import from_url

from limit_svc.counting import Counter, Demand, Verdict
from mesh.redis.link import RedisAwayError, RedisLink
from mesh.rpc.limits import Bucket
from mesh.rpc.policy import LimitAlgorithm, LimitKey, RateLimit
from testing.redis_server import RedisProcess, redis_process


@pytest.fixture
async def redis() -> AsyncIterator[RedisProcess]:
    async with redis_process() as server:
        yield server


@pytest.fixture
async def counter(redis: RedisProcess) -> AsyncIterator[Counter]:
    async with RedisLink.open(redis.url, call_seconds=5) as link:
        yield Counter(link)


def a_demand(
    requests: int,
    window: float,
    *,
    name: str = "a",
    owner: str = "u",
    burst: int | None = None,
    shadow: bool = False,
    algorithm: LimitAlgorithm = LimitAlgorithm.TOKEN_BUCKET,
) -> Demand:
    limit = RateLimit(requests, window, LimitKey.USER, burst, shadow, algorithm)
    return Demand(Bucket(name, limit), owner)


class Minutes:
    """A Counter whose clock the test sets, and a limit of 10 per minute."""

    def __init__(self, link: RedisLink, algorithm: LimitAlgorithm) -> None:
        self._now = 0.0
        self._counter = Counter(link, lambda: self._now)
        self._demand = a_demand(10, 60, algorithm=algorithm)

    async def admitted(self, second: float, calls: int) -> int:
        """How many of the calls pass at a second after a full minute of 2001."""
        self._now = 1_000_000_020 + second
        verdicts = [(await self._counter.count([self._demand]))[0] for _ in range(calls)]
        self.last = verdicts[-1]
        return sum(verdict.has_room for verdict in verdicts)


# What docs/gateway.md says: the second, the calls, and how many of them each algorithm admits.
BY_NUMBERS = [
    (0, 3, {"TOKEN_BUCKET": 3, "FIXED_WINDOW": 3, "SLIDING_WINDOW": 3}),
    (59, 20, {"TOKEN_BUCKET": 10, "FIXED_WINDOW": 7, "SLIDING_WINDOW": 7}),
    (61, 20, {"TOKEN_BUCKET": 0, "FIXED_WINDOW": 10, "SLIDING_WINDOW": 3}),
    (90, 20, {"TOKEN_BUCKET": 5, "FIXED_WINDOW": 0, "SLIDING_WINDOW": 0}),
    (119, 20, {"TOKEN_BUCKET": 5, "FIXED_WINDOW": 0, "SLIDING_WINDOW": 7}),
    (121, 20, {"TOKEN_BUCKET": 0, "FIXED_WINDOW": 10, "SLIDING_WINDOW": 3}),
]


@pytest.mark.parametrize("algorithm", LimitAlgorithm, ids=lambda algorithm: algorithm.name)
async def test_each_algorithm_admits_what_the_document_says(
    redis: RedisProcess, algorithm: LimitAlgorithm
) -> None:
    async with RedisLink.open(redis.url, call_seconds=60) as link:
        minutes = Minutes(link, algorithm)
        admitted = [await minutes.admitted(second, calls) for second, calls, _ in BY_NUMBERS]
    assert admitted == [expected[algorithm.name] for *_, expected in BY_NUMBERS]


@pytest.mark.parametrize(
    ("algorithm", "remaining", "until_unused", "until_admitted"),
    [
        (LimitAlgorithm.TOKEN_BUCKET, 7, 18, 3),
        (LimitAlgorithm.FIXED_WINDOW, 7, 50, 47),
        (LimitAlgorithm.SLIDING_WINDOW, 7, 60, 57),
    ],
)
async def test_clients_learn_when_to_try_again(
    redis: RedisProcess,
    algorithm: LimitAlgorithm,
    remaining: int,
    until_unused: float,
    until_admitted: float,
) -> None:
    """Three calls at second 10, the others at second 13."""
    async with RedisLink.open(redis.url, call_seconds=60) as link:
        minutes = Minutes(link, algorithm)
        await minutes.admitted(10, 3)
        assert minutes.last == Verdict(True, remaining, until_unused)
        await minutes.admitted(13, 20)
        assert minutes.last == Verdict(False, 0, until_admitted)


async def test_a_burst_is_admitted_then_refused(counter: Counter) -> None:
    demand = a_demand(3, 3600)
    verdicts = [(await counter.count([demand]))[0] for _ in range(5)]
    assert [verdict.has_room for verdict in verdicts] == [True, True, True, False, False]
    assert [verdict.remaining for verdict in verdicts] == [2, 1, 0, 0, 0]
    # Refused requests do not extend the wait.
    assert 1190 < verdicts[4].reset_seconds <= 1200


async def test_no_second_burst_at_the_edge_of_a_window(counter: Counter) -> None:
    """A fixed window would admit 40 around its edge."""
    demand = a_demand(20, 1.0)
    started, admitted = time.monotonic(), 0
    # A slow machine needs longer to consume the burst and a part of what follows.
    while time.monotonic() - started < 2.2 or admitted <= 20:
        admitted += (await counter.count([demand]))[0].has_room
        await asyncio.sleep(0.002)
    elapsed = time.monotonic() - started
    assert admitted <= 20 + 20 * elapsed + 1


async def test_a_burst_smaller_than_the_limit(counter: Counter) -> None:
    demand = a_demand(100, 3600, burst=2)
    assert [(await counter.count([demand]))[0].has_room for _ in range(3)] == [True, True, False]


async def test_nothing_is_charged_when_one_bucket_refuses(counter: Counter) -> None:
    wide, narrow = a_demand(5, 3600, name="wide"), a_demand(1, 3600, name="narrow")
    for _ in range(10):
        await counter.count([wide, narrow])
    [verdict] = await counter.count([wide])
    assert (verdict.has_room, verdict.remaining) == (True, 3)


async def test_owners_have_separate_buckets(counter: Counter) -> None:
    for owner in ("u1", "u2"):
        assert (await counter.count([a_demand(1, 3600, owner=owner)]))[0].has_room


async def test_a_shadow_limit_is_counted_and_refuses_nothing(counter: Counter) -> None:
    shadow, real = a_demand(1, 3600, name="shadow", shadow=True), a_demand(5, 3600, name="real")
    for _ in range(3):
        verdicts = await counter.count([shadow, real])
    assert [verdict.has_room for verdict in verdicts] == [False, True]
    assert verdicts[1].remaining == 2


async def test_concurrent_requests_do_not_exceed_the_limit(counter: Counter) -> None:
    demand = a_demand(10, 3600)
    verdicts = await asyncio.gather(*(counter.count([demand]) for _ in range(10)))
    later = await asyncio.gather(*(counter.count([demand]) for _ in range(10)))
    assert sum(verdict.has_room for [verdict] in verdicts) == 10
    assert sum(verdict.has_room for [verdict] in later) == 0


async def test_a_bucket_that_is_full_again_expires_in_redis(
    counter: Counter, redis: RedisProcess
) -> None:
    async with from_url(redis.url) as connection:
        for seconds in (3600, 0.1):
            await counter.count([a_demand(1, seconds, name=str(seconds))])
        [lasting] = [key for key in await connection.keys("*") if b"3600" in key]
        assert 3500 < await connection.ttl(lasting) <= 3600
        async with asyncio.timeout(60):
            while await connection.keys("*") != [lasting]:
                await asyncio.sleep(0.01)


async def test_an_unavailable_redis_is_an_error(counter: Counter, redis: RedisProcess) -> None:
    await redis.kill()
    with pytest.raises(RedisAwayError):
        await counter.count([a_demand(1, 1)])
    await redis.start()
    async with asyncio.timeout(60):
        while True:
            try:
                # After a restart Redis no longer has the script.
                assert (await counter.count([a_demand(1, 1)]))[0].has_room
            except RedisAwayError:
                await asyncio.sleep(0.05)
            else:
                return
