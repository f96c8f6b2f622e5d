"""Kills services in turn during the sale, and kills, freezes or empties Redis.

The launcher's supervisor restarts them. Only processes named by its pid files are touched.
"""

import asyncio
import json
import os
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil
import redis.asyncio

from demo.errors import DemoError
from mesh.settings import SERVICES

ALL_IN_TURN = "all-in-turn"
SECONDS_PER_KILL = 6.0
"""How much each kill extends the arrival of customers, so that customers are active during it."""

REDIS = "redis"
REDIS_FROZEN = "redis-frozen"
REDIS_FLUSHED = "redis-flushed"

_KILLABLE = (*SERVICES, "gateway", REDIS)
_ACTIONS = {REDIS_FROZEN: "SIGSTOP for 3 s:", REDIS_FLUSHED: "FLUSHALL:"}
# Shorter than the supervisor's limit for a dead process.
_FROZEN_SECONDS = 3.0
_FIRST_AFTER_SECONDS = 1.5
_PAUSE_SECONDS = 1.5
_RECOVERY_SECONDS = 30.0
_START_TIME_TOLERANCE_SECONDS = 2.0


@dataclass
class Kill:
    """A kill. `away_seconds` is None until the process has recovered."""

    name: str
    pid: int
    away_seconds: float | None = None

    @property
    def action(self) -> str:
        """The action, e.g. `kill -9 stock_svc`."""
        return f"{_ACTIONS.get(self.name, 'kill -9')} {_process(self.name)}"


class Chaos:
    """Kills `names` one after the other, each after the recovery of the previous one."""

    def __init__(self, names: Sequence[str], *, home: Path, url: str) -> None:
        self.kills: list[Kill] = []
        self._names = tuple(names)
        self._home = home
        self._url = url

    @property
    def seconds(self) -> float:
        """The time that the kills need, in seconds."""
        return SECONDS_PER_KILL * len(self._names)

    @property
    def current(self) -> Kill | None:
        """The kill whose process has not recovered yet."""
        last = self.kills[-1] if self.kills else None
        return last if last is not None and last.away_seconds is None else None

    def check(self) -> None:
        """Raises DemoError when a process to kill does not run on this machine."""
        for name in self._names:
            if running_pid(self._home, _process(name)) is None:
                raise DemoError(
                    f"There is no {name} to kill: "
                    f"{_pid_file(self._home, _process(name))} names no running process. "
                    "The demo kills only processes that `make up` started on this machine "
                    "with the same BOXOFFICE_HOME."
                )

    async def run(self) -> None:
        if not self._names:
            return
        await asyncio.sleep(_FIRST_AFTER_SECONDS)
        async with httpx.AsyncClient(base_url=self._url, timeout=3, trust_env=False) as client:
            for name in self._names:
                await self._kill(name, client)
                await asyncio.sleep(_PAUSE_SECONDS)

    async def _kill(self, name: str, client: httpx.AsyncClient) -> None:
        start = time.monotonic()
        process = _process(name)
        while (pid := running_pid(self._home, process)) is None:
            # The process stopped by itself; the supervisor may be restarting it.
            if time.monotonic() > start + _RECOVERY_SECONDS:
                self.kills.append(Kill(name, 0))
                return
            await asyncio.sleep(0.1)
        kill = Kill(name, pid)
        start = time.monotonic()
        self.kills.append(kill)
        stopped: set[int | None] = {None}
        if name == REDIS_FROZEN:
            await freeze(pid, _FROZEN_SECONDS)
        elif name == REDIS_FLUSHED:
            await flush(self._home)
        else:
            stopped.add(pid)
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        path = "/health/cache" if process == REDIS else "/health"
        while time.monotonic() < start + _RECOVERY_SECONDS:
            await asyncio.sleep(0.1)
            if running_pid(self._home, process) not in stopped and await _is_healthy(client, path):
                kill.away_seconds = time.monotonic() - start
                return


def parse(text: str) -> tuple[str, ...]:
    """The names in a --kill option. Raises DemoError for one that cannot be killed."""
    if not text:
        return ()
    if text == ALL_IN_TURN:
        return SERVICES
    names = tuple(name.strip() for name in text.split(",") if name.strip())
    for name in names:
        if name not in (*_KILLABLE, *_ACTIONS):
            known = ", ".join((*_KILLABLE, *_ACTIONS))
            raise DemoError(f"--kill takes {known} or {ALL_IN_TURN}, not {name!r}.")
    return names


def _process(name: str) -> str:
    return REDIS if name in _ACTIONS else name


async def freeze(pid: int, seconds: float) -> None:
    """Stops a process with SIGSTOP for this time."""
    try:
        os.kill(pid, signal.SIGSTOP)
        await asyncio.sleep(seconds)
    finally:
        # Also when the demo is interrupted: no other program resumes the process.
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)


async def flush(home: Path) -> None:
    """Empties the mesh's Redis."""
    from launcher.redis_server import RedisServer

    async with redis.asyncio.from_url(RedisServer(home).url) as client:
        await client.flushall()


def _pid_file(home: Path, name: str) -> Path:
    return home / "run" / f"{name}.pid"


def running_pid(home: Path, name: str) -> int | None:
    """The pid in the launcher's pid file, if the same process still runs."""
    try:
        content = json.loads(_pid_file(home, name).read_text())
        pid = int(content["pid"])
        process = psutil.Process(pid)
        # The pid may have been reused by another process, which must not be killed.
        if abs(process.create_time() - content["started"]) > _START_TIME_TOLERANCE_SECONDS:
            return None
        return None if process.status() == psutil.STATUS_ZOMBIE else pid
    except (OSError, ValueError, KeyError, TypeError, psutil.Error):
        return None


async def _is_healthy(client: httpx.AsyncClient, path: str) -> bool:
    try:
        return (await client.get(path)).status_code == httpx.codes.OK
    except httpx.HTTPError:
        return False
