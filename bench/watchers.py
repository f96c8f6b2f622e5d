"""Thousands watch one event over the gateway while it sells out: `python -m bench.watchers`.

Against a running mesh (`BOXOFFICE_RATE_LIMIT_SCALE=1000 make up`) with an admin secret.
Half of the watchers read text/event-stream, half gRPC. Lag is counted from the moment at
which the booking that caused a version was answered to its buyer, to the moment at which
a watcher has heard of a version that is not older.
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
_OPENING_AT_ONCE = 100


@dataclass
class Watcher:
    """What one watcher has heard: the places left, when, and how often it had to come back."""

    heard: list[tuple[float, int]] = field(default_factory=list)
    available: int | None = None
    version: int = 0
    returns: int = 0

    def hear(self, version: int, available: int | None) -> None:
        self.version = version
        if available is not None:
            self.available = available
            self.heard.append((time.monotonic(), available))


async def _watch_rest(url: str, event_id: str, watcher: Watcher, opened: asyncio.Semaphore) -> None:
    timeout = httpx.Timeout(30, read=40)
    async with httpx.AsyncClient(base_url=url, timeout=timeout) as client:
        path = f"/api/v1/events/{event_id}/availability/watch"
        while True:
            after = f"?afterVersion={watcher.version}" if watcher.version else ""
            try:
                async with opened:
                    stream = client.stream("GET", path + after)
                    response = await stream.__aenter__()
                async for line in response.aiter_lines():
                    if line.startswith("data:"):
                        update = json.loads(line[5:])
                        offers = update["offers"]
                        left = offers[0]["available"] if offers else None
                        watcher.hear(int(update["version"]), left)
            except httpx.HTTPError:
                pass
            watcher.returns += 1
            await asyncio.sleep(0.2)


async def _watch_grpc(
    channel: grpc.aio.Channel, event_id: str, watcher: Watcher, opened: asyncio.Semaphore
) -> None:
    stub = event_service_pb2_grpc.EventServiceStub(channel)
    while True:
        request = event_service_pb2.WatchAvailabilityRequest(
            event_id=event_id, after_version=watcher.version or None
        )
        try:
            async with opened:
                call = stub.WatchAvailability(request)
                await call.initial_metadata()
            async for update in call:
                left = update.offers[0].available if update.offers else None
                watcher.hear(update.version, left)
        except grpc.aio.AioRpcError:
            pass
        watcher.returns += 1
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
    """Buys until nothing is left, and notes when each answer came."""
    while True:
        began = time.monotonic()
        answer = await client.post(
            "/api/v1/bookings", json=body, headers={**buyer, "idempotency-key": str(new_id())}
        )
        if answer.status_code == 409:
            return
        answer.raise_for_status()
        sold.append(time.monotonic())
        await asyncio.sleep(max(0.0, 1 / rate - (time.monotonic() - began)))


def _lags(watchers: list[Watcher], sold: list[float], capacity: int) -> list[float]:
    """Seconds from each sale's answer until each watcher knew that so many were gone."""
    found = []
    for watcher in watchers:
        times = [when for when, _ in watcher.heard]
        gone = [capacity - left for _, left in watcher.heard]
        for n, when in enumerate(sorted(sold), 1):
            at = bisect.bisect_left(gone, n)
            if at < len(times):
                found.append(max(0.0, times[at] - when))
    return found


def _memory(home: Path, process: str) -> float:
    """MiB of a process of the mesh."""
    pid = json.loads((home / "run" / f"{process}.pid").read_text())["pid"]
    return float(psutil.Process(pid).memory_info().rss) / 2**20


