"""The report as a picture: throughput of each scenario as a ratio to the echo, and its goal."""

import sys
from pathlib import Path

from bench.peers.process import PACKAGES
from bench.results import BenchmarkReport

_WIDTH, _ROW, _LEFT, _TOP = 1000, 34, 380, 60
_SCALE = 1.0
_BAR, _MISSED, _TEXT, _LINE = "#3a7d44", "#c8553d", "#222222", "#999999"


def write(report: BenchmarkReport, file: Path) -> None:
    """Writes a PNG. Needs Pillow, which `launcher/bootstrap.py --bench` installs."""
    sys.path.append(str(PACKAGES))
    from PIL import Image, ImageDraw, ImageFont

    rows = [
        (report.results[name], ratio)
        for name in report.results
        if (ratio := report.ratios(name).get("of echo")) is not None
    ]
    image = Image.new("RGB", (_WIDTH, _TOP + _ROW * len(rows) + 20), "white")
    draw, font = ImageDraw.Draw(image), ImageFont.load_default(16)
    title = "Answers per second, as a ratio to a bare echo behind Envoy (line: goal)"
    draw.text((20, 20), f"{title}, version {report.about.get('version', '')}", _TEXT, font)
    for number, (result, ratio) in enumerate(rows):
        y = _TOP + number * _ROW
        goal = next((goal for goal in result.goals if goal.ratio == "of echo"), None)
        is_missed = goal is not None and not goal.is_met(ratio)
        end = _x(ratio)
        draw.text((20, y + 4), result.title, _TEXT, font)
        draw.rectangle((_LEFT, y + 2, end, y + _ROW - 8), _MISSED if is_missed else _BAR)
        draw.text((end + 8, y + 4), f"{ratio:.2f}  ({result.median('rate'):,.0f}/s)", _TEXT, font)
        if goal is not None:
            draw.line((_x(goal.bound), y - 2, _x(goal.bound), y + _ROW - 4), _LINE, 3)
    image.save(file)


def _x(ratio: float) -> int:
    return round(_LEFT + min(ratio, _SCALE) / _SCALE * (_WIDTH - _LEFT - 140))
