"""Timing of refused sign-ins by whether the address has an account: `python -m bench.login_timing [n]`.

Sends wrong passwords for pairs of a known and an unknown address, each pair in random order. Prints
the medians and the 95 % bootstrap interval of their difference, which must lie within ±5 ms.
"""

import asyncio
import os
import random
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence

import httpx

from mesh.ids import new_id
from testing.meshes import a_mesh

BOUND_MS = 5.0
# Fewer than the free attempts of the login throttle.
_PER_ACCOUNT = 4
_RESAMPLES = 4000


async def main() -> int:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 500
    with tempfile.TemporaryDirectory(prefix="boxoffice-bench-", ignore_cleanup_errors=True) as home:
        async with a_mesh(home, BOXOFFICE_PASSWORD_COST=os.getenv("BENCH_COST", "10")) as mesh:
            url = mesh.settings.gateway_url
            async with httpx.AsyncClient(base_url=url, timeout=20) as client:
                return report(*await measure(client, count))


async def measure(client: httpx.AsyncClient, count: int) -> tuple[list[float], list[float]]:
    """Durations of refusals in ms, for known and for unknown addresses."""
    accounts = [f"{new_id()}@example.com" for _ in range(-(-count // _PER_ACCOUNT))]
    for email in accounts:
        answer = await client.post(
            "/api/v1/auth/register",
            json={"email": email, "password": "Curtain-Up-2026!", "fullName": "Mira Rao"},
        )
        answer.raise_for_status()
    unregistered = [f"{new_id()}@example.com" for _ in accounts]
    known: list[float] = []
    unknown: list[float] = []
    for number in range(count):
        pair = [
            (known, accounts[number % len(accounts)]),
            (unknown, unregistered[number % len(accounts)]),
        ]
        random.shuffle(pair)
        for times, email in pair:
            start = time.perf_counter()
            answer = await client.post(
                "/api/v1/auth/login", json={"email": email, "password": "wrong"}
            )
            times.append((time.perf_counter() - start) * 1000)
            if answer.status_code != 401:
                raise RuntimeError(f"{answer.status_code} {answer.text}")
    return known, unknown


def report(known: Sequence[float], unknown: Sequence[float]) -> int:
    low, high = interval(known, unknown)
    print(f"n = {len(known)} each")
    for name, times in (("known", known), ("unknown", unknown)):
        print(
            f"{name:8} median {statistics.median(times):8.2f} ms"
            f"   p95 {statistics.quantiles(times, n=20)[18]:8.2f} ms"
        )
    difference = statistics.median(known) - statistics.median(unknown)
    print(f"difference of the medians {difference:+.2f} ms, 95 % interval {low:+.2f} … {high:+.2f}")
    is_inside = low > -BOUND_MS and high < BOUND_MS
    print(f"inside ±{BOUND_MS:g} ms: {'yes' if is_inside else 'NO'}")
    return 0 if is_inside else 1


def interval(known: Sequence[float], unknown: Sequence[float]) -> tuple[float, float]:
    """The 95 % interval of the resampled differences of the medians."""
    differences = sorted(
        statistics.median(random.choices(known, k=len(known)))
        - statistics.median(random.choices(unknown, k=len(unknown)))
        for _ in range(_RESAMPLES)
    )
    return differences[int(_RESAMPLES * 0.025)], differences[int(_RESAMPLES * 0.975)]


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
