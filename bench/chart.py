"""The report as a picture: throughput of each scenario as a ratio to the echo, and its goal."""

from collections.abc import Iterator
from pathlib import Path

from bench.results import BenchmarkReport, Result
from tools.reporting import png
from tools.reporting.drawing import Drawing, Line, Rectangle, Style, Text

_WIDTH, _ROW, _LEFT = 1000, 34, 380
_SCALE = 1.0


def write(report: BenchmarkReport, file: Path) -> None:
    """Writes a PNG. Raises PillowMissingError."""
    rows = [
        (report.results[name], ratio)
        for name in report.results
        if (ratio := report.ratios(name).get("of echo")) is not None
    ]
    shapes = [
        shape
        for number, (result, ratio) in enumerate(rows)
        for shape in _row(number * _ROW, result, ratio)
    ]
    png.write(
        file,
        title=f"Benchmark of version {report.about.get('version', '')}",
        lines=[],
        charts=[
            (
                "Answers per second, as a ratio to a bare echo behind Envoy (line: goal)",
                Drawing(_WIDTH, _ROW * len(rows), shapes),
            )
        ],
        columns=1,
    )


def _row(y: float, result: Result, ratio: float) -> Iterator[Text | Rectangle | Line]:
    goal = next((goal for goal in result.goals if goal.ratio == "of echo"), None)
    is_missed = goal is not None and not goal.is_met(ratio)
    style, end = Style.SECOND if is_missed else Style.GOOD, _x(ratio)
    yield Text(0, y + 17, result.title)
    yield Rectangle(_LEFT, y + 2, end - _LEFT, _ROW - 10, style)
    yield Text(end + 8, y + 17, f"{ratio:.2f}  ({result.median('rate'):,.0f}/s)")
    if goal is not None:
        x = _x(goal.bound)
        yield Line([(x, y - 2), (x, y + _ROW - 4)], Style.FOURTH, 3)


def _x(ratio: float) -> float:
    return _LEFT + min(ratio, _SCALE) / _SCALE * (_WIDTH - _LEFT - 140)
