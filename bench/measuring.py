"""Measures the scenarios in rounds, beside the peers."""

import json
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from bench import processes
from bench.load import Plan, Request
from bench.peers import echo, monolith
from bench.results import ECHO, MONOLITH, BenchmarkReport, Measurement, Result
from bench.scenarios import SCENARIOS, Run, closed_loop
from bench.world import World

_WARM_UP_SECONDS = 2.0
# As long as a request of PlaceBooking.
_ECHO_TEXT = "x" * 120


@dataclass
class Subject:
    """What one line of the table measures. `answered` counts the bookings that it placed."""

    name: str
    run: Run
    pids: Mapping[str, int]
    home: Path | None = None
    result: Result = field(default_factory=lambda: Result(""))
    once: bool = False
    books: bool = False
    answered: int = 0

    def measure(self, seconds: float) -> Measurement:
        # Outside of the measured CPU time: reading metrics costs the services some.
        batches = processes.batch_counters(self.home) if self.home else {}
        before = processes.cpu_seconds(self.pids)
        answers = self.run(seconds)
        after = processes.cpu_seconds(self.pids)
        later = processes.batch_counters(self.home) if self.home else {}
        self.answered += answers.expected * self.books
        expected = answers.expected or 1
        return Measurement(
            rate=answers.expected / answers.seconds,
            p50_ms=answers.p50_ms,
            p99_ms=answers.p99_ms,
            cpu_ms={name: 1000 * (after[name] - before[name]) / expected for name in after},
            batches=mean_sizes(batches, later),
            unexpected=answers.unexpected,
            ratios=answers.ratios,
        )


def measure(
    world: World, names: Sequence[str], *, rounds: int, seconds: float
) -> tuple[BenchmarkReport, int]:
    """Measures the scenarios called `names`; also returns how many bookings were answered."""
    with ExitStack() as stack:
        peers = _peers(world, stack)
        subjects = list(peers)
        for is_early in (True, False):
            chosen = [name for name in names if SCENARIOS[name].early is is_early]
            if chosen:
                stage = [_subject(world, name) for name in chosen]
                _run_rounds([*peers, *stage], rounds, seconds)
                subjects += stage
    report = BenchmarkReport(
        results={subject.name: subject.result for subject in subjects},
        memory_mib=processes.rss_mib(processes.mesh_pids(world.mesh.home)),
    )
    return report, sum(subject.answered for subject in subjects)


def mean_sizes(
    before: Mapping[str, tuple[float, float]], after: Mapping[str, tuple[float, float]]
) -> dict[str, float]:
    """The mean sizes of the batches between two readings of `processes.batch_counters`."""
    sizes = {}
    for kind, (requests, count) in after.items():
        requests_before, count_before = before.get(kind, (0.0, 0.0))
        if count > count_before:
            sizes[kind] = (requests - requests_before) / (count - count_before)
    return sizes


def _peers(world: World, stack: ExitStack) -> list[Subject]:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="boxoffice-")))
    bare = stack.enter_context(echo.running_echo(world.url, folder))
    peer, offer_id = stack.enter_context(monolith.running_monolith(world.url, world.sockets))
    text = json.dumps({"text": _ECHO_TEXT})
    order = json.dumps({"offer_id": offer_id, "quantity": 1})
    orders = [Request("POST", monolith.PATH, token, order) for token in world.tokens]
    world.echo = Plan(bare.url, [Request("POST", echo.PATH, token, text) for token in world.tokens])
    pids = {**peer.pids, "postgres": processes.mesh_pids(world.mesh.home)["postgres"]}
    return [
        Subject(ECHO, closed_loop(world.echo), bare.pids, result=Result("Bare echo")),
        Subject(
            MONOLITH,
            closed_loop(Plan(peer.url, orders, expected=201)),
            pids,
            result=Result("Monolith, one hot offer"),
        ),
    ]


def _subject(world: World, name: str) -> Subject:
    scenario = SCENARIOS[name]
    print(f"preparing {name}", flush=True)
    return Subject(
        name,
        scenario.prepare(world),
        processes.mesh_pids(world.mesh.home),
        world.mesh.home,
        Result(scenario.title, scenario.goals),
        scenario.once,
        scenario.books,
    )


def _run_rounds(subjects: Iterable[Subject], rounds: int, seconds: float) -> None:
    for subject in subjects:
        if not subject.once:
            subject.measure(_WARM_UP_SECONDS)
    for number in range(rounds):
        for subject in subjects:
            if subject.once and number:
                continue
            measured = subject.measure(seconds)
            subject.result.rounds.append(measured)
            unexpected = f" and {dict(measured.unexpected)}" if measured.unexpected else ""
            print(
                f"round {number + 1}: {subject.name} {measured.rate:,.1f}/s{unexpected}", flush=True
            )
