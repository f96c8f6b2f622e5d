"""The cache with a real Redis that is killed, frozen and flushed: results stay correct."""

import asyncio
import random
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any
from uuid import UUID, uuid4

import pytest
import redis.asyncio
from pydantic import TypeAdapter

from mesh.redis.cache import Cache
from mesh.redis.link import RedisAwayError, RedisLink
from testing.redis_server import RedisProcess, redis_process


@dataclass(frozen=True)
class Show:
    show_id: UUID
    name: str
    start_time: datetime
    tags: tuple[str, ...] = ()


SHOWS = TypeAdapter(Show)
TEXTS = TypeAdapter(str)


@dataclass
class Source:
    """The source of values. `reads` counts calls; `gate` delays readers after they have read."""

    value: str = "old"
    reads: int = 0
    gate: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.gate.set()

    async def __call__(self) -> str:
        self.reads += 1
        value = self.value
        await self.gate.wait()
        return value


@pytest.fixture
async def server() -> AsyncIterator[RedisProcess]:
    async with redis_process() as server:
        yield server


@pytest.fixture
async def link(server: RedisProcess) -> AsyncIterator[RedisLink]:
    # Long enough for a busy machine, short enough to wait for when Redis is frozen.
    async with RedisLink.open(server.url, call_seconds=2) as link:
        yield link


@pytest.fixture
def cache(link: RedisLink) -> Cache:
    return Cache(link)


async def test_set_overwrites_and_delete_and_exists_answer_whether_there_was_a_value(
    cache: Cache,
) -> None:
    assert not await cache.exists("k")
    assert not await cache.delete("j", "k")
    # A deleted key takes no value for as long as a reader of the old one may run.
    assert not await cache.set("k", TEXTS, "stale")
    assert await cache.set("l", TEXTS, "first")
    assert await cache.set("l", TEXTS, "second")
    assert await cache.get("l", TEXTS) == "second"
    assert await cache.exists("l")
    assert await cache.delete("k", "l")
    assert not await cache.exists("l")
    assert not await cache.delete("l")


async def until_available(link: RedisLink) -> None:
    async with asyncio.timeout(60):
        while link.is_away:
            await asyncio.sleep(0.02)


async def test_a_value_is_read_once_from_its_source_and_unchanged_by_the_cache(
    cache: Cache,
) -> None:
    show = Show(uuid4(), "Monsoon – मानसून", datetime(2030, 7, 1, tzinfo=UTC), ("a", "b"))
    reads = 0

    async def source() -> Show:
        nonlocal reads
        reads += 1
        return show

    for _ in range(3):
        assert await cache.read("show:1", SHOWS, source) == show
    assert reads == 1


async def test_every_key_has_a_time_to_live(cache: Cache, server: RedisProcess) -> None:
    await cache.set("a", TEXTS, "x", ttl_seconds=60)
    await cache.set("b", TEXTS, "x", ttl_seconds=10**9)
    await cache.delete("c")
    async with redis.asyncio.from_url(server.url) as client:
        lives = {key: await client.ttl(key) for key in await client.keys()}
    assert set(lives) == {b"cache:a", b"cache:b", b"cache:c"}
    assert 0 < lives[b"cache:a"] <= 60
    assert 0 < lives[b"cache:b"] <= 3600
    assert 0 < lives[b"cache:c"] <= 5


async def test_concurrent_readers_share_one_read_of_the_source(cache: Cache) -> None:
    source = Source()
    source.gate.clear()
    readers = [asyncio.create_task(cache.read("k", TEXTS, source)) for _ in range(50)]
    while not source.reads:
        await asyncio.sleep(0.01)
    # Cancelling the first reader does not affect the others.
    readers[0].cancel()
    source.gate.set()
    assert set(await asyncio.gather(*readers[1:])) == {"old"}
    assert source.reads == 1


async def test_an_error_is_not_cached(cache: Cache) -> None:
    async def fail() -> str:
        raise KeyError("no such show")

    with pytest.raises(KeyError):
        await cache.read("k", TEXTS, fail)
    assert await cache.read("k", TEXTS, Source()) == "old"


async def test_a_change_is_visible_at_once(cache: Cache) -> None:
    source = Source()
    assert await cache.read("k", TEXTS, source) == "old"
    source.value = "new"
    await cache.delete("k")
    assert not await cache.exists("k")
    for _ in range(2):
        assert await cache.read("k", TEXTS, source) == "new"


