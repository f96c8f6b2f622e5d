"""No call fails while every process of a mesh with two replicas each is restarted."""

import asyncio
import itertools
import os
import re
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import httpx
import pytest

from mesh.ids import new_id
from mesh.paths import ROOT
from testing.running_mesh import ADMIN_SECRET, Api, RunningMesh, items, reason, running_mesh

_CUSTOMERS = 8
# Per customer; together about 30 calls per second, which leaves CPU time for starting processes.
_PAUSE_SECONDS = 0.25
_PATIENCE_SECONDS = 60
_RESTARTS = re.compile(r"(\S+): stopped after (\S+) s, healthy after (\S+) s")


@pytest.fixture(scope="module")
def pair() -> Iterator[RunningMesh]:
    with running_mesh(BOXOFFICE_REPLICAS="2", BOXOFFICE_GATEWAYS="2") as running:
        yield running


def gateways(mesh: RunningMesh) -> list[str]:
    first = httpx.URL(mesh.url)
    return [str(first), str(first.copy_with(port=(first.port or 0) + 1))]


@dataclass
class Load:
    """The customers' calls: successes by kind, and failures."""

    successes: Counter[str] = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)


class Customer:
    """Books and cancels, each call through the next gateway. Only refused calls are repeated."""

    def __init__(self, clients: list[httpx.AsyncClient], api: Api, event: Any, load: Load) -> None:
        self._clients = itertools.cycle(clients)
        self._headers = {"authorization": f"Bearer {api.token}"}
        self._event = event
        self._load = load

    async def book(self) -> None:
        while True:
            placed = await self._call("place", "POST", "/api/v1/bookings", items(self._event))
            if placed is not None:
                path = f"/api/v1/bookings/{placed['bookingId']}"
                await self._call("read", "GET", path, None)
                await self._call("cancel", "POST", f"{path}/cancel", {"reason": "changed plans"})
            await asyncio.sleep(_PAUSE_SECONDS)

    async def _call(self, kind: str, verb: str, path: str, body: Any) -> Any:
        headers = {**self._headers, "idempotency-key": str(new_id())}
        client = next(self._clients)
        start = time.monotonic()
        try:
            answer = await client.request(verb, path, json=body, headers=headers)
        except httpx.ConnectError:
            # The gateway refuses connections: balancers and clients use the other one.
            client = next(self._clients)
            try:
                answer = await client.request(verb, path, json=body, headers=headers)
            except httpx.TransportError as error:
                self._load.failures.append(f"{kind}: neither gateway: {error!r}")
                return None
        except httpx.TransportError as error:
            self._load.failures.append(
                f"{kind}: {error!r} after {time.monotonic() - start:.2f} s at {client.base_url}"
            )
            return None
        while answer.status_code == 429 and time.monotonic() < start + _PATIENCE_SECONDS:
            # On a busy machine the starting processes leave little CPU time to those that serve:
            # these refuse calls, which change nothing. Clients repeat them with the same key.
            assert reason(answer) == "OVERLOADED", answer.text
            await asyncio.sleep(float(answer.headers["retry-after"]))
            answer = await next(self._clients).request(verb, path, json=body, headers=headers)
        if answer.status_code not in (200, 201):
            self._load.failures.append(f"{kind}: {answer.status_code} {answer.text}")
            return None
        self._load.successes[kind] += 1
        return answer.json()


async def restart(mesh: RunningMesh, *names: str) -> dict[str, tuple[float, float]]:
    """Runs `make restart`. Returns the seconds until each process was stopped and started."""
    command = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "launcher",
        "restart",
        *names,
        cwd=ROOT,
        env={**os.environ, **mesh.variables},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await command.communicate()
    text = output.decode()
    assert command.returncode == 0, text
    return {name: (float(gone), float(back)) for name, gone, back in _RESTARTS.findall(text)}


def errors_in_logs(mesh: RunningMesh) -> list[str]:
    return [
        line
        for log in (mesh.home / "logs").glob("*_svc*.log")
        for line in log.read_text(errors="replace").splitlines()
        if '"level":"ERROR"' in line
    ]


def audit(admin: Api, event: dict[str, Any]) -> None:
    stock = admin.get(f"/api/v1/events/{event['eventId']}/stock/audit").json()
    assert stock["differences"] == [], stock


@pytest.mark.timeout(1800)
async def test_no_call_fails_while_everything_is_restarted(
    pair: RunningMesh, is_long: bool
) -> None:
    load = Load()
    with httpx.Client(base_url=pair.url, timeout=60) as client:
        api = Api(client)
        admin = api.sign_up(admin_secret=ADMIN_SECRET)
        offer = {
            "name": "Floor",
            "price": {"currencyCode": "INR", "amountMinor": "150000"},
            "capacity": 100_000,
        }
        event = admin.create_event(offers=[offer])
        customers = [api.sign_up() for _ in range(_CUSTOMERS)]
    clients = [httpx.AsyncClient(base_url=url, timeout=60) for url in gateways(pair)]
    async with clients[0], clients[1]:
        tasks = [
            asyncio.create_task(Customer(clients, customer, event, load).book())
            for customer in customers
        ]
        rounds: list[dict[str, tuple[float, float]]] = []
        for _ in range(5 if is_long else 1):
            # The short version restarts one process of each kind that the customers' calls reach.
            names = () if is_long else ("auth_svc-1", "stock_svc-1", "booking_svc-1", "gateway-1")
            rounds.append(await restart(pair, *names))
        for task in tasks:
            task.cancel()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*tasks)
    print(f"\nsuccessful calls: {dict(load.successes)}")
    for durations in rounds:
        print(durations)
    assert load.failures == []
    # Streams and calls that end because a process restarts are not reported as errors.
    assert errors_in_logs(pair) == []
    assert load.successes["place"] > 5 * sum(map(len, rounds))
    with httpx.Client(base_url=pair.url, timeout=60) as client:
        admin = Api(client).sign_up(admin_secret=ADMIN_SECRET)
        audit(admin, event)
