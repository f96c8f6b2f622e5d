"""`make up`: runs a mesh in the foreground until Ctrl-C or SIGTERM."""

import asyncio
import signal
import sys
from contextlib import suppress

from launcher import status
from launcher.mesh import Mesh
from mesh.settings import MeshSettings


def run(settings: MeshSettings) -> int:
    """Runs the mesh and returns the exit code. Raises LaunchError when it does not start."""
    return asyncio.run(_run(settings))


async def _run(settings: MeshSettings) -> int:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(signum, stop.set)
    display = status.live() if sys.stdout.isatty() else status.plain()
    mesh = Mesh(settings, on_step=display.step, on_change=display.change)
    with display.showing(mesh):
        refreshing = asyncio.create_task(display.refresh())
        try:
            if await _start(mesh, stop):
                display.ready()
                await stop.wait()
            display.step("Stopping")
            await mesh.stop()
        finally:
            refreshing.cancel()
            with suppress(asyncio.CancelledError):
                await refreshing
    print("Stopped.")
    return 0


async def _start(mesh: Mesh, stop: asyncio.Event) -> bool:
    """Starts the mesh. Returns False when `stop` was set before it was started."""
    starting = asyncio.create_task(mesh.start())
    stopping = asyncio.create_task(stop.wait())
    await asyncio.wait({starting, stopping}, return_when=asyncio.FIRST_COMPLETED)
    stopping.cancel()
    if starting.done():
        starting.result()
        return True
    starting.cancel()
    with suppress(asyncio.CancelledError):
        await starting
    return False
