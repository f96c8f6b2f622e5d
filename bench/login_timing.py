"""Does the time of a refused sign-in tell whether the address has an account?

Wrong passwords for known and for unknown addresses through the whole mesh, in turns and
in random order within each. Prints the medians and the 95 % interval (bootstrap) of their
difference; it must lie inside ±5 ms. `python -m bench.login_timing [n]`
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
# Fewer than the throttle lets through for one account.
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
    """Milliseconds of refusals for known and for unknown addresses."""
    accounts = [f"{new_id()}@example.com" for _ in range(-(-count // _PER_ACCOUNT))]
    for email in accounts:
        answer = await client.post(
            "/api/v1/auth/register",
            json={"email": email, "password": "Curtain-Up-2026!", "fullName": "Mira Rao"},
        )
        answer.raise_for_status()
    strangers = [f"{new_id()}@example.com" for _ in accounts]
    known: list[float] = []
    unknown: list[float] = []
    for number in range(count):
        pair = [
            (known, accounts[number % len(accounts)]),
            (unknown, strangers[number % len(accounts)]),
        ]
        random.shuffle(pair)
        for times, email in pair:
            begun = time.perf_counter()
            answer = await client.post(
                "/api/v1/auth/login", json={"email": email, "password": "wrong"}
            )
            times.append((time.perf_counter() - begun) * 1000)
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
    """95 % of the resampled differences of the medians."""
    differences = sorted(
        statistics.median(random.choices(known, k=len(known)))
        - statistics.median(random.choices(unknown, k=len(unknown)))
        for _ in range(_RESAMPLES)
    )
    return differences[int(_RESAMPLES * 0.025)], differences[int(_RESAMPLES * 0.975)]


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
