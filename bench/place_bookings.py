"""Throughput of PlaceBooking through the whole mesh: `python -m bench.place_bookings`.

    python -m bench.place_bookings --callers 64 --seconds 10 --rounds 3
    python -m bench.place_bookings --against ../before

Callers, each a different customer, wait for each answer and book places of one offer over REST.
Rounds of the kinds alternate, so that load of the machine affects all:

- read: GetEvent, for the cost of a call without a sale;
- hold: PlaceBooking without checkout, a stored booking that is HELD;
- free: PlaceBooking with checkout of total 0, CONFIRMED in the same call;
- pay: PlaceBooking with checkout in the sandbox, PENDING_PAYMENT with a payment page.

It prints calls per second, p50 and p99, the number of calls refused with 429, and CPU time per call
by process, each as the median of the rounds. --against measures another checkout in between, which
needs `make protos` first, and prints the ratio. At the end the stock audit of each event must
report no difference, and the places held and sold must match the answers.
"""

import argparse
import asyncio
import json
import statistics
import sys
import time
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
from rich.console import Console
from rich.table import Table

from mesh.ids import new_id
from testing.running_mesh import ADMIN_SECRET, Api, RunningMesh, running_mesh

_KINDS = ("read", "hold", "free", "pay")
_CAPACITY = 10_000_000
_LIMIT = 1_000_000
_WARM_UP_SECONDS = 2.0
# The retry delay of an overloaded service.
_RETRY_SECONDS = 1.0


@dataclass
class Side:
    """One mesh under test, and its measurements by kind of call."""

    name: str
    mesh: RunningMesh
    tokens: list[str]
    admin: Api
    events: dict[str, Any]
    rates: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    seconds: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    cpu_seconds: defaultdict[str, list[dict[str, float]]] = field(
        default_factory=lambda: defaultdict(list)
    )
    placed: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)

    @classmethod
    def prepare(cls, name: str, mesh: RunningMesh, callers: int) -> "Side":
        with httpx.Client(base_url=mesh.url, timeout=20) as client:
            api = Api(client)
            admin = api.sign_up(admin_secret=ADMIN_SECRET)
            events = {}
            for kind in _KINDS:
                price = "0" if kind == "free" else "150000"
                offer = {
                    "name": "Floor",
                    "price": {"currencyCode": "INR", "amountMinor": price},
                    "capacity": _CAPACITY,
                    "perCustomerLimit": _LIMIT,
                }
                events[kind] = admin.create_event(offers=[offer])
            tokens = [str(api.sign_up().token) for _ in range(callers)]
        return cls(name, mesh, tokens, admin, events)

    def request(self, kind: str, token: str) -> bytes:
        """The next request of a caller, in bytes."""
        event = self.events[kind]
        if kind == "read":
            return _http("GET", f"/api/v1/events/{event['eventId']}", token, b"")
        body: dict[str, Any] = {
            "eventId": event["eventId"],
            "items": [{"offerId": event["offers"][0]["offerId"], "quantity": 1}],
        }
        if kind != "hold":
            body["checkout"] = {"provider": "sandbox"}
        return _http("POST", "/api/v1/bookings", token, json.dumps(body).encode())

    def cpu_seconds_used(self) -> dict[str, float]:
        """Seconds of CPU time of each process of the mesh since its start."""
        used: defaultdict[str, float] = defaultdict(float)
        for file in (self.mesh.home / "run").glob("*.pid"):
            process = psutil.Process(json.loads(file.read_text())["pid"])
            for member in (process, *process.children(recursive=True)):
                times = member.cpu_times()
                # Includes children that have ended.
                used[file.stem] += sum(times[:4])
        return used


