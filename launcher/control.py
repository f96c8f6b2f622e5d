"""The control socket of a running launcher, for `make restart`: a Unix socket for its owner only.

A connection carries one request, a line of JSON. The response is lines of JSON; the last one has
"error", which is empty on success.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from pathlib import Path

from launcher import sockets
from launcher.errors import LaunchError

Say = Callable[[str], None]
Restart = Callable[[Sequence[str], Say], Awaitable[None]]
"""Restarts the processes of the given names, or all; raises LaunchError."""

_SOCKET = "control.sock"


@asynccontextmanager
async def serving(home: Path, restart: Restart) -> AsyncIterator[None]:
    """Serves requests during the block, one restart at a time."""
    lock = asyncio.Lock()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        def say(text: str) -> None:
            _write(writer, {"step": text})

        error = ""
        try:
            names = json.loads(await reader.readline())["restart"]
            async with lock:
                await restart(names, say)
        except (LaunchError, ValueError, KeyError) as problem:
            error = str(problem) or "invalid request"
        # The client may have disconnected during the restart.
        with suppress(OSError):
            _write(writer, {"error": error})
            await writer.drain()
            writer.close()

    path = sockets.create(home) / _SOCKET
    path.unlink(missing_ok=True)
    server = await asyncio.start_unix_server(answer, path)
    path.chmod(0o600)
    try:
        yield
    finally:
        server.close()
        path.unlink(missing_ok=True)


async def restart(home: Path, names: Sequence[str], say: Say) -> None:
    """Requests a restart from the launcher of `home` and waits until it is done.

    Raises LaunchError when no launcher runs or the restart fails.
    """
    try:
        reader, writer = await asyncio.open_unix_connection(sockets.folder(home) / _SOCKET)
    except OSError:
        raise LaunchError(f"No mesh is running in {home}.", "Start one with `make up`.") from None
    try:
        _write(writer, {"restart": list(names)})
        while line := await reader.readline():
            message = json.loads(line)
            if "step" in message:
                say(message["step"])
            elif message["error"]:
                raise LaunchError(message["error"])
            else:
                return
    finally:
        writer.close()
    raise LaunchError("The launcher stopped before the restart was done.")


def _write(writer: asyncio.StreamWriter, message: dict[str, object]) -> None:
    writer.write(json.dumps(message).encode() + b"\n")
