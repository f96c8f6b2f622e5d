"""Whether a process lives, and whether it should be sent calls. Two questions, two answers.

Alive: the event loop turns. The database has no part in it, because a restart heals no
database. Ready: it serves, does not stop, and reaches its database; one missed answer
changes nothing, so that a hiccup does not take every replica out at once.
"""

import asyncio
import time
from collections.abc import Callable

from mesh.observability import metrics

_BEAT_SECONDS = 0.5
# Longer than any pause that a busy machine causes; shorter than anyone waits for a restart.
_STUCK_SECONDS = 15.0

_DELAY = metrics.histogram("event_loop_delay_seconds", "How late the event loop runs a timer.")
_READY = metrics.gauge("ready", "1 when the process asks for calls.")


class Heart:
    """Beats as long as the event loop turns. `is_beating` may be asked from any thread."""

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._last = clock()

    async def beat(self) -> None:
        """Runs until cancelled."""
        while True:
            self._last = self._clock()
            await asyncio.sleep(_BEAT_SECONDS)
            _DELAY.observe(max(0.0, self._clock() - self._last - _BEAT_SECONDS))

    def is_beating(self) -> bool:
        return self._clock() - self._last < _STUCK_SECONDS


class Readiness:
    """Ready after the first good check; not after `misses` bad ones in a row, and again
    after `hits` good ones in a row. Never again once it stops."""

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

    def saw(self, *, good: bool) -> bool:
        """Takes a check's result. Returns whether the process is ready now."""
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
        self._stopping = True
        _READY.set(0)
