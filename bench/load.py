"""Closed-loop load: connections that each wait for an answer and send the plan's next request.

wrk generates it when it is installed, otherwise a client in Python, which takes about ten times the
CPU time and so lowers all figures.
"""

import asyncio
import json
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from bench.results import percentile
from mesh.ids import new_id

WRK = shutil.which("wrk")
GENERATOR = "wrk" if WRK else "a client in Python: wrk is not installed (apt install wrk)"
_SCRIPT = Path(__file__).with_name("wrk.lua")
_SELL_OUT_SECONDS = 3600
_ANSWER_SECONDS = 20
_ALL_ANSWERED = "ALL ANSWERED\n"


@dataclass(frozen=True)
class Request:
    """A REST request. Each time it is sent, it has a new idempotency key."""

    verb: str
    path: str
    token: str = ""
    body: str = ""

    def encoded(self, key: str) -> bytes:
        head = [f"{self.verb} {self.path} HTTP/1.1", "host: bench", f"idempotency-key: {key}"]
        if self.token:
            head.append(f"authorization: Bearer {self.token}")
        if self.body:
            head += ["content-type: application/json", f"content-length: {len(self.body)}"]
        return "\r\n".join([*head, "", self.body]).encode()


@dataclass(frozen=True)
class Plan:
    """The requests to send in turn, from the start again after the last, or `once` each."""

    url: str
    requests: Sequence[Request]
    expected: int = 200
    once: bool = False


@dataclass
class Answers:
    """The answers of one run: the number of expected ones, and of others by status."""

    seconds: float
    expected: int
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    unexpected: dict[str, int] = field(default_factory=dict)
    ratios: dict[str, float] = field(default_factory=dict)


def run(plan: Plan, *, connections: int, seconds: float) -> Answers:
    """Sends the plan's requests for `seconds`, or until all are sent `once`."""
    if plan.once:
        seconds = _SELL_OUT_SECONDS
    if WRK is None:
        return asyncio.run(_run_client(plan, connections, seconds))
    return _run_wrk(WRK, plan, connections, seconds)


def _run_wrk(wrk: str, plan: Plan, connections: int, seconds: float) -> Answers:
    with tempfile.NamedTemporaryFile("w", suffix=".plan") as file:
        for request in plan.requests:
            file.write(f"{request.verb}\t{request.path}\t{request.token}\t{request.body}\n")
        file.flush()
        options = ["--threads", "1", "--connections", str(connections), "--script", str(_SCRIPT)]
        options += ["--duration", str(max(1, round(seconds))), "--timeout", str(_ANSWER_SECONDS)]
        values = [file.name, f"{new_id()}-", "once" if plan.once else "repeat"]
        with subprocess.Popen(
            [wrk, *options, plan.url, "--", *values], stdout=subprocess.PIPE, text=True
        ) as process:
            output = ""
            for line in process.stdout or ():
                output += line
                if line == _ALL_ANSWERED:
                    # Otherwise wrk would wait for the end of its duration.
                    process.send_signal(signal.SIGINT)
    _, _, result = output.partition("\nRESULT ")
    result, _, failure = result.partition("\nFAILURE ")
    if process.returncode != 0 or not result:
        raise SystemExit(f"wrk failed with {process.returncode}: {output}")
    fields = json.loads(result)
    statuses: dict[str, int] = fields["statuses"]
    expected = statuses.pop(str(plan.expected), 0)
    if fields["broken"]:
        statuses["broken"] = fields["broken"]
    if statuses:
        print(f"{statuses}, e.g. {failure.strip()}", file=sys.stderr)
    return Answers(fields["seconds"], expected, fields["p50_ms"], fields["p99_ms"], statuses)


class Connection:
    """A connection for sequential requests, without the cost of an HTTP library."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    @classmethod
    async def open(cls, url: str) -> "Connection":
        address = urlsplit(url)
        return cls(*await asyncio.open_connection(address.hostname, address.port))

    async def send(self, request: Request, *, key: str = "") -> tuple[int, bytes]:
        """The answer's status and body."""
        self._writer.write(request.encoded(key or str(new_id())))
        head = await self._reader.readuntil(b"\r\n\r\n")
        length = int(head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0])
        return int(head[9:12]), await self._reader.readexactly(length)

    def close(self) -> None:
        self._writer.close()


async def _run_client(plan: Plan, connections: int, seconds: float) -> Answers:
    statuses: Counter[str] = Counter()
    durations: list[float] = []
    start = time.perf_counter()
    sent = 0

    async def send_requests(connection: Connection) -> None:
        nonlocal sent
        while time.perf_counter() < start + seconds:
            if plan.once and sent == len(plan.requests):
                return
            request = plan.requests[sent % len(plan.requests)]
            sent += 1
            sent_time = time.perf_counter()
            status, body = await connection.send(request)
            durations.append(time.perf_counter() - sent_time)
            statuses[str(status)] += 1
            if status != plan.expected and statuses[str(status)] == 1:
                print(f"{status} {body.decode()}", file=sys.stderr)

    opened = [await Connection.open(plan.url) for _ in range(connections)]
    await asyncio.gather(*map(send_requests, opened))
    elapsed = time.perf_counter() - start
    for connection in opened:
        connection.close()
    expected = statuses.pop(str(plan.expected), 0)
    p50_ms, p99_ms = (1000 * percentile(durations, percent) for percent in (50, 99))
    return Answers(elapsed, expected, p50_ms, p99_ms, dict(statuses))
