"""The cost of losing Redis: `python -m bench.redis_loss`.

Concurrent customers of one mesh read an event and place bookings with a total of 0, which are
CONFIRMED at once, while Redis is healthy, frozen, killed and emptied, in alternating rounds. Each
failure may add at most 100 ms to the p99 of the healthy rounds, and no call may fail.
"""

import argparse
import asyncio
import math
import os
import secrets
import signal
import sys
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console
from rich.table import Table

from chaos.faults import processes
from launcher import protos
from launcher.settings_listing import load
from mesh.ids import new_id
from mesh.settings import MeshSettings

MAX_ADDED_SECONDS = 0.1

_HEALTHY, _FROZEN, _KILLED, _FLUSHED = "healthy", "frozen", "killed", "flushed"
_READ, _BUY = "read an event", "buy"
_PASSWORD = "Curtain-Up-2026!"
_CAPACITY = 1_000_000


@dataclass
class Customers:
    """Customers who read and buy, one call after the other, until cancelled."""

    client: httpx.AsyncClient
    tokens: list[str]
    event: dict[str, Any]
    phase: str = ""
    seconds: dict[tuple[str, str], list[float]] = field(default_factory=lambda: defaultdict(list))
    failures: list[str] = field(default_factory=list)

    async def run_customer(self, token: str) -> None:
        headers = {"authorization": f"Bearer {token}"}
        while True:
            await self._timed(_READ, self.client.get(f"/api/v1/events/{self.event['eventId']}"))
            body = {
                "eventId": self.event["eventId"],
                "items": [{"offerId": self.event["offers"][0]["offerId"], "quantity": 1}],
                "checkout": {"provider": "sandbox"},
            }
            key = {"idempotency-key": str(new_id())}
            await self._timed(
                _BUY, self.client.post("/api/v1/bookings", json=body, headers=headers | key)
            )

    async def _timed(self, action: str, call: Awaitable[httpx.Response]) -> None:
        phase, start = self.phase, time.perf_counter()
        try:
            answer = await call
        except httpx.HTTPError as error:
            self.failures.append(f"{phase}: {action}: {type(error).__name__}")
            return
        # A call counts for the phase of its start, so that the moment of the loss is included.
        self.seconds[phase, action].append(time.perf_counter() - start)
        is_success = answer.status_code in (200, 201)
        if is_success and action == _BUY:
            is_success = answer.json()["status"] == "CONFIRMED"
        if not is_success:
            self.failures.append(f"{phase}: {action}: {answer.status_code} {answer.text[:200]}")


async def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--customers", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=4)
    parser.add_argument("--seconds", type=float, default=3.0, help="of each phase")
    arguments = parser.parse_args()
    protos.compile_contract()
    from launcher.mesh import Mesh

    settings = load(MeshSettings, environment="development", rate_limit_scale=100_000)
    secret = secrets.token_urlsafe(32)
    variables = {
        "BOXOFFICE_ADMIN_REGISTRATION_SECRET": secret,
        "BOXOFFICE_PASSWORD_COST": "4",
    }
    async with Mesh(settings, variables=variables) as mesh:
        limits = httpx.Limits(max_connections=arguments.customers * 2)
        async with httpx.AsyncClient(
            base_url=settings.gateway_url, timeout=20, limits=limits, trust_env=False
        ) as client:
            customers = await _create_customers(client, secret, arguments.customers)
            await _rounds(customers, Faults(mesh.home), arguments.rounds, arguments.seconds)
    return _show(customers)


async def _create_customers(client: httpx.AsyncClient, secret: str, customers: int) -> Customers:
    admin = await _sign_up(client, "/api/v1/auth/admin/register", adminSecret=secret)
    offer = {
        "name": "Floor",
        "price": {"currencyCode": "INR", "amountMinor": "0"},
        "capacity": _CAPACITY,
        "perCustomerLimit": _CAPACITY,
    }
    created = await client.post(
        "/api/v1/events",
        json={
            "name": "Monsoon Nights",
            "timeZone": "Asia/Kolkata",
            "startTime": "2099-07-04T14:00:00Z",
            "saleStartTime": "2020-01-01T00:00:00Z",
            "offers": [offer],
        },
        headers={"authorization": f"Bearer {admin}"},
    )
    created.raise_for_status()
    tokens = [await _sign_up(client, "/api/v1/auth/register") for _ in range(customers)]
    return Customers(client, tokens, created.json())


