"""The lock on a real Redis: one holder, whose token and fence tell it from all others."""

import asyncio
from collections.abc import AsyncIterator

import pytest
import redis.asyncio

from mesh.redis.link import RedisAwayError, RedisLink
from mesh.redis.lock import Held, Locks
from testing.redis_server import RedisProcess, redis_process


@pytest.fixture
async def server() -> AsyncIterator[RedisProcess]:
    async with redis_process() as server:
        yield server


@pytest.fixture
async def link(server: RedisProcess) -> AsyncIterator[RedisLink]:
    async with RedisLink.open(server.url, call_seconds=5) as link:
        yield link


@pytest.fixture
def locks(link: RedisLink) -> Locks:
    return Locks(link)


async def taken(locks: Locks, name: str = "job", **options: float) -> Held:
    held = await locks.acquire(name, **options)  # type: ignore[arg-type]
    assert held is not None
    return held


async def test_one_of_many_has_it(locks: Locks) -> None:
    holders = await asyncio.gather(*(locks.acquire("job", attempts=1) for _ in range(8)))
    assert len([held for held in holders if held is not None]) == 1
    assert await locks.acquire("another", attempts=1) is not None


async def test_it_is_had_again_once_it_is_given_back(locks: Locks) -> None:
    first = await taken(locks)
    assert await locks.release(first)
    second = await taken(locks)
    assert second.fence > first.fence


async def test_nobody_gives_back_what_is_anothers(locks: Locks, server: RedisProcess) -> None:
    late = await taken(locks)
    await server.flush()
    now = await taken(locks)
    assert not await locks.release(late)
    assert not await locks.extend(late)
    assert await locks.acquire("job", attempts=1) is None
    assert await locks.release(now)


async def test_it_ends_by_itself_and_an_extension_begins_its_time_anew(
    locks: Locks, server: RedisProcess
) -> None:
    held = await taken(locks, ttl_seconds=30.0)
    async with redis.asyncio.from_url(server.url) as client:
        assert 0 < await client.pttl("lock:job") <= 30_000
        await client.pexpire("lock:job", 1_000)
        assert await locks.extend(held)
        assert await client.pttl("lock:job") > 1_000
        await client.pexpire("lock:job", 1)
    async with asyncio.timeout(60):
        while (following := await locks.acquire("job", attempts=1)) is None:
            await asyncio.sleep(0.01)
    assert following.fence > held.fence


async def test_who_waits_gets_it_when_it_is_given_back(locks: Locks) -> None:
    held = await taken(locks)
    waiting = asyncio.create_task(locks.acquire("job", attempts=200, pause_seconds=0.02))
    await asyncio.sleep(0)
    assert not waiting.done()
    await locks.release(held)
    assert await waiting is not None


async def test_fences_grow_also_when_redis_has_lost_its_memory(
    locks: Locks, server: RedisProcess
) -> None:
    fences = []
    for _ in range(20):
        fences.append((await taken(locks)).fence)
        await server.flush()
    assert fences == sorted(set(fences))


async def test_a_holder_who_slept_too_long_is_refused_by_its_fence(
    locks: Locks, server: RedisProcess
) -> None:
    """What is written keeps the largest fence it has seen; the late holder's is smaller."""
    written = {"fence": 0, "by": "nobody"}

    def write(held: Held, by: str) -> bool:
        if held.fence < written["fence"]:  # type: ignore[operator]
            return False
        written.update(fence=held.fence, by=by)
        return True

    late = await taken(locks)
    await server.flush()
    now = await taken(locks)
    assert write(now, "now")
    assert not write(late, "late")
    assert written["by"] == "now"


async def test_a_job_is_done_by_one_of_many(locks: Locks) -> None:
    done: list[int] = []

    async def job() -> None:
        done.append(1)

    results = await asyncio.gather(*(locks.once("job", job) for _ in range(8)))
    assert sum(results) == len(done) == 1


async def test_a_job_that_fails_is_left_to_another(locks: Locks) -> None:
    async def fail() -> None:
        raise RuntimeError("not today")

    async def job() -> None:
        return

    with pytest.raises(RuntimeError):
        await locks.once("job", fail)
    assert await locks.once("job", job)


@pytest.mark.parametrize("how", ["kill", "freeze"])
async def test_without_redis_there_is_no_lock_and_the_job_is_done(
    locks: Locks, server: RedisProcess, how: str
) -> None:
    held = await taken(locks, "other")
    if how == "kill":
        await server.kill()
    else:
        server.freeze()
    done: list[int] = []

    async def job() -> None:
        done.append(1)

    assert await locks.once("job", job)
    assert await locks.once("job", job)
    assert len(done) == 2
    assert not await locks.extend(held)
    with pytest.raises(RedisAwayError):
        await locks.acquire("job")
