"""Rolling restart: one process after the other, each healthy before the next one stops."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from launcher.control import Say
from launcher.errors import LaunchError
from launcher.supervisor import Process

_HEALTHY_SECONDS = 60.0


async def restart(
    processes: Sequence[Process], say: Say, *, when_healthy: Callable[[Process], Awaitable[None]]
) -> None:
    """Restarts processes in the given order.

    `when_healthy` waits until callers use the process again. Raises LaunchError for a process that
    had to be killed or does not become healthy; the remaining ones are not restarted.
    """
    loop = asyncio.get_running_loop()
    for process in processes:
        began = loop.time()
        in_time = await process.stop()
        stopped = loop.time()
        process.start()
        await process.wait_healthy(_HEALTHY_SECONDS)
        await when_healthy(process)
        say(
            f"{process.name}: stopped after {stopped - began:.1f} s, "
            f"healthy after {loop.time() - began:.1f} s"
        )
        if not in_time:
            raise LaunchError(
                f"{process.name} did not stop within {process.program.grace_seconds:g} s "
                "and was killed."
            )
