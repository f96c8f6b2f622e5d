"""A rolling restart: one process after the other, each back before the next one goes."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from launcher.control import Say
from launcher.errors import LaunchError
from launcher.supervisor import Process

_HEALTHY_SECONDS = 60.0


async def restart(
    processes: Sequence[Process], say: Say, *, when_back: Callable[[Process], Awaitable[None]]
) -> None:
    """Restarts them in the given order.

    `when_back` waits until those that call a process know that it is back. Raises
    LaunchError for one that had to be killed or does not come back; the rest stays as it is.
    """
    loop = asyncio.get_running_loop()
    for process in processes:
        began = loop.time()
        in_time = await process.stop()
        stopped = loop.time()
        process.start()
        await process.wait_healthy(_HEALTHY_SECONDS)
        await when_back(process)
        say(
            f"{process.name}: gone after {stopped - began:.1f} s, "
            f"back after {loop.time() - began:.1f} s"
        )
        if not in_time:
            raise LaunchError(
                f"{process.name} did not end within {process.program.grace_seconds:g} s "
                "and was killed."
            )
