"""A report as a table and as JSON, and two reports side by side."""

import json
from collections.abc import Mapping
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.results import BenchmarkReport, compare

WIDTH = 200


def write(report: BenchmarkReport, folder: Path) -> list[Path]:
    """Writes report.json and report.txt; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    data, text = folder / "report.json", folder / "report.txt"
    data.write_text(json.dumps(report.as_json(), indent=1, ensure_ascii=False) + "\n")
    with text.open("w") as file:
        show(report, Console(file=file, width=WIDTH))
    return [data, text]


def read(file: Path) -> BenchmarkReport:
    return BenchmarkReport.from_json(json.loads(file.read_text()))


def show(report: BenchmarkReport, console: Console) -> None:
    for name, value in report.about.items():
        console.print(f"{name}: {value}", highlight=False)
    table = _table("scenario", "answers/s", "of echo", "p50 ms", "p99 ms", "unexpected")
    table.add_column("goals")
    table.add_column("CPU ms per answer")
    table.add_column("batch sizes")
    for name, result in report.results.items():
        ratios = report.ratios(name)
        table.add_row(
            result.title,
            f"{result.median('rate'):,.1f}",
            f"{ratios['of echo']:.2f}" if "of echo" in ratios else "",
            *(f"{ms:.1f}" if (ms := result.median(key)) else "" for key in ("p50_ms", "p99_ms")),
            str(result.unexpected or ""),
            "\n".join(_goals(report, name)),
            _cpu(result.medians("cpu_ms")),
            ", ".join(f"{kind} {size:.1f}" for kind, size in result.medians("batches").items()),
        )
    console.print(table)
    if report.memory_mib:
        total = sum(report.memory_mib.values())
        parts = ", ".join(f"{name} {mib:.0f}" for name, mib in report.memory_mib.items())
        console.print(f"Memory in MiB: {total:,.0f} = {parts}", highlight=False)
    for finding in report.findings:
        console.print(f"AUDIT: {finding}", highlight=False)


def show_comparison(before: BenchmarkReport, after: BenchmarkReport, console: Console) -> None:
    table = _table(
        "scenario", "before /s", "after /s", "after ÷ before", "of echo", "after", "ratio"
    )
    for name, rate, new_rate, share, new_share in compare(before, after):
        table.add_row(
            after.results[name].title,
            f"{rate:,.1f}",
            f"{new_rate:,.1f}",
            _quotient(new_rate, rate),
            f"{share:.2f}" if share else "",
            f"{new_share:.2f}" if new_share else "",
            _quotient(new_share, share),
        )
    console.print(table)


def _table(first: str, *columns: str) -> Table:
    table = Table()
    table.add_column(first)
    for column in columns:
        table.add_column(column, justify="right")
    return table


def _goals(report: BenchmarkReport, name: str) -> list[str]:
    lines = []
    for goal in report.results[name].goals:
        met = report.verdict(name, goal)
        if met is not None:
            value = report.ratios(name)[goal.ratio]
            mark = "✓" if met else "✗"
            lines.append(f"{mark} {value:.2f} {goal.ratio}, goal {goal}")
    return lines


def _cpu(milliseconds: Mapping[str, float]) -> str:
    shown = [f"{name} {value:.2f}" for name, value in milliseconds.items() if value >= 0.01]
    return f"{sum(milliseconds.values()):.2f} = " + ", ".join(shown) if shown else ""


def _quotient(after: float, before: float) -> str:
    return f"{after / before:.2f}" if before else ""
