"""Thousands of watchers of one event while it sells out: `python -m bench.watchers`.

Needs a running mesh (`BOXOFFICE_RATE_LIMIT_SCALE=1000 make up`) with an admin secret. Half of the
watchers use text/event-stream, half gRPC. The lag of a sale is the time from the answer to its
buyer until a watcher receives an update that includes it.
"""

import argparse
import asyncio
import bisect
import json
import os
import resource
import statistics
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import httpx
import psutil
from rich.console import Console
from rich.table import Table

from boxoffice.catalogue.v1 import event_service_pb2, event_service_pb2_grpc
from mesh.ids import new_id

_PASSWORD = "Curtain-Up-2026!"
_LIMIT_SECONDS = 1.0
_STREAMS_PER_CONNECTION = 50
_MAX_OPENING = 100


@dataclass
class Watcher:
    """The updates of one watcher: their times and available places; and its reconnections."""

    updates: list[tuple[float, int]] = field(default_factory=list)
    available: int | None = None
    version: int = 0
    reconnections: int = 0

    def add(self, version: int, available: int | None) -> None:
        self.version = version
        if available is not None:
            self.available = available
            self.updates.append((time.monotonic(), available))


async def _watch_rest(
    url: str, event_id: str, watcher: Watcher, opening: asyncio.Semaphore
) -> None:
    timeout = httpx.Timeout(30, read=40)
    async with httpx.AsyncClient(base_url=url, timeout=timeout) as client:
        path = f"/api/v1/events/{event_id}/availability/watch"
        while True:
            after = f"?afterVersion={watcher.version}" if watcher.version else ""
            try:
                async with opening:
                    stream = client.stream("GET", path + after)
                    response = await stream.__aenter__()
                async for line in response.aiter_lines():
                    if line.startswith("data:"):
                        update = json.loads(line[5:])
                        offers = update["offers"]
                        available = offers[0]["available"] if offers else None
                        watcher.add(int(update["version"]), available)
            except httpx.HTTPError:
                pass
            watcher.reconnections += 1
            await asyncio.sleep(0.2)


async def _watch_grpc(
    channel: grpc.aio.Channel, event_id: str, watcher: Watcher, opening: asyncio.Semaphore
) -> None:
    stub = event_service_pb2_grpc.EventServiceStub(channel)
    while True:
        request = event_service_pb2.WatchAvailabilityRequest(
            event_id=event_id, after_version=watcher.version or None
        )
        try:
            async with opening:
                call = stub.WatchAvailability(request)
                await call.initial_metadata()
            async for update in call:
                available = update.offers[0].available if update.offers else None
                watcher.add(update.version, available)
        except grpc.aio.AioRpcError:
            pass
        watcher.reconnections += 1
        await asyncio.sleep(0.2)


async def _sign_up(client: httpx.AsyncClient, secret: str | None = None) -> dict[str, str]:
    account: dict[str, Any] = {
        "email": f"{new_id()}@example.com",
        "password": _PASSWORD,
        "fullName": "Mira Rao",
    }
    path = "/api/v1/auth/register"
    if secret:
        path, account = "/api/v1/auth/admin/register", {**account, "adminSecret": secret}
    (await client.post(path, json=account)).raise_for_status()
    login = {"email": account["email"], "password": _PASSWORD}
    answer = (await client.post("/api/v1/auth/login", json=login)).raise_for_status()
    return {"authorization": f"Bearer {answer.json()['accessToken']}"}


async def _buy(
    client: httpx.AsyncClient,
    buyer: dict[str, str],
    body: dict[str, Any],
    sold: list[float],
    rate: float,
) -> None:
    """Buys until the event is sold out, and appends the time of each answer to `sold`."""
    while True:
        start = time.monotonic()
        answer = await client.post(
            "/api/v1/bookings", json=body, headers={**buyer, "idempotency-key": str(new_id())}
        )
        if answer.status_code == 409:
            return
        answer.raise_for_status()
        sold.append(time.monotonic())
        await asyncio.sleep(max(0.0, 1 / rate - (time.monotonic() - start)))


def _lags(watchers: list[Watcher], sold: list[float], capacity: int) -> list[float]:
    """Seconds from the answer to each sale until each watcher received an update with it."""
    lags = []
    for watcher in watchers:
        times = [received for received, _ in watcher.updates]
        taken = [capacity - available for _, available in watcher.updates]
        for count, answered in enumerate(sorted(sold), 1):
            index = bisect.bisect_left(taken, count)
            if index < len(times):
                lags.append(max(0.0, times[index] - answered))
    return lags


def _memory(home: Path, process: str) -> float:
    """MiB of a process of the mesh."""
    pid = json.loads((home / "run" / f"{process}.pid").read_text())["pid"]
    return float(psutil.Process(pid).memory_info().rss) / 2**20