async def test_a_slow_reader_does_not_store_a_stale_value_after_a_change(cache: Cache) -> None:
    source = Source()
    source.gate.clear()
    slow = asyncio.create_task(cache.read("k", TEXTS, source))
    while not source.reads:
        await asyncio.sleep(0.01)
    source.value = "new"
    await cache.delete("k")
    source.gate.set()
    await slow
    assert await cache.read("k", TEXTS, source) == "new"


async def test_an_unreadable_value_is_a_miss(cache: Cache, server: RedisProcess) -> None:
    async with redis.asyncio.from_url(server.url) as client:
        await client.set("cache:k", b'{"of": "an older version"}')
    assert await cache.read("k", TEXTS, Source()) == "old"


async def test_keys_are_deleted_by_prefix(cache: Cache) -> None:
    for number in range(700):
        await cache.set(f"shows:{number}", TEXTS, "x")
    await cache.set("venues:1", TEXTS, "x")
    await cache.set("shows*", TEXTS, "x")
    assert await cache.delete_matching("shows*") == 1
    assert await cache.delete_matching("shows:") == 700
    assert await cache.exists("venues:1")


@pytest.mark.parametrize("how", ["kill", "freeze"])
async def test_without_redis_values_come_from_the_source_and_only_the_first_calls_wait(
    cache: Cache,
    link: RedisLink,
    server: RedisProcess,
    how: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    source = Source()
    await cache.read("k", TEXTS, source)
    sent = Counter[str]()
    execute: Any = redis.asyncio.Redis.execute_command

    async def counted(client: redis.asyncio.Redis, name: str, *rest: Any, **options: Any) -> Any:
        sent[name] += 1
        return await execute(client, name, *rest, **options)

    monkeypatch.setattr(redis.asyncio.Redis, "execute_command", counted)
    if how == "kill":
        await server.kill()
    else:
        server.freeze()
    source.value = "new"
    first = await asyncio.gather(*(cache.read(f"{n}", TEXTS, source) for n in range(20)))
    assert set(first) == {"new"}
    assert link.is_away
    # Each read sent at most one command: none tried to store its value after a failed GET.
    assert sent["GET"] + sent["SET"] <= 20
    sent.clear()
    reads = source.reads
    for number in range(200):
        assert await cache.read(f"{number}", TEXTS, source) == "new"
    assert sent["GET"] + sent["SET"] == 0
    assert source.reads == reads + 200
    if how == "kill":
        await server.start()
    else:
        server.thaw()
    await until_available(link)
    source.reads = 0
    for _ in range(3):
        await cache.read("again", TEXTS, source)
    assert source.reads == 1


async def test_a_change_while_redis_is_frozen_is_not_lost(
    cache: Cache, link: RedisLink, server: RedisProcess
) -> None:
    source = Source()
    assert await cache.read("k", TEXTS, source, ttl_seconds=3600) == "old"
    server.freeze()
    source.value = "new"
    await cache.delete("k")
    assert await cache.read("k", TEXTS, source) == "new"
    server.thaw()
    await until_available(link)
    assert await cache.read("k", TEXTS, source) == "new"


async def test_a_flushed_redis_is_filled_again(cache: Cache, server: RedisProcess) -> None:
    source = Source()
    await cache.read("k", TEXTS, source)
    await server.flush()
    source.value = "new"
    assert await cache.read("k", TEXTS, source) == "new"
    assert source.reads == 2


async def test_more_concurrent_readers_than_connections_do_not_break_the_cache(
    cache: Cache, link: RedisLink
) -> None:
    source = Source()
    answers = await asyncio.gather(*(cache.read(f"{n}", TEXTS, source) for n in range(2000)))
    assert set(answers) == {"old"}
    await until_available(link)
    source.reads = 0
    for _ in range(3):
        await cache.read("afterwards", TEXTS, source)
    assert source.reads == 1


async def test_the_response_of_a_cancelled_call_never_reaches_another_call(
    link: RedisLink,
) -> None:
    """The bug of CVE-2023-28858, with the pinned redis-py: unique tokens and cancelled calls."""
    crossed: list[str] = []
    ended: list[str] = []

    async def echo(name: str) -> None:
        for _ in range(60):
            try:
                async with asyncio.timeout(random.uniform(0.0001, 0.004)):
                    response = await link.direct(lambda client: client.echo(name))
            except (TimeoutError, RedisAwayError) as error:
                ended.append(type(error).__name__)
                continue
            ended.append("answered")
            if response != name.encode():
                crossed.append(f"{name}: {response!r}")

    await asyncio.gather(*(echo(uuid4().hex) for _ in range(20)))
    assert crossed == []
    # The test is only valid if some calls were cancelled and some were not.
    assert {"TimeoutError", "answered"} <= set(ended)
    await link.ping()
