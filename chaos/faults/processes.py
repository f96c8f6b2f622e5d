"""Faults of processes that the launcher started, and how long each takes to recover.

The launcher's supervisor restarts them. Only processes named by its pid files are touched.
"""

import asyncio
import json
import os
import signal
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import psycopg
import redis.asyncio

from chaos.faults.plan import Fault

REDIS, POSTGRES = "redis", "postgres"

RECOVERY_SECONDS = 60.0
"""After this time without recovery a process counts as lost."""

_POLL_SECONDS = 0.1
_START_TIME_TOLERANCE_SECONDS = 2.0
_SIGNALS = {
    Fault.KILL: signal.SIGKILL,
    Fault.STOP: signal.SIGTERM,
    # PostgreSQL's immediate shutdown.
    Fault.CRASH: signal.SIGQUIT,
}
_TERMINATE = (
    "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity"
    " WHERE usename = %s AND pid <> pg_backend_pid()"
)

IsHealthy = Callable[[], Awaitable[bool]]


@dataclass
class Outage:
    """A fault that was injected. Times are in seconds of the monotonic clock.

    `away_seconds` is the time from the injection until the target served again, or from the end
    of a freeze; None until then.
    """

    fault: Fault
    target: str
    seconds: float = 0.0
    began: float = 0.0
    healed: float = 0.0
    away_seconds: float | None = None

    @property
    def action(self) -> str:
        """E.g. `kill stock_svc`, `freeze redis for 3 s`."""
        duration = f" for {self.seconds:g} s" if self.seconds else ""
        return f"{self.fault} {self.target}{duration}"


async def inflict(
    outage: Outage, home: Path, is_healthy: IsHealthy, *, seconds: float = RECOVERY_SECONDS
) -> None:
    """Injects a fault of a process of the mesh at `home`, and waits until it is healthy again, for at
    most `seconds`."""
    outage.began = time.monotonic()
    pid = await _wait_for(home, outage.target, seconds)
    if pid is None:
        return
    stopped: set[int | None] = {None}
    outage.began = outage.healed = time.monotonic()
    match outage.fault:
        case Fault.FREEZE:
            await freeze(pid, outage.seconds)
            outage.healed = time.monotonic()
        case Fault.FLUSH:
            await flush(home)
        case Fault.TERMINATE:
            await terminate_backends(home)
        case _:
            stopped.add(pid)
            with suppress(ProcessLookupError):
                os.kill(pid, _SIGNALS[outage.fault])
    while time.monotonic() < outage.healed + seconds:
        await asyncio.sleep(_POLL_SECONDS)
        if running_pid(home, outage.target) not in stopped and await is_healthy():
            outage.away_seconds = time.monotonic() - outage.healed
            return


async def freeze(pid: int, seconds: float) -> None:
    """Stops a process and its children, which PostgreSQL has, with SIGSTOP for this time."""
    pids = [pid]
    with suppress(psutil.Error):
        pids += [child.pid for child in psutil.Process(pid).children(recursive=True)]
    try:
        _signal(pids, signal.SIGSTOP)
        await asyncio.sleep(seconds)
    finally:
        # Also when the run is interrupted: no other program resumes the process.
        _signal(pids, signal.SIGCONT)


def _signal(pids: list[int], signum: signal.Signals) -> None:
    for pid in pids:
        with suppress(ProcessLookupError):
            os.kill(pid, signum)


async def flush(home: Path) -> None:
    """Empties the Redis of the mesh at `home`."""
    from launcher.redis_server import RedisServer

    async with redis.asyncio.from_url(RedisServer(home).url) as client:
        await client.flushall()


async def terminate_backends(home: Path) -> int:
    """Terminates all connections of the services. Returns their number."""
    from launcher import postgres_server

    async with await superuser(home) as connection:
        cursor = await connection.execute(_TERMINATE, (postgres_server.ROLE,))
        row = await cursor.fetchone()
        return int(row[0]) if row else 0


async def superuser(home: Path, database: str = "postgres") -> psycopg.AsyncConnection:
    """A connection to the PostgreSQL of the mesh at `home`, past all proxies."""
    from launcher import postgres_server, sockets

    return await psycopg.AsyncConnection.connect(
        host=str(sockets.folder(home)),
        user=postgres_server.SUPERUSER,
        dbname=database,
        connect_timeout=3,
        autocommit=True,
    )


async def _wait_for(home: Path, name: str, seconds: float) -> int | None:
    """The pid of a process that may be restarting by itself; None when it does not come back."""
    end = time.monotonic() + seconds
    while (pid := running_pid(home, name)) is None and time.monotonic() < end:
        await asyncio.sleep(_POLL_SECONDS)
    return pid


def pid_file(home: Path, name: str) -> Path:
    return home / "run" / f"{name}.pid"


def running_pid(home: Path, name: str) -> int | None:
    """The pid in the launcher's pid file, if the same process still runs."""
    try:
        content = json.loads(pid_file(home, name).read_text())
        pid = int(content["pid"])
        process = psutil.Process(pid)
        # The pid may have been reused by another process, which must not be killed.
        if abs(process.create_time() - content["started"]) > _START_TIME_TOLERANCE_SECONDS:
            return None
        return None if process.status() == psutil.STATUS_ZOMBIE else pid
    except (OSError, ValueError, KeyError, TypeError, psutil.Error):
        return None