async def _measure(given: argparse.Namespace) -> bool:
    home = Path(given.home)
    async with httpx.AsyncClient(base_url=given.url, timeout=30) as client:
        staff = await _sign_up(client, given.admin_secret)
        buyers = [await _sign_up(client) for _ in range(given.buyers)]
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
                                "capacity": given.capacity,
                                "perCustomerLimit": given.capacity,
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
        watchers = [Watcher() for _ in range(given.watchers)]
        opened = asyncio.Semaphore(_OPENING_AT_ONCE)
        half = len(watchers) // 2
        channels = [
            grpc.aio.insecure_channel(
                given.url.removeprefix("http://"),
                # Channels with the same options would share one connection.
                options=[("grpc.use_local_subchannel_pool", 1), ("bench.number", n)],
            )
            for n in range(-(-half // _STREAMS_PER_CONNECTION))
        ]
        began = time.monotonic()
        tasks = [
            asyncio.create_task(_watch_rest(given.url, event_id, each, opened))
            for each in watchers[half:]
        ] + [
            asyncio.create_task(
                _watch_grpc(channels[n // _STREAMS_PER_CONNECTION], event_id, each, opened)
            )
            for n, each in enumerate(watchers[:half])
        ]
        while not all(each.heard for each in watchers):
            await asyncio.sleep(0.1)
            if time.monotonic() - began > 300:
                print(f"only {sum(bool(w.heard) for w in watchers)} could watch")
                return False
        print(f"{len(watchers):,} watch after {time.monotonic() - began:.1f} s")
        with_watchers = {name: _memory(home, name) for name in watching}
        sold: list[float] = []
        body = {"eventId": event_id, "items": [{"offerId": offer_id, "quantity": 1}]}
        rate = given.rate / given.buyers
        began = time.monotonic()
        await asyncio.gather(*(_buy(client, buyer, body, sold, rate) for buyer in buyers))
        took = time.monotonic() - began
        deadline = time.monotonic() + 15
        while time.monotonic() < deadline and any(each.available != 0 for each in watchers):
            await asyncio.sleep(0.1)
        sold_out = {name: _memory(home, name) for name in watching}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for channel in channels:
            await channel.close()
    true = sum(each.available == 0 for each in watchers)
    lags = sorted(_lags(watchers, sold, given.capacity))
    p50, p99 = statistics.median(lags), lags[int(len(lags) * 0.99)]
    _show(given, len(sold) / took, true, (p50, p99, lags[-1]), watchers)
    for name in watching:
        grown = (sold_out[name] - before[name]) * 1024 / len(watchers)
        print(
            f"{name}: {before[name]:.0f} MiB, with watchers {with_watchers[name]:.0f},"
            f" sold out {sold_out[name]:.0f}: {grown:.0f} KiB a watcher"
        )
    holds = true == len(watchers) and p99 <= _LIMIT_SECONDS
    print("holds" if holds else "does not hold")
    return holds


def _show(
    given: argparse.Namespace,
    rate: float,
    true: int,
    lags: tuple[float, float, float],
    watchers: list[Watcher],
) -> None:
    table = Table(title=f"{given.watchers:,} watchers, {given.capacity:,} places")
    table.add_column("")
    table.add_column("figure", justify="right")
    table.add_row("sold a second", f"{rate:.0f}")
    table.add_row("watchers that end with the truth", f"{true:,}")
    table.add_row(
        "updates a watcher heard", f"{statistics.mean(len(w.heard) for w in watchers):.0f}"
    )
    table.add_row("times a watcher came back", f"{sum(w.returns for w in watchers):,}")
    for name, lag in zip(("lag p50", "lag p99", "lag max"), lags, strict=True):
        table.add_row(name, f"{lag:.3f} s")
    Console(width=80).print(table)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--url", default="http://127.0.0.1:8080")
    arguments.add_argument("--home", default=".boxoffice")
    arguments.add_argument(
        "--admin-secret", default=os.environ.get("BOXOFFICE_ADMIN_REGISTRATION_SECRET")
    )
    arguments.add_argument("--watchers", type=int, default=2_000)
    arguments.add_argument("--capacity", type=int, default=1_000)
    arguments.add_argument("--buyers", type=int, default=10)
    arguments.add_argument("--rate", type=float, default=50, help="bookings a second, at most")
    given = arguments.parse_args()
    # A file descriptor for each connection.
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    raise SystemExit(0 if asyncio.run(_measure(given)) else 1)


if __name__ == "__main__":
    main()