async def _measure(arguments: argparse.Namespace) -> bool:
    home = Path(arguments.home)
    async with httpx.AsyncClient(base_url=arguments.url, timeout=30) as client:
        staff = await _sign_up(client, arguments.admin_secret)
        buyers = [await _sign_up(client) for _ in range(arguments.buyers)]
        event = (
            (
                await client.post(
                    "/api/v1/events",
                    headers=staff,
                    json={
                        "name": "Watched",
                        "startTime": "2099-07-04T14:00:00Z",
                        "saleStartTime": "2020-01-01T00:00:00Z",
                        "offers": [
                            {
                                "name": "Floor",
                                "price": {"currencyCode": "INR", "amountMinor": "100"},
                                "capacity": arguments.capacity,
                                "perCustomerLimit": arguments.capacity,
                            }
                        ],
                    },
                )
            )
            .raise_for_status()
            .json()
        )
        event_id, offer_id = event["eventId"], event["offers"][0]["offerId"]
        processes = [path.stem for path in sorted((home / "run").glob("*.pid"))]
        watching = [
            name for name in processes if name.startswith(("booking_svc", "envoy", "gateway"))
        ]
        before = {name: _memory(home, name) for name in watching}
        watchers = [Watcher() for _ in range(arguments.watchers)]
        opening = asyncio.Semaphore(_MAX_OPENING)
        half = len(watchers) // 2
        channels = [
            grpc.aio.insecure_channel(
                arguments.url.removeprefix("http://"),
                # Channels with the same options would share one connection.
                options=[("grpc.use_local_subchannel_pool", 1), ("bench.number", n)],
            )
            for n in range(-(-half // _STREAMS_PER_CONNECTION))
        ]
        start = time.monotonic()
        tasks = [
            asyncio.create_task(_watch_rest(arguments.url, event_id, watcher, opening))
            for watcher in watchers[half:]
        ] + [
            asyncio.create_task(
                _watch_grpc(channels[n // _STREAMS_PER_CONNECTION], event_id, watcher, opening)
            )
            for n, watcher in enumerate(watchers[:half])
        ]
        while not all(watcher.updates for watcher in watchers):
            await asyncio.sleep(0.1)
            if time.monotonic() - start > 300:
                print(f"only {sum(bool(watcher.updates) for watcher in watchers)} are connected")
                return False
        print(f"{len(watchers):,} watchers are connected after {time.monotonic() - start:.1f} s")
        with_watchers = {name: _memory(home, name) for name in watching}
        sold: list[float] = []
        body = {"eventId": event_id, "items": [{"offerId": offer_id, "quantity": 1}]}
        rate = arguments.rate / arguments.buyers
        start = time.monotonic()
        await asyncio.gather(*(_buy(client, buyer, body, sold, rate) for buyer in buyers))
        selling_seconds = time.monotonic() - start
        deadline = time.monotonic() + 15
        while time.monotonic() < deadline and any(watcher.available != 0 for watcher in watchers):
            await asyncio.sleep(0.1)
        sold_out = {name: _memory(home, name) for name in watching}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for channel in channels:
            await channel.close()
    informed = sum(watcher.available == 0 for watcher in watchers)
    lags = sorted(_lags(watchers, sold, arguments.capacity))
    p50, p99 = statistics.median(lags), lags[int(len(lags) * 0.99)]
    _show(arguments, len(sold) / selling_seconds, informed, (p50, p99, lags[-1]), watchers)
    for name in watching:
        growth_kib = (sold_out[name] - before[name]) * 1024 / len(watchers)
        print(
            f"{name}: {before[name]:.0f} MiB, with watchers {with_watchers[name]:.0f},"
            f" sold out {sold_out[name]:.0f}: {growth_kib:.0f} KiB per watcher"
        )
    is_within_limits = informed == len(watchers) and p99 <= _LIMIT_SECONDS
    print("Within the limits." if is_within_limits else "NOT within the limits.")
    return is_within_limits


def _show(
    arguments: argparse.Namespace,
    rate: float,
    informed: int,
    lags: tuple[float, float, float],
    watchers: list[Watcher],
) -> None:
    table = Table(title=f"{arguments.watchers:,} watchers, {arguments.capacity:,} places")
    table.add_column("")
    table.add_column("figure", justify="right")
    table.add_row("sold per second", f"{rate:.0f}")
    table.add_row("watchers with the final state", f"{informed:,}")
    table.add_row(
        "updates per watcher",
        f"{statistics.mean(len(watcher.updates) for watcher in watchers):.0f}",
    )
    table.add_row("reconnections", f"{sum(watcher.reconnections for watcher in watchers):,}")
    for name, lag in zip(("lag p50", "lag p99", "lag max"), lags, strict=True):
        table.add_row(name, f"{lag:.3f} s")
    Console(width=80).print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", default="http://127.0.0.1:8080")
    parser.add_argument("--home", default=".boxoffice")
    parser.add_argument(
        "--admin-secret", default=os.environ.get("BOXOFFICE_ADMIN_REGISTRATION_SECRET")
    )
    parser.add_argument("--watchers", type=int, default=2_000)
    parser.add_argument("--capacity", type=int, default=1_000)
    parser.add_argument("--buyers", type=int, default=10)
    parser.add_argument("--rate", type=float, default=50, help="maximum of bookings per second")
    arguments = parser.parse_args()
    # A file descriptor for each connection.
    _, maximum = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (maximum, maximum))
    raise SystemExit(0 if asyncio.run(_measure(arguments)) else 1)


if __name__ == "__main__":
    main()
