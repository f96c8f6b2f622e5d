"""More than fits: what is still served in time? `python -m bench.overload`.

    python -m bench.overload --seconds 20 --rounds 3
    python -m bench.overload --against ../before

First customers that wait for each answer find out what the mesh can do at most: two reads of an
event for each booking of a place, the *peak*. Then an open loop sends a multiple of that, however
late the answers are, as a crowd does that does not know of each other; and the peak again, to see
that it is as before.

Printed for each load are the calls that were answered well a second and their share of the peak
(the *goodput*), how many were refused at once as too many (429) or too late (503, 504), and how
long each kind of answer took. Any other answer is a fault and printed. In the end the audit of the
event must find nothing, and every place that was answered for. Rounds take turns, and with
--against two checkouts, each with a mesh of its own that rests while the other works.
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
    """The answers of one load in all rounds: seconds by what they were."""

    goodputs: list[float] = field(default_factory=list)
    peaks: list[float] = field(default_factory=list)
    seconds: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))

    @property
    def shares(self) -> list[float]:
        return [good / peak for good, peak in zip(self.goodputs, self.peaks, strict=True)]


def _what(status: int) -> str:
    if status in (200, 201):
        return "well"
    if status == httpx.codes.TOO_MANY_REQUESTS:
        return "refused"
    if status in (503, 504):
        return "late"
    return "wrong"


class Crowd:
    """Sends calls to one mesh. Connections are kept, and as many as there are calls at once."""

    def __init__(self, side: Side) -> None:
        self._side = side
        self._idle: list[Caller] = []
        self._random = random.Random(1)

    async def call(self, seconds: defaultdict[str, list[float]]) -> str:
        kind, token = self._random.choice(_KINDS), self._random.choice(self._side.tokens)
        caller = self._idle.pop() if self._idle else await Caller.connect(self._side.mesh.url)
        began = time.perf_counter()
        status, body = await caller.call(self._side.request(kind, token))
        self._idle.append(caller)
        what = _what(status)
        if what == "wrong":
            print(f"{kind}: {status} {body.decode()}", file=sys.stderr)
        seconds[what].append(time.perf_counter() - began)
        # A booking whose answer was late may be there all the same.
        (self._side.placed if what == "well" else self._side.refused)[kind] += 1
        return what

    async def closed(self, callers: int, seconds: float) -> float:
        """Calls a second of callers that wait for each answer."""
        until = time.perf_counter() + seconds
        answers: defaultdict[str, list[float]] = defaultdict(list)

        async def calls() -> None:
            while time.perf_counter() < until:
                await self.call(answers)

        began = time.perf_counter()
        await asyncio.gather(*(calls() for _ in range(callers)))
        return len(answers["well"]) / (time.perf_counter() - began)

    async def open(
        self, rate: float, seconds: float, answers: defaultdict[str, list[float]]
    ) -> float:
        """Calls answered well a second, when so many are sent a second, come what may."""
        began, sent = time.perf_counter(), 0
        well = 0
        calls: set[asyncio.Task[str]] = set()

        def count(call: asyncio.Task[str]) -> None:
            nonlocal well
            calls.discard(call)
            # What comes when all is over serves nobody of this load.
            well += call.result() == "well" and time.perf_counter() < began + seconds

        while (elapsed := time.perf_counter() - began) < seconds:
            while sent < elapsed * rate:
                sent += 1
                call = asyncio.create_task(self.call(answers))
                calls.add(call)
                call.add_done_callback(count)
            await asyncio.sleep(0.002)
        if calls:
            await asyncio.wait(set(calls))
        return well / seconds

    def close(self) -> None:
        for caller in self._idle:
            caller.close()


async def _round(
    side: Side, loads: Sequence[float], seconds: float, outcomes: dict[str, Outcome]
) -> None:
    crowd = Crowd(side)
    await crowd.closed(_CALLERS, _WARM_UP_SECONDS)
    peak = await crowd.closed(_CALLERS, seconds)
    for name, load in [(f"{load:g} ×", load) for load in loads] + [(_AFTERWARDS, 0.0)]:
        outcome = outcomes[name]
        outcome.peaks.append(peak)
        if load:
            goodput = await crowd.open(load * peak, seconds, outcome.seconds)
        else:
            goodput = await crowd.closed(_CALLERS, seconds)
        outcome.goodputs.append(goodput)
    crowd.close()


def _show(side: Side, outcomes: dict[str, Outcome]) -> None:
    table = Table(title=f"{side.name}: medians of the rounds")
    for column in ("load", "well/s", "of the peak", "refused", "late", "well p50", "well p99",
                   "refused p99 ms"):  # fmt: skip
        table.add_column(column, justify="right")
    for name, outcome in outcomes.items():
        well, refused, late = (outcome.seconds[what] for what in ("well", "refused", "late"))
        total = len(well) + len(refused) + len(late)
        table.add_row(
            name,
            f"{statistics.median(outcome.goodputs):.0f}",
            f"{statistics.median(outcome.shares):.2f}",
            *(f"{len(each) / total:.1%}" if total else "" for each in (refused, late)),
            _percentile(well, 50),
            _percentile(well, 99),
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
    parser.add_argument("--loads", type=float, nargs="+", default=_LOADS, help="times the peak")
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
            faults += sum(len(each.seconds["wrong"]) for each in outcomes.values())
    print("The ledgers add up to what was answered.")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
