"""Starts child processes, restarts those that end, and stops all in reverse order.

A Program defines how to start a process and how to check its health.
"""

import asyncio
import os
import pwd
import signal
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import Any, BinaryIO

from launcher import leftovers
from launcher.errors import LaunchError
from launcher.patience import Patience, demand_seconds

FIRST_BACKOFF_SECONDS = 0.2
LAST_BACKOFF_SECONDS = 5.0
STEADY_AFTER_SECONDS = 10.0
"""After running this long, a process restarts with the first backoff again."""

# A process of an earlier run may still block the first three attempts.
_START_ATTEMPTS = 4
_LOG_BYTES = 20 * 1024 * 1024
_STARTING_CHECK_SECONDS = 0.1
_CHECK_SECONDS = 5.0
_FAILED_CHECK_SECONDS = 0.3
_CHECK_TIMEOUT_SECONDS = 3.0
_FAILED_CHECKS = 2
_TAIL_LINES = 20
_PROGRESS_SECONDS = 1.0


class State(StrEnum):
    STARTING = "starting"
    HEALTHY = "healthy"
    UNHEALTHY = "unhealthy"
    RESTARTING = "restarting"
    STOPPING = "stopping"
    STOPPED = "stopped"


@dataclass(frozen=True, slots=True, kw_only=True)
class Program:
    """How to run a process.

    `check` returns whether it is healthy; an error counts as unhealthy. `environment` None is the
    launcher's. `prepare` runs before each start, `drain` before the stop signal. `user` is the
    system user to run as.
    """

    name: str
    command: tuple[str, ...]
    check: Callable[[], Awaitable[bool]]
    environment: Mapping[str, str] | None = None
    port: int | None = None
    user: str | None = None
    stop_signal: signal.Signals = signal.SIGTERM
    grace_seconds: float = 10.0
    prepare: Callable[[], None] | None = None
    drain: Callable[[], Awaitable[None]] | None = None


