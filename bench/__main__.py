"""Throughput and cost of the mesh, beside a bare echo and a monolith: `make bench`.

    python -m bench --only place_hot,get_event --seconds 5 --rounds 3
    python -m bench compare before/report.json build/bench/report.json

Each round runs the echo, the monolith and the scenarios one after the other; the table has the
medians of the rounds. docs/performance.md explains the columns.
"""

import argparse
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from bench import chart, load, output
from bench.final_audit import audit
from bench.measuring import measure
from bench.results import BenchmarkReport
from bench.scenarios import CONNECTIONS, SCENARIOS
from bench.world import a_world
from mesh.paths import BUILD, ROOT


def main() -> int:
    arguments = _arguments()
    print(f"Load from {load.GENERATOR}.", flush=True)
    with a_world(
        arguments.customers,
        seats=arguments.seats,
        bookings=arguments.bookings,
        checkout=arguments.checkout.resolve(),
    ) as world:
        report, answered = measure(
            world, arguments.only, rounds=arguments.rounds, seconds=arguments.seconds
        )
        report.about = _about(arguments)
        try:
            print("Auditing.", flush=True)
            report.findings = audit(world, answered)
        finally:
            _write(report, arguments.output)
    print("The audit has no findings." if not report.findings else "The audit has findings.")
    return 1 if report.findings else 0


def _write(report: BenchmarkReport, folder: Path) -> None:
    written = output.write(report, folder)
    chart.write(report, folder / "report.png")
    output.show(report, Console(width=output.WIDTH))
    print("Written:", *written, folder / "report.png")


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument(
        "--only", type=_names, default=list(SCENARIOS), help=f"some of {','.join(SCENARIOS)}"
    )
    parser.add_argument("--seconds", type=float, default=10.0, help="of each round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--customers", type=int, default=128)
    parser.add_argument("--seats", type=int, default=20_000, help="of the seated event")
    parser.add_argument(
        "--bookings", type=int, default=100_000, help="in the full table; the goal is for 2000000"
    )
    parser.add_argument("--checkout", type=Path, default=ROOT, help="measure another checkout")
    parser.add_argument("--output", type=Path, default=BUILD / "bench", help="folder of the report")
    return parser.parse_args()


def _names(text: str) -> list[str]:
    names = text.split(",")
    if unknown := [name for name in names if name not in SCENARIOS]:
        raise argparse.ArgumentTypeError(
            f"no such scenario: {', '.join(unknown)}; there are {', '.join(SCENARIOS)}"
        )
    return names


def _about(arguments: argparse.Namespace) -> dict[str, str]:
    version = subprocess.run(
        ["git", "-C", str(arguments.checkout), "describe", "--always", "--dirty"],
        capture_output=True,
        text=True,
        check=False,
    )
    return {
        "version": version.stdout.strip(),
        "machine": f"{os.cpu_count()} cores, {platform.machine()}, "
        f"Python {platform.python_version()}",
        "load": f"{CONNECTIONS} connections from {load.GENERATOR}",
        "rounds": f"{arguments.rounds} of {arguments.seconds:g} s",
        "bookings in the full table": f"{arguments.bookings:,}",
    }


def _compare(files: Sequence[str]) -> int:
    if len(files) != 2:
        raise SystemExit("usage: python -m bench compare BEFORE.json AFTER.json")
    before, after = (output.read(Path(file)) for file in files)
    output.show_comparison(before, after, Console(width=output.WIDTH))
    return 0


if __name__ == "__main__":
    sys.exit(_compare(sys.argv[2:]) if sys.argv[1:2] == ["compare"] else main())
