"""What hostile clients do to the others: the real gateway before services that answer at once.

    python -m bench.hostile_clients --seconds 10 --rounds 3

Rounds with and without each kind of attack alternate. A well-behaved client asks 100 times a
second from another address than the attackers'; its p50 and p99, and the gateway's memory, are
compared. An attack that moves the p99 by more than 2 × is named and makes the exit status 1.
"""

import argparse
import asyncio
import multiprocessing
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path

import httpx

from tests.gateway import harness

PER_SECOND = 100
ATTACKER = "127.0.0.2"
_HEAD = b"POST /api/v1/auth/login HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0\x04\0\0\0\0\0"
# :method GET, :scheme http, :path /, :authority a; from HPACK's static table.
_FIELDS = b"\x82\x86\x84\x41\x01a"
_HEADERS, _RESET = 1, 3

Attack = Callable[[int], Awaitable[None]]


async def _open(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    return await asyncio.open_connection("127.0.0.1", port, local_addr=(ATTACKER, 0))


async def slow_header(port: int) -> None:
    """A header that comes byte by byte."""
    _, writer = await _open(port)
    writer.write(_HEAD + b"X-Slow: ")
    while True:
        writer.write(b"a")
        await writer.drain()
        await asyncio.sleep(0.5)


async def slow_body(port: int) -> None:
    """A body that comes byte by byte."""
    _, writer = await _open(port)
    writer.write(_HEAD + b"Content-Length: 60000\r\n\r\n{")
    while True:
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.5)


async def oversized(port: int) -> None:
    """Bodies without a length that never end."""
    _, writer = await _open(port)
    writer.write(_HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    while True:
        writer.write(chunk)
        await writer.drain()
        await asyncio.sleep(0.01)


async def stream_flood(port: int) -> None:
    """HTTP/2 streams that are opened and reset at once."""
    _, writer = await _open(port)
    writer.write(_PREFACE)
    stream = 1
    while True:
        frames = b""
        for _ in range(50):
            frames += _frame(_HEADERS, 0x5, stream, _FIELDS)
            frames += _frame(_RESET, 0, stream, struct.pack(">I", 8))
            stream += 2
        writer.write(frames)
        await writer.drain()
        await asyncio.sleep(0.02)


def _frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    return (
        struct.pack(">I", len(payload))[1:]
        + bytes((kind, flags))
        + struct.pack(">I", stream)
        + payload
    )


ATTACKS: dict[str, tuple[Attack, int]] = {
    "slow header": (slow_header, 400),
    "slow body": (slow_body, 400),
    "oversized": (oversized, 20),
    "stream flood": (stream_flood, 10),
}


def attack(name: str, port: int) -> None:
    """So many connections of a kind, each opened anew when the gateway ends it; never returns."""
    one, connections = ATTACKS[name]

    async def again() -> None:
        while True:
            with suppress(OSError):
                await one(port)
            await asyncio.sleep(0.1)

    async def all_of_them() -> None:
        await asyncio.gather(*(again() for _ in range(connections)))

    asyncio.run(all_of_them())


async def measure(url: str, seconds: float) -> tuple[list[float], int]:
    """Times of calls in ms, from when each was due, and how many failed."""
    times: list[float] = []
    failed = 0

    async def call(client: httpx.AsyncClient, due: float) -> None:
        nonlocal failed
        try:
            answer = await client.get(f"{url}/health")
            failed += answer.status_code != httpx.codes.OK
        except httpx.HTTPError:
            failed += 1
        times.append((time.perf_counter() - due) * 1000)

    async with httpx.AsyncClient(timeout=10) as client, asyncio.TaskGroup() as group:
        started = time.perf_counter()
        for number in range(int(seconds * PER_SECOND)):
            due = started + number / PER_SECOND
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            group.create_task(call(client, due))
    return times, failed


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.hostile_clients", description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=ATTACKS, action="append", help="these attacks only")
    arguments = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        harness.running_gateway(Path(folder), rate_limit_scale=1) as gateway,
    ):
        port = gateway.settings.gateway_port
        found: dict[str, list[tuple[float, float, float, int]]] = {}
        asyncio.run(measure(gateway.settings.gateway_url, 2))
        for _ in range(arguments.rounds):
            for name in arguments.only or ATTACKS:
                for kind in (f"before {name}", name):
                    row = _round(gateway, kind, port, arguments.seconds)
                    found.setdefault(kind, []).append(row)
    return _report(found)


def _round(
    gateway: harness.Gateway, kind: str, port: int, seconds: float
) -> tuple[float, float, float, int]:
    attacker = None
    if kind in ATTACKS:
        attacker = multiprocessing.get_context("spawn").Process(target=attack, args=(kind, port))
        attacker.start()
        time.sleep(2)
    try:
        times, failed = asyncio.run(measure(gateway.settings.gateway_url, seconds))
        admin = f"http://127.0.0.1:{gateway.settings.envoy_admin_port}"
        heap = int(httpx.get(f"{admin}/memory").json()["allocated"]) / 1024 / 1024
    finally:
        if attacker is not None:
            attacker.kill()
            attacker.join()
            time.sleep(1)
    cuts = statistics.quantiles(times, n=100)
    return cuts[49], cuts[98], heap, failed


def _report(found: dict[str, list[tuple[float, float, float, int]]]) -> int:
    print(f"{'':14} {'p50 ms':>8} {'p99 ms':>8} {'p99 ratio':>10} {'MiB':>6} {'failed':>7}")
    bad = []
    for name in [name for name in ATTACKS if name in found]:
        quiet, hostile = found[f"before {name}"], found[name]
        for label, rows in (("without", quiet), (name, hostile)):
            p50, p99, heap = (statistics.median(row[n] for row in rows) for n in range(3))
            ratio = p99 / statistics.median(row[1] for row in quiet)
            failed = sum(row[3] for row in rows)
            print(f"{label:14} {p50:8.2f} {p99:8.2f} {ratio:10.2f} {heap:6.1f} {failed:7}")
        if ratio > 2 or failed:
            bad.append(name)
    if bad:
        print(f"More than 2 × or failed: {', '.join(bad)}", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
