"""A waiting room over the real gateway, for `python -m bench.waiting_room --gateway` and `--goodput`.

Starts a mesh. The clients run in this process, on the same machine: their share of the processor is
not in the figures of the mesh, but takes from what the mesh can use.
"""

import asyncio
import heapq
import json
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from rich.console import Console
from rich.table import Table

from bench.load import Connection, Request
from bench.processes import cpu_seconds, mesh_pids, rss_mib
from bench.results import percentile
from bench.world import World, a_world
from mesh.ids import new_id

_CONNECTIONS = 64
_ANSWER_SECONDS = 30.0
_PROCESSES = ("gateway", "booking_svc", "stock_svc", "postgres")
_MOST_SECONDS = 900.0
_AWAY = (429, 503, 504)


@dataclass
class Phase:
    """What the calls of a phase took, and the mesh for them."""

    name: str
    seconds: float = 0.0
    durations: list[float] = field(default_factory=list)
    refused: Counter[int] = field(default_factory=Counter)
    cpu: dict[str, float] = field(default_factory=dict)
    grown_bytes: dict[str, float] = field(default_factory=dict)


class Clients:
    """Kept-alive connections to the gateway that calls take in turn."""

    def __init__(self, url: str, count: int) -> None:
        self._url = url
        self._count = count
        self._idle: asyncio.LifoQueue[Connection | None] = asyncio.LifoQueue()
        for _ in range(count):
            self._idle.put_nowait(None)

    async def send(self, request: Request, *, key: str = "") -> tuple[int, dict[str, Any], float]:
        """Status, content and duration, without the wait for a connection."""
        connection = await self._idle.get()
        try:
            if connection is None:
                connection = await Connection.open(self._url)
            began = time.perf_counter()
            async with asyncio.timeout(_ANSWER_SECONDS):
                status, body = await connection.send(request, key=key)
            return status, json.loads(body), time.perf_counter() - began
        except (OSError, TimeoutError, asyncio.IncompleteReadError):
            if connection is not None:
                connection.close()
            connection = None
            return 503, {}, _ANSWER_SECONDS
        finally:
            self._idle.put_nowait(connection)

    def close(self) -> None:
        while not self._idle.empty():
            if (connection := self._idle.get_nowait()) is not None:
                connection.close()


@contextmanager
def _measured(world: World, name: str, phases: list[Phase]) -> Iterator[Phase]:
    phase = Phase(name)
    pids = mesh_pids(world.mesh.home)
    cpu, memory, began = cpu_seconds(pids), rss_mib(pids), time.perf_counter()
    yield phase
    phase.seconds = time.perf_counter() - began
    after = cpu_seconds(pids)
    phase.cpu = {process: after[process] - cpu.get(process, 0) for process in after}
    phase.grown_bytes = {
        process: (mib - memory.get(process, 0)) * 2**20 for process, mib in rss_mib(pids).items()
    }
    phases.append(phase)


async def _all(count: int, work: Callable[[int], Awaitable[None]], *, concurrent: int) -> None:
    left = iter(range(count))

    async def take() -> None:
        for number in left:
            await work(number)

    await asyncio.gather(*(take() for _ in range(min(concurrent, count))))


async def _repeated(
    clients: Clients, phase: Phase, request: Request, expected: int
) -> dict[str, Any]:
    """The content of the expected answer; refusals of a busy mesh are repeated with the same key."""
    key = str(new_id())
    while True:
        status, content, seconds = await clients.send(request, key=key)
        if status == expected:
            phase.durations.append(seconds)
            return content
        phase.refused[status] += 1
        if status not in _AWAY:
            raise SystemExit(f"{request.verb} {request.path}: {status} {content}")
        await asyncio.sleep(1)


def _event_with_room(world: World, admission: dict[str, Any], capacity: int) -> dict[str, Any]:
    event = world.create_event(capacity=capacity)
    path = f"/api/v1/events/{event['eventId']}"
    _start_sale(world, event, datetime.now(UTC) + timedelta(hours=1))
    room = {"opensBeforeSaleSeconds": 7200, "admission": admission, "sessionSeconds": 3600}
    world.admin.send("PUT", f"{path}/waiting-room", room).raise_for_status()
    return event


def _start_sale(world: World, event: dict[str, Any], at: datetime) -> None:
    change = {"saleStartTime": at.isoformat()}
    world.admin.send("PATCH", f"/api/v1/events/{event['eventId']}", change).raise_for_status()


async def _join(
    clients: Clients, phase: Phase, event: dict[str, Any], tokens: Sequence[str]
) -> list[dict[str, Any]]:
    tickets: list[dict[str, Any]] = [{} for _ in tokens]

    async def join(number: int) -> None:
        path = f"/api/v1/events/{event['eventId']}/queue"
        tickets[number] = await _repeated(
            clients, phase, Request("POST", path, tokens[number], "{}"), 201
        )

    await _all(len(tokens), join, concurrent=_CONNECTIONS)
    return tickets


