"""Goodput under overload: `python -m bench.overload`.

    python -m bench.overload --seconds 20 --rounds 3
    python -m bench.overload --against ../before

A closed loop of callers, with two reads of an event per booking, measures the maximum throughput,
the *peak*. Then an open loop sends multiples of the peak at a fixed rate, whatever the durations.
The closed loop runs again afterwards, to show that the mesh has recovered.

For each load it prints successful calls per second (the *goodput*), their share of the peak, the
shares of calls refused at once (429) and too late (503, 504), and durations. Any other answer is a
fault and printed. At the end the stock audit must report no difference and contain every place that
was answered for. Rounds alternate, with --against between two checkouts with a mesh each.
"""

import argparse
import asyncio
import random
import statistics
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import httpx
from rich.console import Console
from rich.table import Table

from bench.place_bookings import Caller, Side, audit, sides_of

_CALLERS = 32
_KINDS = ("read", "read", "hold")
_LOADS = (1.0, 2.0, 5.0)
_AFTERWARDS = "afterwards"
_WARM_UP_SECONDS = 3.0


@dataclass
class Outcome:
    """The results of one load in all rounds; `seconds` are durations by kind of answer."""

    goodputs: list[float] = field(default_factory=list)
    peaks: list[float] = field(default_factory=list)
    seconds: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    @property
    def shares(self) -> list[float]:
        return [goodput / peak for goodput, peak in zip(self.goodputs, self.peaks, strict=True)]


def _kind_of_answer(status: int) -> str:
    if status in (200, 201):
        return "success"
    if status == httpx.codes.TOO_MANY_REQUESTS:
        return "refused"
    if status in (503, 504):
        return "late"
    return "fault"


class LoadGenerator:
    """Sends calls to one mesh, over as many kept-alive connections as there are concurrent calls."""

    def __init__(self, side: Side) -> None:
        self._side = side
        self._idle: list[Caller] = []
        self._random = random.Random(1)

    async def call(self, seconds: defaultdict[str, list[float]]) -> str:
        kind, token = self._random.choice(_KINDS), self._random.choice(self._side.tokens)
        caller = self._idle.pop() if self._idle else await Caller.connect(self._side.mesh.url)
        start = time.perf_counter()
        status, body = await caller.call(self._side.request(kind, token))
        self._idle.append(caller)
        answer = _kind_of_answer(status)
        if answer == "fault":
            print(f"{kind}: {status} {body.decode()}", file=sys.stderr)
        seconds[answer].append(time.perf_counter() - start)
        # A booking whose answer was late may exist.
        (self._side.placed if answer == "success" else self._side.refused)[kind] += 1
        return answer

    async def closed(self, callers: int, seconds: float) -> float:
        """Successful calls per second of callers that wait for each answer."""
        end = time.perf_counter() + seconds
        answers: defaultdict[str, list[float]] = defaultdict(list)

        async def send_calls() -> None:
            while time.perf_counter() < end:
                await self.call(answers)

        start = time.perf_counter()
        await asyncio.gather(*(send_calls() for _ in range(callers)))
        return len(answers["success"]) / (time.perf_counter() - start)

    async def open(
        self, rate: float, seconds: float, answers: defaultdict[str, list[float]]
    ) -> float:
        """Successful calls per second, at `rate` calls sent per second."""
        start, sent = time.perf_counter(), 0
        successes = 0
        running: set[asyncio.Task[str]] = set()

        def count(call: asyncio.Task[str]) -> None:
            nonlocal successes
            running.discard(call)
            # Answers after the end of the load do not count.
            successes += call.result() == "success" and time.perf_counter() < start + seconds

        while (elapsed := time.perf_counter() - start) < seconds:
            while sent < elapsed * rate:
                sent += 1
                call = asyncio.create_task(self.call(answers))
                running.add(call)
                call.add_done_callback(count)
            await asyncio.sleep(0.002)
        if running:
            await asyncio.wait(set(running))
        return successes / seconds

    def close(self) -> None:
        for caller in self._idle:
            caller.close()


async def _round(
    side: Side, loads: Sequence[float], seconds: float, outcomes: dict[str, Outcome]
) -> None:
    generator = LoadGenerator(side)
    await generator.closed(_CALLERS, _WARM_UP_SECONDS)
    peak = await generator.closed(_CALLERS, seconds)
    for name, load in [(f"{load:g} ×", load) for load in loads] + [(_AFTERWARDS, 0.0)]:
        outcome = outcomes[name]
        outcome.peaks.append(peak)
        if load:
            goodput = await generator.open(load * peak, seconds, outcome.seconds)
        else:
            goodput = await generator.closed(_CALLERS, seconds)
        outcome.goodputs.append(goodput)
    generator.close()


def _show(side: Side, outcomes: dict[str, Outcome]) -> None:
    table = Table(title=f"{side.name}: medians of the rounds")
    for column in ("load", "successes/s", "of the peak", "refused", "late", "success p50",
                   "success p99", "refused p99 ms"):  # fmt: skip
        table.add_column(column, justify="right")
    for name, outcome in outcomes.items():
        success, refused, late = (
            outcome.seconds[answer] for answer in ("success", "refused", "late")
        )
        total = len(success) + len(refused) + len(late)
        table.add_row(
            name,
            f"{statistics.median(outcome.goodputs):.0f}",
            f"{statistics.median(outcome.shares):.2f}",
            *(f"{len(answers) / total:.1%}" if total else "" for answers in (refused, late)),
            _percentile(success, 50),
            _percentile(success, 99),
            _percentile(refused, 99),
        )
    Console(width=120).print(table)


def _percentile(seconds: Sequence[float], percent: int) -> str:
    if len(seconds) < 2:
        return ""
    return f"{1000 * statistics.quantiles(seconds, n=100)[percent - 1]:.0f}"


def _measured(
    sides: Sequence[Side], loads: Sequence[float], rounds: int, seconds: float
) -> Iterator[tuple[Side, dict[str, Outcome]]]:
    measured: dict[str, dict[str, Outcome]] = {side.name: defaultdict(Outcome) for side in sides}
    for number in range(rounds):
        for side in sides if number % 2 else reversed(sides):
            asyncio.run(_round(side, loads, seconds, measured[side.name]))
    for side in sides:
        yield side, measured[side.name]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--loads", type=float, nargs="+", default=_LOADS, help="multiples of the peak"
    )
    parser.add_argument("--seconds", type=float, default=20.0, help="of each load")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--against", type=Path, metavar="CHECKOUT", help="another checkout")
    arguments = parser.parse_args()
    faults = 0
    with ExitStack() as stack:
        sides = list(sides_of(arguments.against, _CALLERS, stack))
        for side, outcomes in _measured(
            sides, arguments.loads, arguments.rounds, arguments.seconds
        ):
            _show(side, outcomes)
            audit(side)
            faults += sum(len(outcome.seconds["fault"]) for outcome in outcomes.values())
    print("The stock ledgers match the answers.")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
