"""Processes are frozen and resumed, and Redis is emptied."""

import asyncio
import json
from pathlib import Path

import psutil
import redis.asyncio

from chaos.faults import processes
from launcher.redis_server import RedisServer
from launcher.supervisor import Process, Supervisor, wait_healthy


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
        await processes.flush(home)
        assert await client.get("k") is None
    freezing = asyncio.create_task(processes.freeze(process.pid, 0.3))
    async with asyncio.timeout(60):
        while psutil.Process(process.pid).status() != psutil.STATUS_STOPPED:
            await asyncio.sleep(0.01)
    await freezing
    assert psutil.Process(process.pid).status() != psutil.STATUS_STOPPED
    # A cancelled freeze also resumes the process.
    freezing = asyncio.create_task(processes.freeze(process.pid, 60))
    await asyncio.sleep(0)
    freezing.cancel()
    await asyncio.gather(freezing, return_exceptions=True)
    assert psutil.Process(process.pid).status() != psutil.STATUS_STOPPED