class Process:
    """A program that is kept running.

    Times are those of the event loop. `restarts` counts how often it ended without `stop`.
    """

    def __init__(
        self, program: Program, home: Path, on_change: Callable[["Process"], None]
    ) -> None:
        self.program = program
        self.log = home / "logs" / f"{program.name}.log"
        self.state = State.STARTING
        self.pid: int | None = None
        self.restarts = 0
        self.exit_code: int | None = None
        self.started_at = 0.0
        self.retry_at = 0.0
        self._log_start = 0
        self._on_change = on_change
        self._pid_file = leftovers.pid_file(home, program.name)
        self._child: asyncio.subprocess.Process | None = None
        self._stop_requested = asyncio.Event()
        self._was_healthy = asyncio.Event()
        self._gave_up = asyncio.Event()
        self._keeper: asyncio.Task[None] | None = None

    @property
    def name(self) -> str:
        return self.program.name

    @property
    def ending(self) -> str:
        """How it last ended, e.g. `signal SIGKILL`."""
        if self.exit_code is not None and self.exit_code < 0:
            return f"signal {signal.Signals(-self.exit_code).name}"
        return f"exit code {self.exit_code}"

    def start(self) -> None:
        """Starts the process, for the first time or after `stop`."""
        self._stop_requested.clear()
        self._was_healthy.clear()
        self._gave_up.clear()
        self._rotate_log()
        self._keeper = asyncio.create_task(self._keep_running(), name=f"keep {self.name}")

    async def wait_healthy(self, seconds: float) -> None:
        """Waits until it was healthy once, as long as it lives and was not idle for `seconds`.

        Otherwise raises LaunchError with what it has written to its log.
        """
        patience = Patience(seconds, lambda: demand_seconds([self.pid]))
        waiting = {
            asyncio.create_task(self._was_healthy.wait()),
            asyncio.create_task(self._gave_up.wait()),
        }
        try:
            while not self._was_healthy.is_set() and not self._gave_up.is_set():
                await asyncio.wait(
                    waiting, timeout=_PROGRESS_SECONDS, return_when=asyncio.FIRST_COMPLETED
                )
                if patience.is_over:
                    break
        finally:
            for task in waiting:
                task.cancel()
        if self._was_healthy.is_set():
            return
        problem = (
            f"{self.name} does not start: it ended with {self.ending}"
            if self.exit_code is not None
            else f"{self.name} did not become healthy and was idle for {seconds:g} s"
        )
        written = self.log_tail() or "(nothing since its start)"
        raise LaunchError(problem, f"The end of {self.log}:\n{written}")

    def log_tail(self, lines: int = _TAIL_LINES) -> str:
        """The last lines since `start`; the file also has those of earlier runs."""
        with suppress(OSError), self.log.open("rb") as file:
            file.seek(max(self._log_start, self.log.stat().st_size - 64 * 1024))
            return "\n".join(file.read().decode(errors="replace").splitlines()[-lines:])
        return ""

    async def stop(self) -> bool:
        """Drains it, sends its stop signal and, after its grace, kills its process group.

        Returns whether it ended without being killed.
        """
        if self._keeper is None:
            return True
        if self._child is not None and self.program.drain is not None:
            with suppress(Exception):
                await self.program.drain()
        self._stop_requested.set()
        if self._child is not None:
            self._enter(State.STOPPING)
            self._signal(self.program.stop_signal)
        done, _ = await asyncio.wait({self._keeper}, timeout=self.program.grace_seconds)
        if not done:
            self._signal(signal.SIGKILL)
        await self._keeper
        return bool(done)

    async def _keep_running(self) -> None:
        loop = asyncio.get_running_loop()
        backoff = FIRST_BACKOFF_SECONDS
        deaths = 0
        while not self._stop_requested.is_set():
            self._enter(State.STARTING)
            self.started_at = loop.time()
            self.exit_code = await self._run_once()
            if self._stop_requested.is_set():
                break
            if loop.time() - self.started_at >= STEADY_AFTER_SECONDS:
                backoff = FIRST_BACKOFF_SECONDS
            deaths += 1
            if deaths >= _START_ATTEMPTS and not self._was_healthy.is_set():
                self._gave_up.set()
            self.restarts += 1
            self.retry_at = loop.time() + backoff
            self._enter(State.RESTARTING)
            with suppress(TimeoutError):
                async with asyncio.timeout(backoff):
                    await self._stop_requested.wait()
            backoff = min(backoff * 2, LAST_BACKOFF_SECONDS)
        self._enter(State.STOPPED)

    async def _run_once(self) -> int:
        """Starts the process and waits until it ends. Returns its exit code."""
        with self._open_log() as log:
            try:
                if self.program.prepare is not None:
                    await asyncio.to_thread(self.program.prepare)
                child = await self._spawn(log)
            except (OSError, LaunchError) as error:
                log.write(f"cannot start {self.name}: {error}\n".encode())
                return 127
        self._child, self.pid = child, child.pid
        leftovers.record(self._pid_file, child.pid, self.program.stop_signal)
        watcher = asyncio.create_task(self._watch(), name=f"watch {self.name}")
        try:
            # A stop may have been requested during the start.
            if self._stop_requested.is_set():
                self._signal(self.program.stop_signal)
            return await child.wait()
        finally:
            watcher.cancel()
            self._pid_file.unlink(missing_ok=True)
            self._child = self.pid = None

    async def _spawn(self, log: BinaryIO) -> asyncio.subprocess.Process:
        # user= instead of preexec_fn: gRPC, which the launcher uses, does not support Python code
        # between fork and exec.
        identity: dict[str, Any] = {}
        if self.program.user is not None:
            account = pwd.getpwnam(self.program.user)
            identity = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []}
        return await asyncio.create_subprocess_exec(
            *self.program.command,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=self.program.environment,
            # A separate group, so that Ctrl-C reaches only the launcher, which stops processes in
            # order. Not a separate session: Linux would first divide the CPU among sessions, and a
            # nice value would have an effect only within its own process.
            process_group=0,
            **identity,
        )

    async def _watch(self) -> None:
        """Updates `state` from health checks while the process runs."""
        failed = 0
        while True:
            healthy = await self._is_healthy()
            if self._stop_requested.is_set():
                return
            if healthy:
                failed = 0
                self._was_healthy.set()
                self._enter(State.HEALTHY)
            elif self.state is not State.STARTING:
                failed += 1
                if failed >= _FAILED_CHECKS:
                    self._enter(State.UNHEALTHY)
            if self.state is State.STARTING:
                await asyncio.sleep(_STARTING_CHECK_SECONDS)
            else:
                await asyncio.sleep(_FAILED_CHECK_SECONDS if failed else _CHECK_SECONDS)

    async def _is_healthy(self) -> bool:
        try:
            async with asyncio.timeout(_CHECK_TIMEOUT_SECONDS):
                return await self.program.check()
        except Exception:  # noqa: BLE001
            # A failed check means unhealthy; the process's log has the cause.
            return False

    def _enter(self, state: State) -> None:
        if state is not self.state or state is State.STARTING:
            self.state = state
            self._on_change(self)

    def _signal(self, signum: signal.Signals) -> None:
        if self._child is not None and self._child.returncode is None:
            with suppress(ProcessLookupError):
                if signum is signal.SIGKILL:
                    os.killpg(self._child.pid, signum)
                else:
                    self._child.send_signal(signum)

    def _open_log(self) -> BinaryIO:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        return self.log.open("ab", buffering=0)

    def _rotate_log(self) -> None:
        self._log_start = 0
        with suppress(FileNotFoundError):
            if self.log.stat().st_size > _LOG_BYTES:
                self.log.replace(self.log.with_suffix(".log.1"))
            else:
                self._log_start = self.log.stat().st_size


class Supervisor:
    """The processes of a mesh, in tiers that stop in reverse order of their start."""

    def __init__(self, home: Path, *, on_change: Callable[[Process], None] | None = None) -> None:
        self._home = home
        self._on_change = on_change or (lambda _: None)
        self._tiers: list[list[Process]] = []

    @property
    def processes(self) -> list[Process]:
        """All processes, in the order of their start."""
        return [process for tier in self._tiers for process in tier]

    def start(self, programs: Sequence[Program]) -> list[Process]:
        """Starts a tier without waiting until it is healthy."""
        tier = [Process(program, self._home, self._on_change) for program in programs]
        self._tiers.append(tier)
        for process in tier:
            process.start()
        return tier

    async def stop(self) -> None:
        """Stops all processes; those of a tier in parallel."""
        while self._tiers:
            tier = self._tiers[-1]
            await asyncio.gather(*(process.stop() for process in tier))
            self._tiers.pop()


async def wait_healthy(processes: Sequence[Process], seconds: float) -> None:
    """Waits until all processes are healthy. Raises LaunchError for the first failure.

    As Process.wait_healthy: `seconds` of idleness, not of time.
    """
    waits = [asyncio.create_task(process.wait_healthy(seconds)) for process in processes]
    try:
        await asyncio.gather(*waits)
    finally:
        for wait in waits:
            wait.cancel()


def python(module: str, *arguments: str) -> tuple[str, ...]:
    """The command that runs a module with the launcher's Python."""
    return (sys.executable, "-m", module, *arguments)
