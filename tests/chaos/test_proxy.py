"""A proxy passes bytes unchanged, and breaks an edge as told."""

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from chaos.faults.plan import Fault
from chaos.faults.proxy import Proxy

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Echo:
    """A server that returns what it gets, and remembers it."""

    def __init__(self) -> None:
        self.received = bytearray()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while chunk := await reader.read(65536):
                self.received += chunk
                writer.write(chunk)
                await writer.drain()
        except OSError:
            pass
        finally:
            writer.close()


@asynccontextmanager
async def an_edge(folder: Path) -> AsyncIterator[tuple[Proxy, Echo]]:
    echo = Echo()
    server = await asyncio.start_unix_server(echo.serve, folder / "echo")
    proxy = Proxy("a>b", listen=folder / "proxy", target=folder / "echo", random_=random.Random(1))
    async with proxy.running(), asyncio.timeout(60):
        yield proxy, echo
    server.close()


@asynccontextmanager
async def connected(folder: Path) -> AsyncIterator[Streams]:
    reader, writer = await asyncio.open_unix_connection(folder / "proxy")
    try:
        yield reader, writer
    finally:
        writer.close()


async def is_closed(reader: asyncio.StreamReader) -> bool:
    try:
        return await reader.read(1) == b""
    except ConnectionError:
        return True


@pytest.mark.parametrize("fault", [None, Fault.LATENCY, Fault.THROTTLE, Fault.SLICES])
async def test_bytes_arrive_unchanged(tmp_path: Path, fault: Fault | None) -> None:
    sent = random.Random(2).randbytes(3_000)
    async with an_edge(tmp_path) as (proxy, _), connected(tmp_path) as (reader, writer):
        if fault is not None:
            proxy.inject(fault)
        writer.write(sent)
        writer.write_eof()
        assert await reader.read(-1) == sent


async def test_a_stalled_edge_passes_everything_when_it_is_healed(tmp_path: Path) -> None:
    async with an_edge(tmp_path) as (proxy, echo), connected(tmp_path) as (reader, writer):
        proxy.inject(Fault.STALL)
        writer.write(b"later")
        while not proxy.opened:
            await asyncio.sleep(0)
        assert not echo.received
        proxy.heal()
        assert await reader.readexactly(5) == b"later"


async def test_lost_requests_do_not_reach_the_server(tmp_path: Path) -> None:
    async with an_edge(tmp_path) as (proxy, echo), connected(tmp_path) as (reader, writer):
        writer.write(b"a")
        assert await reader.readexactly(1) == b"a"
        proxy.inject(Fault.DROP_REQUESTS)
        writer.write(b"b")
        await writer.drain()
        while not any(connection.lost_bytes for connection in proxy._connections):
            await asyncio.sleep(0)
        proxy.heal()
        # Bytes are missing in the stream, so the connection ends.
        assert await is_closed(reader)
        assert echo.received == b"a"


async def test_lost_replies_come_from_a_server_that_has_worked(tmp_path: Path) -> None:
    async with an_edge(tmp_path) as (proxy, echo), connected(tmp_path) as (reader, writer):
        proxy.inject(Fault.DROP_REPLIES)
        writer.write(b"a")
        while not any(connection.lost_bytes for connection in proxy._connections):
            await asyncio.sleep(0)
        proxy.heal()
        assert await is_closed(reader)
        assert echo.received == b"a"


async def test_a_reset_edge_closes_old_and_new_connections(tmp_path: Path) -> None:
    async with an_edge(tmp_path) as (proxy, _), connected(tmp_path) as (old, writer):
        writer.write(b"a")
        assert await old.readexactly(1) == b"a"
        proxy.inject(Fault.RESET)
        assert await is_closed(old)
        async with connected(tmp_path) as (new, _):
            assert await is_closed(new)


async def test_commits_are_cut_before_and_after_they_arrive(tmp_path: Path) -> None:
    async with an_edge(tmp_path) as (proxy, echo):
        proxy.inject(Fault.CUT_COMMIT)
        commits = 0
        while not all(proxy.commits_cut.values()):
            async with connected(tmp_path) as (reader, writer):
                writer.write(b"Q\0\0\0\x0bCOMMIT\0")
                commits += 1
                await is_closed(reader)
        reached = echo.received.count(b"COMMIT")
        assert reached == commits - proxy.commits_cut["before"]


async def test_an_edge_to_nothing_closes_its_connections(tmp_path: Path) -> None:
    proxy = Proxy(
        "a>b", listen=tmp_path / "proxy", target=tmp_path / "none", random_=random.Random(1)
    )
    async with proxy.running(), asyncio.timeout(60), connected(tmp_path) as (reader, _):
        assert await is_closed(reader)
