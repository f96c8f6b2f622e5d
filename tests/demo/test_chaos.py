"""The demo kills only the named processes, and only those that the launcher started."""

import asyncio
import json
from pathlib import Path

import psutil
import pytest
import redis.asyncio

from demo import chaos
from demo.chaos import Chaos
from demo.errors import DemoError
from launcher.redis_server import RedisServer
from launcher.supervisor import Process, Supervisor, wait_healthy


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", ()),
        ("redis", ("redis",)),
        ("redis-frozen, redis-flushed", ("redis-frozen", "redis-flushed")),
        ("stock_svc,redis", ("stock_svc", "redis")),
    ],
)
def test_names_are_parsed(text: str, names: tuple[str, ...]) -> None:
    assert chaos.parse(text) == names


@pytest.mark.parametrize("text", ["postgres", "redis-eaten", "stock_svc,frozen"])
def test_other_names_are_refused(text: str) -> None:
    with pytest.raises(DemoError, match="--kill takes"):
        chaos.parse(text)


def test_a_redis_that_the_launcher_did_not_start_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DemoError, match="There is no redis"):
        Chaos(["redis-frozen"], home=tmp_path, url="http://127.0.0.1:9").check()


async def test_redis_is_emptied_and_frozen_and_resumes(tmp_path: Path) -> None:
    supervisor = Supervisor(tmp_path)
    [process] = supervisor.start([RedisServer(tmp_path).program()])
    try:
        await wait_healthy([process], 60)
        _write_pid_file(tmp_path, process)
        await _empty_and_freeze(tmp_path, process)
    finally:
        await supervisor.stop()


def _write_pid_file(home: Path, process: Process) -> None:
    """Writes the pid file as the launcher does."""
    assert process.pid is not None
    started = psutil.Process(process.pid).create_time()
    (home / "run").mkdir(exist_ok=True)
    content = {"pid": process.pid, "started": started}
    (home / "run" / "redis.pid").write_text(json.dumps(content))


async def _empty_and_freeze(home: Path, process: Process) -> None:
    assert process.pid is not None
    async with redis.asyncio.from_url(RedisServer(home).url) as client:
        await client.set("k", "v", ex=60)
        await chaos.flush(home)
        assert await client.get("k") is None
    freezing = asyncio.create_task(chaos.freeze(process.pid, 0.3))
    async with asyncio.timeout(60):
        while psutil.Process(process.pid).status() != psutil.STATUS_STOPPED:
            await asyncio.sleep(0.01)
    await freezing
    assert psutil.Process(process.pid).status() != psutil.STATUS_STOPPED
    # A cancelled freeze also resumes the process.
    freezing = asyncio.create_task(chaos.freeze(process.pid, 60))
    await asyncio.sleep(0)
    freezing.cancel()
    await asyncio.gather(freezing, return_exceptions=True)
    assert psutil.Process(process.pid).status() != psutil.STATUS_STOPPED
