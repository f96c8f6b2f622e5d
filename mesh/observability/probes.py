"""Liveness and readiness of a process.

Live: its event loop runs. The database does not count, because a restart would not repair it.
Ready: it serves, is not stopping, and reaches its database.
"""

import asyncio
import time
from collections.abc import Callable

from mesh.observability import metrics

_BEAT_SECONDS = 2.0
# Longer than any pause of the event loop on a busy machine.
_STUCK_SECONDS = 15.0

_DELAY = metrics.histogram("event_loop_delay_seconds", "Delay of timers in the event loop.")
_READY = metrics.gauge("ready", "1 when the process is ready for calls.")


class Heartbeat:
    """Records that the event loop runs. `is_beating` may be called from any thread."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last = clock()

    async def run(self) -> None:
        """Beats until cancelled."""
        while True:
            self._last = self._clock()
            await asyncio.sleep(_BEAT_SECONDS)
            _DELAY.observe(max(0.0, self._clock() - self._last - _BEAT_SECONDS))

    def is_beating(self) -> bool:
        return self._clock() - self._last < _STUCK_SECONDS


class Readiness:
    """Ready after the first good check. Not ready after `misses` consecutive bad checks, ready
    again after `hits` consecutive good ones, so that one failed ping changes nothing."""

    def __init__(self, *, misses: int = 3, hits: int = 2) -> None:
        self._misses = misses
        self._hits = hits
        self._was_ready = False
        self._is_ready = False
        self._stopping = False
        self._streak = 0
        _READY.set(0)

    @property
    def is_ready(self) -> bool:
        return self._is_ready and not self._stopping

    def record(self, *, good: bool) -> bool:
        """Records the result of a check. Returns whether the process is ready."""
        if good == self._is_ready:
            self._streak = 0
        else:
            self._streak += 1
            needed = self._misses if self._is_ready else self._hits if self._was_ready else 1
            if self._streak >= needed:
                self._is_ready, self._streak = good, 0
                self._was_ready = self._was_ready or good
        _READY.set(self.is_ready)
        return self.is_ready

    def stop(self) -> None:
        """Makes the process not ready for good."""
        self._stopping = True
        _READY.set(0)
