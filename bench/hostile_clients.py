"""The effect of hostile clients on others: the real gateway before services that answer at once.

    python -m bench.hostile_clients --seconds 10 --rounds 3

A well-behaved client sends 100 calls per second to the gateway, from another address than the
attackers. Three kinds of rounds alternate: no attack; the attack on a second, otherwise unused
gateway; the attack on the measured gateway. The first two differ by the CPU time that attackers
and attacked gateway take on this machine, which production does not share. The last two differ by
the effect of the attack on other clients of the same gateway. Both ratios of the p99 are printed.
The exit status is 1 when the second ratio exceeds 2, a call failed, or the gateway's memory
exceeded its bound.
"""

import argparse
import asyncio
import multiprocessing
import os
import random
import statistics
import struct
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx
import psutil

from testing import gateway_harness

PER_SECOND = 100
MAX_MIB = 128
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
    """A header that is sent byte by byte."""
    _, writer = await _open(port)
    writer.write(_HEAD + b"X-Slow: ")
    while True:
        writer.write(b"a")
        await writer.drain()
        await asyncio.sleep(0.5)


async def slow_body(port: int) -> None:
    """A body that is sent byte by byte."""
    _, writer = await _open(port)
    writer.write(_HEAD + b"Content-Length: 60000\r\n\r\n{")
    while True:
        writer.write(b" ")
        await writer.drain()
        await asyncio.sleep(0.5)


async def oversized(port: int) -> None:
    """A body without a length and without an end, at 640 KiB per second."""
    _, writer = await _open(port)
    writer.write(_HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    while True:
        writer.write(chunk)
        await writer.drain()
        await asyncio.sleep(0.1)


async def stream_flood(port: int) -> None:
    """HTTP/2 streams that are opened and reset at once, 500 per second."""
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
        await asyncio.sleep(0.1)


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
    """Runs the connections of an attack, reopening those that the gateway closes. Never returns."""
    connect, connections = ATTACKS[name]
    # Attackers have machines of their own in production: here they get idle CPU time only.
    os.nice(19)

    async def reconnect() -> None:
        while True:
            with suppress(OSError):
                await connect(port)
            await asyncio.sleep(0.1)

    async def run_connections() -> None:
        await asyncio.gather(*(reconnect() for _ in range(connections)))

    asyncio.run(run_connections())


async def measure(url: str, seconds: float) -> tuple[list[float], int]:
    """Durations of calls in ms, from when each was due, and the number of failures."""
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


@dataclass(frozen=True)
class Round:
    """The durations of the well-behaved client in ms, and the costs of its gateway."""

    p50: float
    p99: float
    failed: int
    cpu_percent: float
    mib: float


QUIET, ELSEWHERE, HERE = "no attack", "elsewhere", "here"


class Bench:
    """The measured gateway, and another one that is attacked for comparison."""

    def __init__(self, folders: Path, stack: ExitStack) -> None:
        self._gateways = {}
        for kind in (HERE, ELSEWHERE):
            folder = folders / kind
            folder.mkdir()
            # As many workers as with `make up`.
            workers = os.cpu_count() or 1
            gateway = gateway_harness.running_gateway(folder, rate_limit_scale=1, workers=workers)
            self._gateways[kind] = stack.enter_context(gateway).settings
        [self._envoy] = [
            child
            for child in psutil.Process().children()
            if any(str(folders / HERE) in part for part in child.cmdline())
        ]

    def run(self, name: str, kind: str, seconds: float) -> Round:
        settings = self._gateways[HERE]
        attacker = None
        if kind != QUIET:
            port = self._gateways[kind].gateway_port
            context = multiprocessing.get_context("spawn")
            attacker = context.Process(target=attack, args=(name, port))
            attacker.start()
            time.sleep(2)
        try:
            before = self._cpu_seconds()
            times, failed = asyncio.run(measure(settings.gateway_url, seconds))
            cpu = (self._cpu_seconds() - before) / seconds
            admin = f"http://127.0.0.1:{settings.envoy_admin_port}"
            mib = int(httpx.get(f"{admin}/memory").json()["allocated"]) / 1024 / 1024
        finally:
            if attacker is not None:
                attacker.kill()
                attacker.join()
                time.sleep(1)
        cuts = statistics.quantiles(times, n=100)
        return Round(cuts[49], cuts[98], failed, cpu * 100, mib)

    def _cpu_seconds(self) -> float:
        spent = self._envoy.cpu_times()
        return float(spent.user + spent.system)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m bench.hostile_clients", description=__doc__)
    parser.add_argument("--seconds", type=float, default=10.0, help="length of a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", choices=ATTACKS, action="append", help="these attacks only")
    arguments = parser.parse_args()
    names = arguments.only or list(ATTACKS)
    results: dict[tuple[str, str], list[Round]] = {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        bench = Bench(Path(folder), stack)
        bench.run(names[0], QUIET, 2)
        for _ in range(arguments.rounds):
            for name in names:
                for kind in random.sample([QUIET, ELSEWHERE, HERE], 3):
                    results.setdefault((name, kind), []).append(
                        bench.run(name, kind, arguments.seconds)
                    )
    return _report(names, results)


def _report(names: list[str], results: dict[tuple[str, str], list[Round]]) -> int:
    print(
        f"{'attack':13} {'':10} {'p50 ms':>7} {'p99 ms':>7} {'to quiet':>9} {'to elsewhere':>13}"
        f" {'gateway CPU':>12} {'MiB':>6} {'failed':>7}"
    )
    failures = []
    for name in names:
        p99 = {kind: _median(results[name, kind], "p99") for kind in (QUIET, ELSEWHERE, HERE)}
        for kind, value in p99.items():
            rounds = results[name, kind]
            failed = sum(result.failed for result in rounds)
            mib = max(result.mib for result in rounds)
            print(
                f"{name:13} {kind:10} {_median(rounds, 'p50'):7.2f} {value:7.2f}"
                f" {value / p99[QUIET]:8.2f}× {value / p99[ELSEWHERE]:12.2f}×"
                f" {_median(rounds, 'cpu_percent'):11.1f}% {mib:6.1f} {failed:7}"
            )
            if failed or mib > MAX_MIB:
                failures.append(name)
        if p99[HERE] > 2 * p99[ELSEWHERE]:
            failures.append(name)
    if failures:
        print(f"Slower, failed or grew: {', '.join(dict.fromkeys(failures))}", file=sys.stderr)
    return 1 if failures else 0


def _median(rounds: list[Round], figure: str) -> float:
    median: float = statistics.median(getattr(result, figure) for result in rounds)
    return median


if __name__ == "__main__":
    sys.exit(main())
