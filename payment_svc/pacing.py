"""When background work is tried again, and how it hears that there is something to do."""

import asyncio
from contextlib import suppress
from datetime import timedelta

_MAX_BACKOFF_SECONDS = 300.0


def backoff(attempts: int, *, first_seconds: float = 1.0) -> timedelta:
    """Pause after so many tries: doubled each time, at most five minutes."""
    doublings = min(max(attempts, 1) - 1, 16)
    return timedelta(seconds=min(first_seconds * 2**doublings, _MAX_BACKOFF_SECONDS))


class Wakeup:
    """Tells a loop of this process that work was queued. The loop looks by itself, too."""

    def __init__(self) -> None:
        self._event = asyncio.Event()

    def ring(self) -> None:
        self._event.set()

    async def wait(self, seconds: float) -> None:
        """Returns when rung, also before this call, or after so many seconds."""
        with suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await self._event.wait()
        self._event.clear()
