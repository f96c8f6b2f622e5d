"""A proxy on one edge of the mesh. It passes bytes, mutual TLS included, and breaks them as told."""

import asyncio
import random
import socket
import struct
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chaos.faults.plan import Fault

Address = tuple[str, int] | Path
"""Host and port, or the path of a Unix socket."""

_CHUNK_BYTES = 64 * 1024
_LATENCY_SECONDS = (0.05, 0.5)
_THROTTLE_BYTES, _THROTTLE_SECONDS = 1_000, 0.05
_RESET_WITHIN_SECONDS = 0.5
_CUT_CHANCE = 0.3
# PostgreSQL's messages end strings with a zero byte.
_COMMIT = b"COMMIT\0"
# close() sends RST instead of FIN.
_LINGER = struct.pack("ii", 1, 0)


@dataclass(eq=False)
class _Connection:
    """A caller's connection and the proxy's own to the callee."""

    caller: asyncio.StreamWriter
    callee: asyncio.StreamWriter
    lost_bytes: bool = False
    cut_at_answer: bool = False
    tasks: set[asyncio.Task[None]] = field(default_factory=set)

    def abort(self) -> None:
        for writer in (self.caller, self.callee):
            connection = writer.get_extra_info("socket")
            if connection is not None and connection.family != socket.AF_UNIX:
                with suppress(OSError):
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _LINGER)
            writer.transport.abort()


class Proxy:
    """An edge `caller>callee`. `commits_cut` counts COMMITs by what happened: `before` they reached
    the server, or `after`, when their answer was lost.
    """

    def __init__(
        self, name: str, *, listen: Address, target: Address, random_: random.Random
    ) -> None:
        self.name = name
        self.fault: Fault | None = None
        self.opened = 0
        self.commits_cut = {"before": 0, "after": 0}
        self._listen = listen
        self._target = target
        self._random = random_
        self._connections: set[_Connection] = set()
        self._handlers: set[asyncio.Task[None]] = set()
        self._healed = asyncio.Event()
        self._healed.set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Accepts connections during the block."""
        server = await _serve(self._accept, self._listen)
        try:
            yield
        finally:
            self.heal()
            server.close()
            for connection in list(self._connections):
                connection.abort()
            if self._handlers:
                await asyncio.wait(self._handlers)
            await server.wait_closed()

    def inject(self, fault: Fault) -> None:
        """Breaks the edge until `heal`."""
        self.fault = fault
        self._healed.clear()
        if fault is Fault.RESET:
            for connection in list(self._connections):
                self._abort_soon(connection)

    def heal(self) -> None:
        """Passes everything again. Connections that lost bytes are reset."""
        self.fault = None
        self._healed.set()
        for connection in list(self._connections):
            if connection.lost_bytes:
                connection.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handler = asyncio.create_task(self._relay(reader, writer))
        self._handlers.add(handler)
        handler.add_done_callback(self._handlers.discard)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            from_callee, to_callee = await _connect(self._target)
        except OSError:
            # Nothing listens: the caller sees its connection closed.
            writer.transport.abort()
            return
        self.opened += 1
        connection = _Connection(writer, to_callee)
        self._connections.add(connection)
        if self.fault is Fault.RESET:
            self._abort_soon(connection)
        pumps = (
            self._pump(connection, reader, to_callee, is_request=True),
            self._pump(connection, from_callee, writer, is_request=False),
        )
        connection.tasks |= {asyncio.create_task(pump) for pump in pumps}
        try:
            await asyncio.wait(connection.tasks, return_when=asyncio.FIRST_EXCEPTION)
        finally:
            self._connections.discard(connection)
            for task in connection.tasks:
                task.cancel()
            # Retrieves the errors of connections that were reset.
            await asyncio.gather(*connection.tasks, return_exceptions=True)
            for end in (writer, to_callee):
                end.close()
                with suppress(OSError):
                    await end.wait_closed()

    async def _pump(
        self,
        connection: _Connection,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        *,
        is_request: bool,
    ) -> None:
        while chunk := await reader.read(_CHUNK_BYTES):
            await self._pass(connection, chunk, writer, is_request=is_request)
        if self.fault in {Fault.STALL, Fault.DROP_REQUESTS, Fault.DROP_REPLIES}:
            # The end of a connection does not pass either.
            await self._healed.wait()
        if writer.can_write_eof():
            writer.write_eof()

    async def _pass(
        self,
        connection: _Connection,
        chunk: bytes,
        writer: asyncio.StreamWriter,
        *,
        is_request: bool,
    ) -> None:
        if connection.cut_at_answer and not is_request:
            self.commits_cut["after"] += 1
            connection.abort()
            return
        size, pause = len(chunk), 0.0
        match self.fault:
            case Fault.STALL:
                await self._healed.wait()
            case Fault.DROP_REQUESTS | Fault.DROP_REPLIES:
                if (self.fault is Fault.DROP_REQUESTS) is is_request:
                    connection.lost_bytes = True
                    return
            case Fault.LATENCY:
                await asyncio.sleep(self._random.uniform(*_LATENCY_SECONDS))
            case Fault.THROTTLE:
                size, pause = _THROTTLE_BYTES, _THROTTLE_SECONDS
            case Fault.SLICES:
                size = 1
            case Fault.CUT_COMMIT:
                if is_request and _COMMIT in chunk and self._random.random() < _CUT_CHANCE:
                    if self._random.random() < 0.5:
                        self.commits_cut["before"] += 1
                        connection.abort()
                        return
                    connection.cut_at_answer = True
        for start in range(0, len(chunk), size):
            writer.write(chunk[start : start + size])
            await writer.drain()
            if size < len(chunk):
                # A pause of 0 lets the loop send the slice by itself.
                await asyncio.sleep(pause)

    def _abort_soon(self, connection: _Connection) -> None:
        delay = self._random.uniform(0, _RESET_WITHIN_SECONDS)
        asyncio.get_running_loop().call_later(delay, connection.abort)


_Accept = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Coroutine[Any, Any, None]]


async def _serve(accept: _Accept, address: Address) -> asyncio.Server:
    if isinstance(address, Path):
        return await asyncio.start_unix_server(accept, address)
    return await asyncio.start_server(accept, *address)


async def _connect(address: Address) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if isinstance(address, Path):
        return await asyncio.open_unix_connection(address)
    return await asyncio.open_connection(*address)
