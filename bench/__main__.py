"""Throughput and cost of the mesh, beside a bare echo and a monolith: `make bench`.

    python -m bench --only place_hot,get_event --seconds 5 --rounds 3
    python -m bench compare before/report.json build/bench/report.json

Each round runs the echo, the monolith and the scenarios one after the other; the table has the
medians of the rounds. docs/performance.md explains the columns.
"""

import argparse
import json
import os
import platform
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console

from bench import load, output, processes
from bench.load import Plan, Request
from bench.peers import echo, monolith
from bench.results import ECHO, MONOLITH, Measurement, Report, Result
from bench.scenarios import SCENARIOS, Run, closed_loop
from bench.world import World, a_world
from mesh.paths import BUILD, ROOT

_WARM_UP_SECONDS = 2.0
_OUTPUT = BUILD / "bench"
# As long as a request of the customers.
_ECHO_TEXT = "x" * 120


@dataclass
class Subject:
    """What one line of the table measures."""

    name: str
    run: Run
    pids: Mapping[str, int]
    home: Path | None = None
    result: Result = field(default_factory=lambda: Result(""))

    def measure(self, seconds: float) -> Measurement:
        before = processes.cpu_seconds(self.pids)
        batches = processes.batch_counters(self.home) if self.home else {}
        answers = self.run(seconds)
        after = processes.cpu_seconds(self.pids)
        later = processes.batch_counters(self.home) if self.home else {}
        expected = answers.expected or 1
        return Measurement(
            rate=answers.expected / answers.seconds,
            p50_ms=answers.p50_ms,
            p99_ms=answers.p99_ms,
            cpu_ms={name: 1000 * (after[name] - before[name]) / expected for name in after},
            batches=_mean_sizes(batches, later),
            unexpected=answers.unexpected,
            ratios=answers.ratios,
        )


def _mean_sizes(
    before: Mapping[str, tuple[float, float]], after: Mapping[str, tuple[float, float]]
) -> dict[str, float]:
    sizes = {}
    for kind, (requests, count) in after.items():
        requests_before, count_before = before.get(kind, (0.0, 0.0))
        if count > count_before:
            sizes[kind] = (requests - requests_before) / (count - count_before)
    return sizes


def _subjects(world: World, names: list[str], stack: ExitStack) -> list[Subject]:
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="boxoffice-")))
    bare = stack.enter_context(echo.running_echo(world.url, folder))
    peer, offer_id = stack.enter_context(monolith.running_monolith(world.url, world.sockets))
    pids = processes.mesh_pids(world.mesh.home)
    text, order = json.dumps({"text": _ECHO_TEXT}), json.dumps({"offer_id": offer_id, "quantity": 1})
    echoes = [Request("POST", echo.PATH, token, text) for token in world.tokens]
    orders = [Request("POST", monolith.PATH, token, order) for token in world.tokens]
    return [
        Subject(ECHO, closed_loop(Plan(bare.url, echoes)), bare.pids, result=Result("Bare echo")),
        Subject(
            MONOLITH,
            closed_loop(Plan(peer.url, orders, expected=201)),
            {**peer.pids, "postgres": pids["postgres"]},
            result=Result("Monolith, one hot offer"),
        ),
        *(
            Subject(
                name,
                SCENARIOS[name].prepare(world),
                pids,
                world.mesh.home,
                Result(SCENARIOS[name].title, SCENARIOS[name].goals),
            )
            for name in names
        ),
    ]


def _measure(arguments: argparse.Namespace) -> Report:
    names = arguments.only.split(",") if arguments.only else list(SCENARIOS)
    with ExitStack() as stack:
        world = stack.enter_context(a_world(arguments.customers, arguments.checkout.resolve()))
        subjects = _subjects(world, names, stack)
        for subject in subjects:
            subject.measure(_WARM_UP_SECONDS)
        for number in range(arguments.rounds):
            for subject in subjects:
                measured = subject.measure(arguments.seconds)
                subject.result.rounds.append(measured)
                print(
                    f"round {number + 1}: {subject.name} {measured.rate:,.1f}/s",
                    dict(measured.unexpected) or "",
                    flush=True,
                )
        return Report(
            about=_about(arguments),
            results={subject.name: subject.result for subject in subjects},
            memory_mib=processes.rss_mib(processes.mesh_pids(world.mesh.home)),
        )


def _about(arguments: argparse.Namespace) -> dict[str, str]:
    version = subprocess.run(
        ["git", "-C", str(arguments.checkout), "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "version": version.stdout.strip(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}",
        "load": f"64 connections from {load.GENERATOR}",
        "rounds": f"{arguments.rounds} of {arguments.seconds:g} s",
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--only", default="", help=f"some of {', '.join(SCENARIOS)}")
    parser.add_argument("--seconds", type=float, default=10.0, help="of each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--customers", type=int, default=128)
    parser.add_argument("--checkout", type=Path, default=ROOT, help="measure another checkout")
    parser.add_argument("--output", type=Path, default=_OUTPUT, help="folder of the report")
    arguments = parser.parse_args()
    unknown = set(filter(None, arguments.only.split(","))) - set(SCENARIOS)
    if unknown:
        parser.error(f"no such scenario: {', '.join(unknown)}. Scenarios: {', '.join(SCENARIOS)}")
    report = _measure(arguments)
    written = output.write(report, arguments.output)
    output.show(report, Console(width=200))
    print("Written:", *written)
    return 1 if report.findings else 0


def _compare() -> int:
    before, after = (output.read(Path(file)) for file in sys.argv[2:4])
    output.show_comparison(before, after, Console(width=120))
    return 0


if __name__ == "__main__":
    sys.exit(_compare() if sys.argv[1:2] == ["compare"] else main())
