"""A client at three times its limit, through one and two gateways, while processes are killed.

The limit is 30 per second with a burst of 10; `most` bounds the admitted calls. When limit_svc
does not answer in time, the gateway's local bucket may admit additional calls (`uncounted`).
"""

import asyncio
import itertools
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest
from google.protobuf import descriptor_pb2

from boxoffice.options.v1 import policy_pb2
from mesh.paths import ROOT
from mesh.settings import MeshSettings
from testing import gateway_harness
from testing.gateway_harness import Gateway, bearer
from testing.redis_server import RedisProcess, redis_process

LIST = "/boxoffice.bookings.v1.BookingService/ListBookings"
PER_SECOND, BURST = 30, 10
_AT_ONCE = 50

pytestmark = pytest.mark.timeout(400)  # the long run floods for 120 s per test

Event = Callable[[], Awaitable[None]]


def files_with_limit() -> descriptor_pb2.FileDescriptorSet:
    files = gateway_harness.contract()
    limit = gateway_harness.policy_in(files, LIST).limits.add(
        requests=10 * PER_SECOND, burst=BURST, key=policy_pb2.LIMIT_KEY_USER
    )
    limit.window.seconds = 10
    return files


def most(seconds: float, bursts: int = 1) -> float:
    return PER_SECOND * seconds * 1.05 + BURST * bursts + 1


@pytest.fixture
def seconds(is_long: bool) -> float:
    return 120.0 if is_long else 3.0


@dataclass
class Flood:
    """The number of responses by status, and the start times of calls admitted without limit_svc."""

    statuses: Counter[int] = field(default_factory=Counter)
    uncounted: list[float] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def least(self) -> float:
        """Calls that must be admitted: half of the third that the limit allows.

        Relative to the calls that were sent, which are fewer on a slow machine.
        """
        return self.statuses.total() / 6

    def late(self, until: float = float("inf")) -> int:
        """Calls before `until` that were admitted locally because limit_svc answered too late."""
        # On a busy machine there are many; without limit_svc there would be no others.
        assert len(self.uncounted) < self.statuses[200]
        return sum(moment < until for moment in self.uncounted)


async def flood(urls: list[str], seconds: float, *events: tuple[float, Event]) -> Flood:
    """Sends calls at 3 × the limit, alternating between gateways; runs `events` at their times."""
    flood = Flood()
    running = 0
    started = time.monotonic()
    async with (
        httpx.AsyncClient(timeout=30, headers=bearer()) as client,
        asyncio.TaskGroup() as group,
    ):

        async def call(url: str) -> None:
            nonlocal running
            began = time.monotonic() - started
            answer = await client.get(f"{url}/api/v1/bookings")
            running -= 1
            flood.statuses[answer.status_code] += 1
            if answer.status_code == 200 and "x-ratelimit-limit" not in answer.headers:
                flood.uncounted.append(began)
            if answer.status_code == 429:
                assert int(answer.headers["retry-after"]) >= 1

        async def at(moment: float, event: Event) -> None:
            await asyncio.sleep(moment)
            await event()

        for moment, event in events:
            group.create_task(at(moment, event))
        number = 0
        # A slow machine needs longer to exceed the limit.
        while (elapsed := time.monotonic() - started) < seconds or not flood.statuses[429]:
            # A slow machine sends fewer calls instead of queueing them.
            if number <= elapsed * PER_SECOND * 3 and running < _AT_ONCE:
                group.create_task(call(urls[number % len(urls)]))
                running += 1
                number += 1
            else:
                await asyncio.sleep(0.003)
    flood.seconds = time.monotonic() - started
    admitted, allowed = flood.statuses[200], PER_SECOND * flood.seconds + BURST
    print(
        f"{admitted} of {flood.statuses.total()} admitted in {flood.seconds:.1f} s,"
        f" {len(flood.uncounted)} uncounted: {admitted / allowed:.3f} of limit × time + burst"
    )
    return flood


@contextmanager
def limit_service(
    settings: MeshSettings, redis: RedisProcess, log: Path
) -> Iterator[subprocess.Popen[bytes]]:
    variables = {
        "BOXOFFICE_HOME": str(settings.home),
        "BOXOFFICE_PORT_BASE": str(settings.port_base),
        "BOXOFFICE_METRICS_PORT_BASE": str(settings.metrics_port_base),
        "BOXOFFICE_GATEWAYS": "2",
        "BOXOFFICE_REDIS_URL": redis.url,
        "BOXOFFICE_LIMIT_CONTRACT": str(settings.home / "full.binpb"),
        "BOXOFFICE_SHUTDOWN_GRACE_SECONDS": "1",
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "limit_svc"],
            cwd=ROOT,
            env={**os.environ, **variables},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
        try:
            yield process
        finally:
            process.send_signal(signal.SIGCONT)
            process.terminate()
            process.wait(60)


