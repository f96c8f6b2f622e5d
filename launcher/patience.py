"""How long to wait for a process that starts: not by the clock, but as long as it makes progress."""

import time
from collections.abc import Callable, Iterable
from contextlib import suppress

import psutil

_NANOSECONDS = 1e9


class Patience:
    """Runs out once processes were idle for `seconds` in total.

    `demand` returns the seconds for which they demand a CPU until now: `demand_seconds`. A slow or
    busy machine does not use up patience, a process that hangs does.
    """

    def __init__(
        self,
        seconds: float,
        demand: Callable[[], float],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._seconds = seconds
        self._demand = demand
        self._clock = clock
        self._idle = 0.0
        self._last = clock(), demand()

    @property
    def is_over(self) -> bool:
        """Counts the time since the last call."""
        now, demand = self._clock(), self._demand()
        last_time, last_demand = self._last
        # The sum is less than before when a process has ended.
        progress = max(demand - last_demand, 0.0)
        self._idle += max(now - last_time - progress, 0.0)
        self._last = now, demand
        return self._idle >= self._seconds


def demand_seconds(pids: Iterable[int | None]) -> float:
    """How long the threads of processes and their children have run or waited for a CPU."""
    total = 0.0
    for pid in pids:
        with suppress(psutil.Error):
            process = psutil.Process(pid) if pid is not None else None
            family = [] if process is None else [process, *process.children(recursive=True)]
            total += sum(map(_demand_of_threads, family))
    return total


def _demand_of_threads(process: psutil.Process) -> float:
    try:
        return sum(_demand_of_thread(process.pid, thread.id) for thread in process.threads())
    except (psutil.Error, OSError):
        return 0.0


def _demand_of_thread(pid: int, thread_id: int) -> float:
    # Documentation/scheduler/sched-stats.rst: nanoseconds on a CPU, and waiting for one.
    with open(f"/proc/{pid}/task/{thread_id}/schedstat") as file:
        ran, waited, _ = file.read().split()
    return (int(ran) + int(waited)) / _NANOSECONDS
