"""What hostile clients do to the others: the real gateway before services that answer at once.

    python -m bench.hostile_clients --seconds 10 --rounds 3

A well-behaved client asks the gateway 100 times a second, from another address than the
attackers'. Three kinds of rounds take turns: without an attack; with the same attack on a second
gateway that nobody uses; with the attack on this one. On a machine of few cores the first two
differ by what attackers and attacked burn of everybody's processor, which in life is not ours;
the last two differ by what the gateway lets an attack do to the others. Both ratios of the p99
are printed. The exit status is 1 when the second is more than 2, when a call failed, or when
the gateway's memory grew beyond bounds.
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
MOST_MIB = 128
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
    """Bodies without a length that never end, 640 KiB a second each."""
    _, writer = await _open(port)
    writer.write(_HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
    chunk = b"10000\r\n" + b" " * 65536 + b"\r\n"
    while True:
        writer.write(chunk)
        await writer.drain()
        await asyncio.sleep(0.1)


async def stream_flood(port: int) -> None:
    """HTTP/2 streams that are opened and reset at once, 500 a second each."""
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
    """So many connections of a kind, each opened anew when the gateway ends it; never returns."""
    one, connections = ATTACKS[name]
    # What it burns is nobody's here in life: it takes only what is left.
    os.nice(19)

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


@dataclass(frozen=True)
class Round:
    """What the others saw, in ms, and what it cost the gateway that served them."""

    p50: float
    p99: float
    failed: int
    cpu_percent: float
    mib: float


QUIET, ELSEWHERE, HERE = "no attack", "elsewhere", "here"


class Bench:
    """The gateway that is measured, and another that is attacked for comparison."""

    def __init__(self, folders: Path, stack: ExitStack) -> None:
        self._gateways = {}
        for kind in (HERE, ELSEWHERE):
            folder = folders / kind
            folder.mkdir()
            # As many workers as `make up` gives it.
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
    found: dict[tuple[str, str], list[Round]] = {}
    with tempfile.TemporaryDirectory() as folder, ExitStack() as stack:
        bench = Bench(Path(folder), stack)
        bench.run(names[0], QUIET, 2)
        for _ in range(arguments.rounds):
            for name in names:
                for kind in random.sample([QUIET, ELSEWHERE, HERE], 3):
                    found.setdefault((name, kind), []).append(
                        bench.run(name, kind, arguments.seconds)
                    )
    return _report(names, found)


def _report(names: list[str], found: dict[tuple[str, str], list[Round]]) -> int:
    print(
        f"{'attack':13} {'':10} {'p50 ms':>7} {'p99 ms':>7} {'to quiet':>9} {'to elsewhere':>13}"
        f" {'gateway CPU':>12} {'MiB':>6} {'failed':>7}"
    )
    bad = []
    for name in names:
        p99 = {kind: _median(found[name, kind], "p99") for kind in (QUIET, ELSEWHERE, HERE)}
        for kind, of_kind in p99.items():
            rounds = found[name, kind]
            failed, mib = sum(one.failed for one in rounds), max(one.mib for one in rounds)
            print(
                f"{name:13} {kind:10} {_median(rounds, 'p50'):7.2f} {of_kind:7.2f}"
                f" {of_kind / p99[QUIET]:8.2f}× {of_kind / p99[ELSEWHERE]:12.2f}×"
                f" {_median(rounds, 'cpu_percent'):11.1f}% {mib:6.1f} {failed:7}"
            )
            if failed or mib > MOST_MIB:
                bad.append(name)
        if p99[HERE] > 2 * p99[ELSEWHERE]:
            bad.append(name)
    if bad:
        print(f"Moved, failed or grew: {', '.join(dict.fromkeys(bad))}", file=sys.stderr)
    return 1 if bad else 0


def _median(rounds: list[Round], figure: str) -> float:
    median: float = statistics.median(getattr(one, figure) for one in rounds)
    return median


if __name__ == "__main__":
    sys.exit(main())
