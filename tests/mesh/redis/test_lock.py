"""The lock with a real Redis: one holder, identified by its token and its fence."""

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


async def acquired(locks: Locks, name: str = "job", **options: float) -> Held:
    held = await locks.acquire(name, **options)  # type: ignore[arg-type]
    assert held is not None
    return held


async def test_locks_are_in_a_database_index_of_their_own(server: RedisProcess) -> None:
    async with Locks.open(server.url) as locks, redis.asyncio.from_url(server.url) as cache:
        held = await acquired(locks)
        assert await cache.dbsize() == 0
        # Emptying the cache releases no lock.
        await cache.flushdb()
        assert await locks.acquire("job", attempts=1) is None
        assert await locks.release(held)


async def test_one_of_many_callers_gets_the_lock(locks: Locks) -> None:
    holders = await asyncio.gather(*(locks.acquire("job", attempts=1) for _ in range(8)))
    assert len([held for held in holders if held is not None]) == 1
    assert await locks.acquire("another", attempts=1) is not None


async def test_a_released_lock_can_be_acquired_again(locks: Locks) -> None:
    first = await acquired(locks)
    assert await locks.release(first)
    second = await acquired(locks)
    assert second.fence > first.fence


async def test_a_former_holder_cannot_release_or_extend_the_lock(
    locks: Locks, server: RedisProcess
) -> None:
    late = await acquired(locks)
    await server.flush()
    now = await acquired(locks)
    assert not await locks.release(late)
    assert not await locks.extend(late)
    assert await locks.acquire("job", attempts=1) is None
    assert await locks.release(now)


async def test_a_lock_expires_and_an_extension_restarts_its_ttl(
    locks: Locks, server: RedisProcess
) -> None:
    held = await acquired(locks, ttl_seconds=30.0)
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


async def test_a_waiting_caller_gets_the_lock_when_it_is_released(locks: Locks) -> None:
    held = await acquired(locks)
    waiting = asyncio.create_task(locks.acquire("job", attempts=200, pause_seconds=0.02))
    await asyncio.sleep(0)
    assert not waiting.done()
    await locks.release(held)
    assert await waiting is not None


async def test_fences_grow_even_when_redis_loses_its_data(
    locks: Locks, server: RedisProcess
) -> None:
    fences = []
    for _ in range(20):
        fences.append((await acquired(locks)).fence)
        await server.flush()
    assert fences == sorted(set(fences))


async def test_a_write_of_a_former_holder_is_refused_by_its_fence(
    locks: Locks, server: RedisProcess
) -> None:
    """The resource stores the largest fence; the former holder's is smaller."""
    written = {"fence": 0, "by": "nobody"}

    def write(held: Held, by: str) -> bool:
        if held.fence < written["fence"]:  # type: ignore[operator]
            return False
        written.update(fence=held.fence, by=by)
        return True

    late = await acquired(locks)
    await server.flush()
    now = await acquired(locks)
    assert write(now, "now")
    assert not write(late, "late")
    assert written["by"] == "now"


async def test_a_job_is_run_by_one_of_many_processes(locks: Locks) -> None:
    done: list[int] = []

    async def job() -> None:
        done.append(1)

    results = await asyncio.gather(*(locks.once("job", job) for _ in range(8)))
    assert sum(results) == len(done) == 1


async def test_a_failed_job_can_be_run_by_another_process_at_once(locks: Locks) -> None:
    async def fail() -> None:
        raise RuntimeError("not today")

    async def job() -> None:
        return

    with pytest.raises(RuntimeError):
        await locks.once("job", fail)
    assert await locks.once("job", job)


@pytest.mark.parametrize("how", ["kill", "freeze"])
async def test_without_redis_a_job_runs_without_its_lock(
    locks: Locks, server: RedisProcess, how: str
) -> None:
    held = await acquired(locks, "other")
    if how == "kill":
        await server.kill()
    else:
        server.freeze()
    done: list[int] = []

    async def job() -> None:
        done.append(1)

    async with RedisLink.open(server.url, call_seconds=0.5) as impatient:
        locks = Locks(impatient)
        assert await locks.once("job", job)
        assert await locks.once("job", job)
        assert len(done) == 2
        assert not await locks.extend(held)
        with pytest.raises(RedisAwayError):
            await locks.acquire("job")