async def _sign_up(client: httpx.AsyncClient, path: str, **more: str) -> str:
    account = {"email": f"{new_id()}@example.com", "password": _PASSWORD, "fullName": "Mira Rao"}
    (await client.post(path, json={**account, **more})).raise_for_status()
    answer = await client.post(
        "/api/v1/auth/login", json={"email": account["email"], "password": _PASSWORD}
    )
    answer.raise_for_status()
    return str(answer.json()["accessToken"])


class Faults:
    """Failures of the mesh's Redis, each for a number of seconds."""

    def __init__(self, home: Path) -> None:
        self._home = home

    def _pid(self) -> int:
        pid = processes.running_pid(self._home, processes.REDIS)
        if pid is None:
            raise SystemExit("this mesh has no Redis process")
        return pid

    async def freeze(self, seconds: float) -> None:
        await processes.freeze(self._pid(), seconds)

    async def kill(self, seconds: float) -> None:
        """Kills Redis; the supervisor starts an empty one."""
        os.kill(self._pid(), signal.SIGKILL)
        await asyncio.sleep(seconds)

    async def flush(self, seconds: float) -> None:
        for _ in range(10):
            await processes.flush(self._home)
            await asyncio.sleep(seconds / 10)


async def _rounds(customers: Customers, faults: Faults, rounds: int, seconds: float) -> None:
    phases: list[tuple[str, Callable[[float], Awaitable[None]]]] = [
        (_FROZEN, faults.freeze),
        (_KILLED, faults.kill),
        (_FLUSHED, faults.flush),
    ]
    customers.phase = "warming up"
    tasks = [asyncio.create_task(customers.run_customer(token)) for token in customers.tokens]
    try:
        await asyncio.sleep(seconds)
        for _ in range(rounds):
            for phase, fault in phases:
                customers.phase = _HEALTHY
                await asyncio.sleep(seconds)
                customers.phase = phase
                await fault(seconds)
                # Until the services have reconnected and the cache is warm.
                customers.phase = "recovering"
                await asyncio.sleep(2)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _show(customers: Customers) -> int:
    table = Table(title="Redis lost, in milliseconds")
    for column in ("", "Redis", "calls", "p50", "p99", "max", "p99 added", "× healthy"):
        table.add_column(column, justify="left" if column in ("", "Redis") else "right")
    is_within_limits = not customers.failures
    for action in (_READ, _BUY):
        healthy = _percentile(customers.seconds[_HEALTHY, action] or [math.nan], 99)
        for phase in (_HEALTHY, _FROZEN, _KILLED, _FLUSHED):
            seconds = customers.seconds[phase, action]
            if not seconds:
                table.add_row(action, phase, "0")
                is_within_limits = False
                continue
            p99 = _percentile(seconds, 99)
            is_within_limits &= p99 - healthy <= MAX_ADDED_SECONDS
            table.add_row(
                action,
                phase,
                f"{len(seconds):,}",
                *(f"{1000 * value:.1f}" for value in (_percentile(seconds, 50), p99, max(seconds))),
                "" if phase == _HEALTHY else f"{1000 * (p99 - healthy):+.1f}",
                f"{p99 / healthy:.2f}",
            )
    console = Console(width=110)
    console.print(table)
    console.print(
        f"Calls that failed: {len(customers.failures)}", *customers.failures[:10], sep="\n"
    )
    console.print("Within the limits." if is_within_limits else "NOT within the limits.")
    return 0 if is_within_limits else 1


def _percentile(values: list[float], percent: int) -> float:
    """The percentile by nearest rank."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