async def _poll_for(
    clients: Clients, phase: Phase, tickets: Sequence[dict[str, Any]], seconds: float
) -> None:
    """Each visitor asks once in the first half of the time, then when its ticket says so."""
    now = time.perf_counter()
    end = now + seconds
    step = seconds / 2 / len(tickets)
    due = [(now + number * step, number) for number in range(len(tickets))]
    heapq.heapify(due)
    running: set[asyncio.Task[None]] = set()

    async def poll(number: int) -> None:
        request = Request("GET", f"/api/v1/queue/{tickets[number]['ticketId']}")
        ticket = await _repeated(clients, phase, request, 200)
        heapq.heappush(due, (time.perf_counter() + ticket["pollAfterSeconds"], number))

    while (now := time.perf_counter()) < end:
        while due and due[0][0] <= now:
            task = asyncio.create_task(poll(heapq.heappop(due)[1]))
            running.add(task)
            task.add_done_callback(running.discard)
        await asyncio.sleep(0.01)
    await asyncio.gather(*running)


async def _measure_visitors(world: World, visitors: int, seconds: float) -> list[Phase]:
    phases: list[Phase] = []
    clients = Clients(world.url, _CONNECTIONS)
    event = _event_with_room(world, {"perMinute": 180}, visitors)
    warm_up = Phase("warm-up")
    await _join(clients, warm_up, event, [""] * min(100, visitors))
    with _measured(world, "join", phases) as phase:
        tickets = await _join(clients, phase, event, [""] * visitors)
    with _measured(world, "poll before the draw", phases) as phase:
        await _poll_for(clients, phase, tickets, seconds)
    _start_sale(world, event, datetime.now(UTC))
    with _measured(world, "poll in line, 3 admitted a second", phases) as phase:
        await _poll_for(clients, phase, tickets, seconds)
    clients.close()
    return phases


async def _book(
    clients: Clients, phase: Phase, event: dict[str, Any], token: str, **fields: Any
) -> None:
    body = {
        "eventId": event["eventId"],
        "items": [{"offerId": event["offers"][0]["offerId"], "quantity": 1}],
        **fields,
    }
    await _repeated(
        clients, phase, Request("POST", "/api/v1/bookings", token, json.dumps(body)), 201
    )


async def _measure_goodput(world: World) -> list[Phase]:
    phases: list[Phase] = []
    tokens = world.tokens
    # All at once: a connection for each buyer.
    clients = Clients(world.url, len(tokens))
    open_sale = world.create_event(capacity=len(tokens))
    with _measured(world, "PlaceBooking, all at once", phases) as phase:

        async def buy(number: int, phase: Phase = phase) -> None:
            await _book(clients, phase, open_sale, tokens[number])

        await _all(len(tokens), buy, concurrent=len(tokens))
    event = _event_with_room(world, {"auto": True}, len(tokens))
    tickets = await _join(clients, Phase("join"), event, tokens)
    _start_sale(world, event, datetime.now(UTC))
    with _measured(world, "PlaceBooking, behind a room (AUTO)", phases) as phase:
        polls = Phase("poll")

        async def wait_and_buy(number: int, phase: Phase = phase) -> None:
            request = Request("GET", f"/api/v1/queue/{tickets[number]['ticketId']}", tokens[number])
            # They look at the page at the start, within two seconds.
            ticket: dict[str, Any] = {"pollAfterSeconds": number % 20 / 10}
            deadline = time.perf_counter() + _MOST_SECONDS
            while "admissionToken" not in ticket:
                if time.perf_counter() > deadline:
                    raise SystemExit("not all buyers were admitted")
                await asyncio.sleep(ticket["pollAfterSeconds"])
                ticket = await _repeated(clients, polls, request, 200)
            await _book(
                clients, phase, event, tokens[number], admissionToken=ticket["admissionToken"]
            )

        await _all(len(tokens), wait_and_buy, concurrent=len(tokens))
    clients.close()
    return phases


def _print(title: str, phases: Sequence[Phase], visitors: int) -> None:
    table = Table("", "calls", "a second", "p50 ms", "p99 ms", "refused", title=title)
    for process in _PROCESSES:
        table.add_column(f"{process}: CPU µs a call, bytes a visitor")
    for phase in phases:
        calls = len(phase.durations)
        p50, p99 = (1000 * percentile(phase.durations, percent) for percent in (50, 99))
        refused = " ".join(f"{count}×{status}" for status, count in sorted(phase.refused.items()))
        row = [phase.name, f"{calls}", f"{calls / phase.seconds:.0f}", f"{p50:.0f}", f"{p99:.0f}"]
        row.append(refused or "0")
        for process in _PROCESSES:
            cost = phase.cpu.get(process, 0.0) / max(1, calls) * 1e6
            grown = phase.grown_bytes.get(process, 0.0) / visitors
            row.append(f"{cost:.0f}, {grown:.0f}")
        table.add_row(*row)
    Console(width=200).print(table)


def measure_visitors(visitors: int, seconds: float) -> None:
    """Joins and polls of visitors without accounts, each at the time that its ticket says."""
    with a_world(1, seats=0, bookings=0) as world:
        phases = asyncio.run(_measure_visitors(world, visitors, seconds))
        _print(f"{visitors} visitors over the gateway", phases, visitors)


def measure_goodput(buyers: int) -> None:
    """The same buyers without a room, all at once, and then behind one."""
    with a_world(buyers, seats=0, bookings=0) as world:
        phases = asyncio.run(_measure_goodput(world))
        _print(f"{buyers} buyers, one place each", phases, buyers)
