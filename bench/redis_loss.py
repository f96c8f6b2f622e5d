"""What losing Redis costs: `python -m bench.redis_loss`.

One mesh, one steady crowd that reads events and buys places of total 0 – place, hold,
confirm, no payment page in between – while Redis is well, frozen, killed, emptied, and
well again, in interleaved rounds. What counts is the difference to the rounds around it
in which Redis is well; the promise is at most 100 ms at the 99th percentile, and no call
that fails.
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
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import redis.asyncio
from rich.console import Console
from rich.table import Table

from demo import chaos
from launcher import protos
from launcher.settings_listing import load
from mesh.ids import new_id
from mesh.settings import MeshSettings

PROMISED_SECONDS = 0.1

_WELL, _FROZEN, _KILLED, _FLUSHED = "well", "frozen", "killed", "flushed"
_READ, _BUY = "read an event", "buy"
_PASSWORD = "Curtain-Up-2026!"
_CAPACITY = 1_000_000


@dataclass
class Crowd:
    """Customers who read and buy, one call after the other, for as long as they are let."""

    client: httpx.AsyncClient
    tokens: list[str]
    event: dict[str, Any]
    phase: str = ""
    seconds: dict[tuple[str, str], list[float]] = field(default_factory=lambda: defaultdict(list))
    failures: list[str] = field(default_factory=list)

    async def customer(self, token: str) -> None:
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

    async def _timed(self, what: str, call: Awaitable[httpx.Response]) -> None:
        phase, began = self.phase, time.perf_counter()
        try:
            answer = await call
        except httpx.HTTPError as error:
            self.failures.append(f"{phase}: {what}: {type(error).__name__}")
            return
        # A call counts where it began: what the moment of a loss costs is part of it.
        self.seconds[phase, what].append(time.perf_counter() - began)
        is_right = answer.status_code in (200, 201)
        if is_right and what == _BUY:
            is_right = answer.json()["status"] == "CONFIRMED"
        if not is_right:
            self.failures.append(f"{phase}: {what}: {answer.status_code} {answer.text[:200]}")


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
            crowd = await _gather(client, secret, arguments.customers)
            await _rounds(crowd, Faults(mesh.home), arguments.rounds, arguments.seconds)
    return _show(crowd)


async def _gather(client: httpx.AsyncClient, secret: str, customers: int) -> Crowd:
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
    return Crowd(client, tokens, created.json())


async def _sign_up(client: httpx.AsyncClient, path: str, **more: str) -> str:
    account = {"email": f"{new_id()}@example.com", "password": _PASSWORD, "fullName": "Mira Rao"}
    (await client.post(path, json={**account, **more})).raise_for_status()
    answer = await client.post(
        "/api/v1/auth/login", json={"email": account["email"], "password": _PASSWORD}
    )
    answer.raise_for_status()
    return str(answer.json()["accessToken"])


class Faults:
    """What is done to the mesh's Redis, and undone."""

    def __init__(self, home: Path) -> None:
        self._home = home

    def _pid(self) -> int:
        pid = chaos.running_pid(self._home, chaos.REDIS)
        if pid is None:
            raise SystemExit("there is no Redis of this mesh")
        return pid

    async def freeze(self, seconds: float) -> None:
        pid = self._pid()
        try:
            os.kill(pid, signal.SIGSTOP)
            await asyncio.sleep(seconds)
        finally:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)

    async def kill(self, seconds: float) -> None:
        """The supervisor starts an empty one after a moment."""
        os.kill(self._pid(), signal.SIGKILL)
        await asyncio.sleep(seconds)

    async def flush(self, seconds: float) -> None:
        from launcher.redis_server import RedisServer

        async with redis.asyncio.from_url(RedisServer(self._home).url) as client:
            for _ in range(10):
                await client.flushall()
                await asyncio.sleep(seconds / 10)


async def _rounds(crowd: Crowd, faults: Faults, rounds: int, seconds: float) -> None:
    phases: list[tuple[str, Callable[[float], Awaitable[None]]]] = [
        (_FROZEN, faults.freeze),
        (_KILLED, faults.kill),
        (_FLUSHED, faults.flush),
    ]
    crowd.phase = "warming up"
    customers = [asyncio.create_task(crowd.customer(token)) for token in crowd.tokens]
    try:
        await asyncio.sleep(seconds)
        for _ in range(rounds):
            for phase, happen in phases:
                crowd.phase = _WELL
                await asyncio.sleep(seconds)
                crowd.phase = phase
                await happen(seconds)
                # Until it is found to be back, and the cache is warm.
                crowd.phase = "settling"
                await asyncio.sleep(2)
    finally:
        for task in customers:
            task.cancel()
        await asyncio.gather(*customers, return_exceptions=True)


def _show(crowd: Crowd) -> int:
    table = Table(title="Redis lost, in milliseconds")
    for column in ("", "Redis", "calls", "p50", "p99", "worst", "p99 added", "× well"):
        table.add_column(column, justify="left" if column in ("", "Redis") else "right")
    is_kept = not crowd.failures
    for what in (_READ, _BUY):
        well = _percentile(crowd.seconds[_WELL, what] or [math.nan], 99)
        for phase in (_WELL, _FROZEN, _KILLED, _FLUSHED):
            seconds = crowd.seconds[phase, what]
            if not seconds:
                table.add_row(what, phase, "0")
                is_kept = False
                continue
            p99 = _percentile(seconds, 99)
            is_kept &= p99 - well <= PROMISED_SECONDS
            table.add_row(
                what,
                phase,
                f"{len(seconds):,}",
                *(f"{1000 * value:.1f}" for value in (_percentile(seconds, 50), p99, max(seconds))),
                "" if phase == _WELL else f"{1000 * (p99 - well):+.1f}",
                f"{p99 / well:.2f}",
            )
    console = Console(width=110)
    console.print(table)
    console.print(f"Calls that failed: {len(crowd.failures)}", *crowd.failures[:10], sep="\n")
    console.print("The promise is kept." if is_kept else "The promise is NOT kept.")
    return 0 if is_kept else 1


def _percentile(values: list[float], percent: int) -> float:
    """By nearest rank."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