@asynccontextmanager
async def two_gateways(
    folder: Path,
) -> AsyncIterator[tuple[Gateway, list[str], RedisProcess, "subprocess.Popen[bytes]"]]:
    files = files_with_limit()
    (folder / "full.binpb").write_bytes(files.SerializeToString())
    settings = gateway_harness.settings_in(folder, gateways=2, rate_limit_scale=1)
    overrides = settings.model_dump(
        include={
            "port_base",
            "gateway_port",
            "envoy_admin_port",
            "metrics_port_base",
            "gateways",
            "rate_limit_scale",
        }
    )
    async with redis_process() as redis:
        with (
            limit_service(settings, redis, folder / "limit_svc.log") as process,
            gateway_harness.running_gateway(folder, files=files, **overrides) as gateway,
        ):
            urls = [f"http://127.0.0.1:{settings.gateway_port + n}" for n in range(2)]
            await _counted(urls)
            yield gateway, urls, redis, process


async def _counted(urls: list[str]) -> httpx.Headers:
    """Waits until every gateway counts with limit_svc: local counting sends no headers."""
    other = bearer(gateway_harness.token(sub="0192aaaa-0000-7000-8000-000000000999"))
    async with httpx.AsyncClient(headers=other) as client, asyncio.timeout(60):
        for url in urls:
            while True:
                # The second gateway may listen later than the first.
                with suppress(httpx.ConnectError):
                    answer = await client.get(f"{url}/api/v1/bookings")
                    if "x-ratelimit-limit" in answer.headers:
                        break
                await asyncio.sleep(0.2)
    return answer.headers


async def test_one_gateway_admits_the_limit(tmp_path: Path, seconds: float) -> None:
    with gateway_harness.running_gateway(
        tmp_path, files=files_with_limit(), rate_limit_scale=1
    ) as gateway:
        sent = await flood([gateway.settings.gateway_url], seconds)
    assert set(sent.statuses) == {200, 429}
    assert sent.least < sent.statuses[200] <= most(sent.seconds)


async def test_two_gateways_share_one_limit_per_user(tmp_path: Path, seconds: float) -> None:
    async with two_gateways(tmp_path) as (gateway, urls, _, _):
        # A user whose call limit_svc answers too late gets no header and is not asked again.
        users, counted = itertools.count(2), 0
        async with asyncio.timeout(60):
            while counted < BURST + 2:
                user = f"0192aaaa-0000-7000-8000-{(number := next(users)):012}"
                answer = await _get(urls[number % 2], **bearer(gateway_harness.token(sub=user)))
                assert answer.status_code == 200
                if "ratelimit-remaining" in answer.headers:
                    assert answer.headers["ratelimit-remaining"] == str(BURST - 1)
                    counted += 1
        gateway.upstream.calls.clear()
        sent = await flood(urls, seconds)
        calls = len(gateway.upstream.calls)
        headers = await _counted(urls)
    assert set(sent.statuses) == {200, 429}
    assert sent.least < sent.statuses[200] <= most(sent.seconds) + sent.late()
    assert headers["ratelimit-limit"] == str(10 * PER_SECOND)
    assert calls <= most(sent.seconds) + sent.late()


async def test_the_limit_holds_when_redis_is_killed_and_restarted(
    tmp_path: Path, seconds: float
) -> None:
    async with two_gateways(tmp_path) as (_, urls, redis, _):
        sent = await flood(urls, seconds, (seconds / 3, redis.kill), (seconds * 2 / 3, redis.start))
    assert set(sent.statuses) == {200, 429}
    # Each change allows a new burst: from the gateways' local buckets, and from the empty Redis.
    allowed = most(sent.seconds, bursts=3) + sent.late(until=seconds / 3)
    assert sent.least < sent.statuses[200] <= allowed


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGSTOP], ids=["killed", "frozen"])
async def test_the_limit_holds_without_limit_svc(
    tmp_path: Path, seconds: float, how: signal.Signals
) -> None:
    async with two_gateways(tmp_path) as (_, urls, _, process):

        async def end() -> None:
            process.send_signal(how)

        sent = await flood(urls, seconds, (seconds / 2, end))
        browsing = await _get(urls[1], "/api/v1/events")
    assert set(sent.statuses) == {200, 429}
    allowed = most(sent.seconds, bursts=2) + sent.late(until=seconds / 2)
    assert sent.least < sent.statuses[200] <= allowed
    assert browsing.status_code == 200


async def _get(url: str, path: str = "/api/v1/bookings", **headers: str) -> httpx.Response:
    async with httpx.AsyncClient(headers=headers or bearer()) as client:
        return await client.get(f"{url}{path}")
