"""The effect of 20 sign-ins per second on reads: `python -m bench.login_stall [rounds]`.

Rounds with and without sign-ins alternate. Reads are sent at a fixed rate, whatever their duration.
The p99 of GetEvent with sign-ins must be at most twice that without.
"""

import asyncio
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence

import httpx

from mesh.ids import new_id
from testing.meshes import a_mesh

LOGINS_PER_SECOND = 20
READS_PER_SECOND = 50
ROUND_SECONDS = 10.0
MAX_RATIO = 2.0
SECRET = "the-admin-secret-of-this-benchmark-0001"
PASSWORD = "Curtain-Up-2026!"
_ACCOUNTS = 40


async def main() -> int:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 4
    with tempfile.TemporaryDirectory(prefix="boxoffice-bench-", ignore_cleanup_errors=True) as home:
        async with (
            a_mesh(home, BOXOFFICE_ADMIN_REGISTRATION_SECRET=SECRET) as mesh,
            httpx.AsyncClient(
                base_url=mesh.settings.gateway_url,
                timeout=30,
                limits=httpx.Limits(max_connections=200),
            ) as client,
        ):
            return await compare(client, rounds)


async def compare(client: httpx.AsyncClient, rounds: int) -> int:
    emails = [await register(client) for _ in range(_ACCOUNTS)]
    token = await admin_token(client)
    event_path = await an_event(client, token)
    me = {"authorization": f"Bearer {await login_token(client, emails[0])}"}
    reads = {
        "GetEvent (booking_svc)": lambda: client.get(event_path),
        "GetMe (auth_svc)": lambda: client.get("/api/v1/auth/me", headers=me),
    }
    quiet: dict[str, list[float]] = {name: [] for name in reads}
    busy: dict[str, list[float]] = {name: [] for name in reads}
    answers: Counter[int] = Counter()
    for _ in range(rounds):
        await run_round(reads, quiet)
        logins = asyncio.create_task(keep_signing_in(client, emails, answers))
        await asyncio.sleep(1)
        await run_round(reads, busy)
        logins.cancel()
        await asyncio.gather(logins, return_exceptions=True)
        # Lets the queue of passwords drain before the next quiet round.
        await asyncio.sleep(4)
    print(f"sign-ins by status: {dict(answers)}")
    event_ratio = 0.0
    for name in reads:
        before, during = p99(quiet[name]), p99(busy[name])
        ratio = during / before
        print(
            f"{name:24} n = {len(quiet[name])} / {len(busy[name])}"
            f"   median {statistics.median(quiet[name]):6.1f} → {statistics.median(busy[name]):6.1f} ms"
            f"   p99 {before:6.1f} → {during:6.1f} ms   × {ratio:.2f}"
        )
        if name.startswith("GetEvent"):
            event_ratio = ratio
    print(f"p99 of GetEvent at most ×{MAX_RATIO:g}: {'yes' if event_ratio <= MAX_RATIO else 'NO'}")
    return 0 if event_ratio <= MAX_RATIO else 1


async def run_round(reads: dict, times: dict[str, list[float]]) -> None:  # type: ignore[type-arg]
    async def timed(name: str) -> None:
        start = time.perf_counter()
        answer = await reads[name]()
        times[name].append((time.perf_counter() - start) * 1000)
        answer.raise_for_status()

    pending = []
    start = time.perf_counter()
    for number in range(int(ROUND_SECONDS * READS_PER_SECOND)):
        await asyncio.sleep(max(0.0, start + number / READS_PER_SECOND - time.perf_counter()))
        pending += [asyncio.create_task(timed(name)) for name in reads]
    await asyncio.gather(*pending)


async def keep_signing_in(
    client: httpx.AsyncClient, emails: Sequence[str], answers: Counter[int]
) -> None:
    async def sign_in(email: str) -> None:
        answer = await client.post(
            "/api/v1/auth/login", json={"email": email, "password": PASSWORD}
        )
        answers[answer.status_code] += 1

    async with asyncio.TaskGroup() as group:
        number = 0
        while True:
            group.create_task(sign_in(emails[number % len(emails)]))
            number += 1
            await asyncio.sleep(1 / LOGINS_PER_SECOND)


async def register(client: httpx.AsyncClient) -> str:
    email = f"{new_id()}@example.com"
    account = {"email": email, "password": PASSWORD, "fullName": "Mira Rao"}
    (await client.post("/api/v1/auth/register", json=account)).raise_for_status()
    return email


async def login_token(client: httpx.AsyncClient, email: str) -> str:
    answer = await client.post("/api/v1/auth/login", json={"email": email, "password": PASSWORD})
    return str(answer.raise_for_status().json()["accessToken"])


async def admin_token(client: httpx.AsyncClient) -> str:
    account = {
        "email": "root@example.com",
        "password": PASSWORD,
        "fullName": "Root",
        "adminSecret": SECRET,
    }
    (await client.post("/api/v1/auth/admin/register", json=account)).raise_for_status()
    return await login_token(client, account["email"])


async def an_event(client: httpx.AsyncClient, token: str) -> str:
    offer = {"name": "Floor", "price": {"currencyCode": "INR", "amountMinor": "100"}, "capacity": 9}
    event = {
        "name": "Monsoon Nights",
        "timeZone": "Asia/Kolkata",
        "startTime": "2099-07-04T14:00:00Z",
        "saleStartTime": "2020-01-01T00:00:00Z",
        "offers": [offer],
    }
    bearer = {"authorization": f"Bearer {token}"}
    created = await client.post("/api/v1/events", json=event, headers=bearer)
    return f"/api/v1/events/{created.raise_for_status().json()['eventId']}"


def p99(times: Sequence[float]) -> float:
    return statistics.quantiles(times, n=100)[98]


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
