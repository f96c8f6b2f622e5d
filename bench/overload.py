"""Goodput under overload: calls sent at a fixed rate above the peak, whatever their durations.

A closed loop measures the *peak*. The ratios are successful answers per second (the goodput) at
multiples of the peak, divided by the peak.
"""

import asyncio
import random
import time
from collections import Counter
from collections.abc import Sequence

from bench.load import Answers, Connection, Request
from bench.results import percentile

_MULTIPLES = (2, 5)
_CONNECTIONS = 32
_TICK_SECONDS = 0.002
# Answers of an overloaded mesh: refused at once, and too late.
_EXPECTED = ("429", "503", "504")


async def run_overload(url: str, requests: Sequence[Request], seconds: float) -> Answers:
    """The answers of all loads together, with the durations of the successful ones."""
    generator = _Generator(url, requests)
    start = time.perf_counter()
    peak = await generator.closed(_CONNECTIONS, seconds)
    ratios = {}
    for multiple in _MULTIPLES:
        goodput = await generator.open(multiple * peak, seconds)
        ratios[f"at {multiple} × peak"] = goodput / peak
    generator.close()
    elapsed, durations = time.perf_counter() - start, generator.durations
    p50_ms, p99_ms = (1000 * percentile(durations, percent) for percent in (50, 99))
    faults = {key: count for key, count in generator.others.items() if key not in _EXPECTED}
    return Answers(elapsed, len(durations), p50_ms, p99_ms, faults, ratios)


class _Generator:
    """Sends random requests, over as many kept-alive connections as there are concurrent calls."""

    def __init__(self, url: str, requests: Sequence[Request]) -> None:
        self._url = url
        self._requests = requests
        self._idle: list[Connection] = []
        self._random = random.Random(1)
        self.durations: list[float] = []
        self.others: Counter[str] = Counter()

    async def closed(self, connections: int, seconds: float) -> float:
        """Successes per second of connections that wait for each answer."""
        start = time.perf_counter()

        async def send() -> int:
            successes = 0
            while time.perf_counter() < start + seconds:
                successes += await self._call()
            return successes

        successes = sum(await asyncio.gather(*(send() for _ in range(connections))))
        return successes / (time.perf_counter() - start)

    async def open(self, rate: float, seconds: float) -> float:
        """Successes per second, at `rate` calls sent per second."""
        start, sent, successes = time.perf_counter(), 0, 0
        running: set[asyncio.Task[bool]] = set()

        def count(call: asyncio.Task[bool]) -> None:
            nonlocal successes
            running.discard(call)
            # Answers after the end of the load do not count.
            successes += call.result() and time.perf_counter() < start + seconds

        while (elapsed := time.perf_counter() - start) < seconds:
            while sent < elapsed * rate:
                sent += 1
                call = asyncio.create_task(self._call())
                running.add(call)
                call.add_done_callback(count)
            await asyncio.sleep(_TICK_SECONDS)
        if running:
            await asyncio.wait(set(running))
        return successes / seconds

    async def _call(self) -> bool:
        connection = self._idle.pop() if self._idle else await Connection.open(self._url)
        start = time.perf_counter()
        status, _ = await connection.send(self._random.choice(self._requests))
        self._idle.append(connection)
        if status in (200, 201):
            self.durations.append(time.perf_counter() - start)
            return True
        self.others[str(status)] += 1
        return False

    def close(self) -> None:
        for connection in self._idle:
            connection.close()