def _http(verb: str, path: str, token: str, body: bytes) -> bytes:
    lines = [
        f"{verb} {path} HTTP/1.1",
        "host: bench",
        f"authorization: Bearer {token}",
        f"idempotency-key: {new_id()}",
        "content-type: application/json",
        f"content-length: {len(body)}",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


class Caller:
    """A connection for sequential calls. Without an HTTP library, which would be the bottleneck."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def connect(cls, url: str) -> "Caller":
        address = httpx.URL(url)
        return cls(*await asyncio.open_connection(address.host, address.port))

    async def call(self, request: bytes) -> tuple[int, bytes]:
        """The answer's status and body."""
        self._writer.write(request)
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        return int(head[9:12]), await self._reader.readexactly(length)

    def close(self) -> None:
        self._writer.close()


async def _round(side: Side, kind: str, seconds: float) -> None:
    callers = [await Caller.connect(side.mesh.url) for _ in side.tokens]
    durations: list[float] = []
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds

    async def send_calls(caller: Caller, token: str) -> None:
        while loop.time() < end:
            request = side.request(kind, token)
            start = time.perf_counter()
            status, body = await caller.call(request)
            if status == httpx.codes.TOO_MANY_REQUESTS:
                side.refused[kind] += 1
                await asyncio.sleep(_RETRY_SECONDS)
                continue
            durations.append(time.perf_counter() - start)
            if status not in (200, 201):
                raise SystemExit(f"{side.name}, {kind}: {status} {body.decode()}")
            side.placed[kind] += 1

    before, start = side.cpu_seconds_used(), time.perf_counter()
    async with asyncio.TaskGroup() as group:
        for caller, token in zip(callers, side.tokens, strict=True):
            group.create_task(send_calls(caller, token))
    elapsed, after = time.perf_counter() - start, side.cpu_seconds_used()
    for caller in callers:
        caller.close()
    side.rates[kind].append(len(durations) / elapsed)
    side.seconds[kind] += durations
    side.cpu_seconds[kind].append(
        {name: (used - before.get(name, 0)) / len(durations) for name, used in after.items()}
    )


def audit(side: Side) -> None:
    """Raises SystemExit if the stock audit reports differences or places do not match the answers.

    Places of refused calls may still be held, until their hold expires.
    """
    with httpx.Client(base_url=side.mesh.url, timeout=60) as client:
        admin = Api(client, side.admin.token)
        for kind in _KINDS[1:]:
            event_id = side.events[kind]["eventId"]
            stock = admin.get(f"/api/v1/events/{event_id}/stock/audit").json()
            event = admin.get(f"/api/v1/events/{event_id}/availability").json()
            taken = _CAPACITY - event["offers"][0]["available"]
            maximum = side.placed[kind] + side.refused[kind]
            if stock["differences"] or not side.placed[kind] <= taken <= maximum:
                raise SystemExit(
                    f"{side.name}, {kind}: {side.placed[kind]} answered, {taken} taken, {stock}"
                )


async def measure(sides: Sequence[Side], kinds: Sequence[str], rounds: int, seconds: float) -> None:
    for side in sides:
        for kind in kinds:
            await _round(side, kind, _WARM_UP_SECONDS)
        for measured in (side.rates, side.seconds, side.cpu_seconds):
            measured.clear()
    for number in range(rounds):
        for kind in kinds:
            # The order of the sides alternates.
            for side in sides if number % 2 else reversed(sides):
                await _round(side, kind, seconds)


def _show(sides: Sequence[Side], kinds: Sequence[str]) -> None:
    console = Console(width=150)
    table = Table(title="Medians of the rounds")
    for column in (
        "",
        "",
        "calls/s",
        "p50 ms",
        "p99 ms",
        "refused",
        "× read",
        "× other",
        "CPU ms per call",
    ):
        table.add_column(column, justify="left" if column in ("", "CPU ms per call") else "right")
    for kind in kinds:
        for side in sides:
            rate = statistics.median(side.rates[kind])
            cuts = statistics.quantiles(side.seconds[kind], n=100)
            other = sides[-1] if side is not sides[-1] else None
            table.add_row(
                kind,
                side.name,
                f"{rate:,.0f}",
                *(f"{1000 * cuts[percent - 1]:.1f}" for percent in (50, 99)),
                str(side.refused[kind]),
                f"{rate / statistics.median(side.rates['read']):.2f}" if "read" in kinds else "",
                "" if other is None else f"{_ratio(side, other, kind):.2f}",
                _cpu_milliseconds(side.cpu_seconds[kind]),
            )
    console.print(table)


def _ratio(side: Side, other: Side, kind: str) -> float:
    """The median of the ratios of paired rounds."""
    return statistics.median(
        a / b for a, b in zip(side.rates[kind], other.rates[kind], strict=True)
    )


def _cpu_milliseconds(rounds: Sequence[dict[str, float]]) -> str:
    names = sorted({name for seconds in rounds for name in seconds})
    medians = {
        name: 1000 * statistics.median(seconds.get(name, 0) for seconds in rounds) for name in names
    }
    shown = [f"{name} {value:.2f}" for name, value in medians.items() if value >= 0.01]
    return f"{sum(medians.values()):.2f} = " + ", ".join(shown)


def sides_of(against: Path | None, callers: int, stack: ExitStack) -> Iterator[Side]:
    """This checkout, and the other one if given, each with a mesh that the stack stops."""
    settings = {"BOXOFFICE_RATE_LIMIT_SCALE": "100000"}
    mesh = stack.enter_context(running_mesh(**settings))
    yield Side.prepare("here", mesh, callers)
    if against is not None:
        other = stack.enter_context(running_mesh(against.resolve(), **settings))
        yield Side.prepare(against.name, other, callers)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--callers", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=10.0, help="of each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--kinds", nargs="+", choices=_KINDS, default=_KINDS)
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="another checkout")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        sides = list(sides_of(arguments.against, arguments.callers, stack))
        asyncio.run(measure(sides, arguments.kinds, arguments.rounds, arguments.seconds))
        _show(sides, arguments.kinds)
        for side in sides:
            audit(side)
    print("The stock ledgers match the answers.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
