"""How another command talks to the launcher that runs a mesh: a unix socket in a folder of its own.

One request a connection, a line of JSON; the answer is lines of JSON, the last of which
has "error", empty when all went well. Only the owner of the folder reaches it.
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
    """Takes requests as long as the block lasts; one restart at a time."""
    one_at_a_time = asyncio.Lock()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        def say(text: str) -> None:
            _write(writer, {"step": text})

        error = ""
        try:
            names = json.loads(await reader.readline())["restart"]
            async with one_at_a_time:
                await restart(names, say)
        except (LaunchError, ValueError, KeyError) as problem:
            error = str(problem) or "not a request"
        # Who asked may have gone; the restart went on without them.
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
    """Asks the launcher of `home` for a restart and waits for its end.

    Raises LaunchError when there is none, or when it does not succeed.
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
    raise LaunchError("The launcher ended before the restart did.")


def _write(writer: asyncio.StreamWriter, message: dict[str, object]) -> None:
    writer.write(json.dumps(message).encode() + b"\n")
