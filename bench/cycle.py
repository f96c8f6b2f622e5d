"""Closed loop of whole sales: PlaceBooking with checkout, payment in the sandbox, CONFIRMED."""

import asyncio
import json
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from bench.load import Answers, Connection, Request
from bench.results import percentile

# Growing pauses: 64 customers who ask every 50 ms would be most of the load.
_FIRST_PAUSE_SECONDS, _LAST_PAUSE_SECONDS = 0.25, 2.0
_CONFIRMED_SECONDS = 60


async def run_cycles(
    url: str, requests: Sequence[Request], connections: int, seconds: float
) -> Answers:
    """Sells places with `requests` of PlaceBooking for `seconds`; durations are of whole sales."""
    unexpected: Counter[str] = Counter()
    durations: list[float] = []
    start = time.perf_counter()

    async def sell(number: int) -> None:
        connection = await Connection.open(url)
        request = _with_checkout(requests[number % len(requests)])
        while (began := time.perf_counter()) < start + seconds:
            failure = await _sell_one(connection, request)
            if failure:
                unexpected[failure] += 1
            else:
                durations.append(time.perf_counter() - began)
        connection.close()

    await asyncio.gather(*map(sell, range(connections)))
    p50_ms, p99_ms = (1000 * percentile(durations, percent) for percent in (50, 99))
    elapsed = time.perf_counter() - start
    return Answers(elapsed, len(durations), p50_ms, p99_ms, dict(unexpected))


async def _sell_one(connection: Connection, request: Request) -> str:
    """Sells one booking; the failure, or "" when it is CONFIRMED."""
    status, body = await connection.send(request)
    if status != 201:
        return f"place {status}"
    booking = json.loads(body)
    path = f"/sandbox/pay/{booking['payment']['paymentId']}"
    outcome = json.dumps({"outcome": "SUCCEEDED"})
    status, body = await connection.send(Request("POST", path, body=outcome))
    if status != 200:
        return f"pay {status}"
    read = Request("GET", f"/api/v1/bookings/{booking['bookingId']}", request.token)
    deadline, pause_seconds = time.perf_counter() + _CONFIRMED_SECONDS, _FIRST_PAUSE_SECONDS
    while time.perf_counter() < deadline:
        status, body = await connection.send(read)
        if status != 200:
            return f"read {status}"
        if json.loads(body)["status"] == "CONFIRMED":
            return ""
        await asyncio.sleep(pause_seconds)
        pause_seconds = min(1.5 * pause_seconds, _LAST_PAUSE_SECONDS)
    return "not confirmed"


def _with_checkout(request: Request) -> Request:
    body = {**json.loads(request.body), "checkout": {"provider": "sandbox"}}
    return replace(request, body=json.dumps(body))
