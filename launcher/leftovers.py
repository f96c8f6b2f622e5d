"""The lock on a state folder, and processes left running by a launcher that was killed.

Pid files contain the start time, so that a reused pid is not mistaken for such a process.
"""

import fcntl
import json
import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil

from launcher.errors import LaunchError

# psutil derives start times from the boot time, which changes when the clock is set.
_START_TIME_TOLERANCE_SECONDS = 2.0


@contextmanager
def hold(home: Path) -> Iterator[None]:
    """Locks `home` for this process. Raises LaunchError when another launcher holds it."""
    home.mkdir(parents=True, exist_ok=True)
    # The kernel releases the lock when the process ends, so no stale lock remains.
    with (home / "up.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LaunchError(
                f"A mesh is already running in {home} (pid {_holder(home) or 'unknown'}).",
                "Stop it with `make down`, or set a different BOXOFFICE_HOME, "
                "BOXOFFICE_GATEWAY_PORT and BOXOFFICE_PORT_BASE.",
            ) from None
        lock.seek(0)
        lock.truncate()
        lock.write(str(os.getpid()))
        lock.flush()
        yield


def pid_file(home: Path, name: str) -> Path:
    return home / "run" / f"{name}.pid"


def record(path: Path, pid: int, stop_signal: signal.Signals) -> None:
    """Writes a pid file with the process's start time and its stop signal."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with suppress(psutil.NoSuchProcess):
        started = psutil.Process(pid).create_time()
        path.write_text(json.dumps({"pid": pid, "started": started, "signal": int(stop_signal)}))


def stop_launcher(home: Path, seconds: float) -> bool:
    """Stops the launcher that holds `home`. Returns whether there was one.

    Kills it when it has not stopped its processes within `seconds`.
    """
    if _is_free(home):
        return False
    pid = _holder(home)
    if pid is None:
        raise LaunchError(f"{home / 'up.lock'} is locked, but contains no pid.")
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
    deadline = time.monotonic() + seconds
    while not _is_free(home):
        if time.monotonic() > deadline:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            deadline = float("inf")
        time.sleep(0.05)
    return True


def stop_all(home: Path, seconds: float) -> list[str]:
    """Stops processes that a killed launcher left running in `home`. Returns their names.

    The caller must hold `home`. Kills processes that do not stop within `seconds`.
    """
    stopped = {}
    for path in sorted((home / "run").glob("*.pid")):
        running = _running(path)
        if running is None:
            path.unlink(missing_ok=True)
            continue
        process, stop_signal = running
        with suppress(psutil.NoSuchProcess):
            process.send_signal(stop_signal)
        stopped[path] = process
    _, alive = psutil.wait_procs(list(stopped.values()), timeout=seconds)
    for process in alive:
        with suppress(ProcessLookupError):
            # Each process is the leader of its own process group.
            os.killpg(process.pid, signal.SIGKILL)
    psutil.wait_procs(alive, timeout=5)
    for path in stopped:
        path.unlink(missing_ok=True)
    return [path.stem for path in stopped]


def _running(path: Path) -> tuple[psutil.Process, int] | None:
    try:
        record = json.loads(path.read_text())
        process = psutil.Process(record["pid"])
        difference = abs(process.create_time() - record["started"])
    except (OSError, ValueError, KeyError, TypeError, psutil.NoSuchProcess):
        return None
    if difference > _START_TIME_TOLERANCE_SECONDS or process.status() == psutil.STATUS_ZOMBIE:
        return None
    return process, record["signal"]


def _is_free(home: Path) -> bool:
    try:
        with (home / "up.lock").open("r+") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except FileNotFoundError:
        return True
    except BlockingIOError:
        return False


def _holder(home: Path) -> int | None:
    with suppress(OSError, ValueError):
        return int((home / "up.lock").read_text())
    return None
