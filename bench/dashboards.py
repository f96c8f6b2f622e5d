"""Images of the dashboards with the data of a demo: `python -m bench.dashboards`.

Scrapes a mesh once per second during a demo, evaluates the queries of every panel as Grafana does,
and writes build/dashboards/NAME.svg.
"""

import argparse
import asyncio
import html
import json
import math
import os
import re
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx

from demo.target import DemoSettings, Target, open_target
from deploy.dashboards import DASHBOARDS, Dashboard, Panel
from launcher import scrape
from mesh.paths import ROOT
from testing.promql import Series, evaluate

_FOLDER = ROOT / "build" / "dashboards"
# Grafana uses four scrape intervals.
_RATE_INTERVAL = "4s"
_AFTERWARDS_SECONDS = 10
_COLUMNS, _WIDTH, _HEIGHT = 3, 480, 280
# The bottom margin has room for five lines of legends.
_MARGIN_LEFT, _MARGIN_TOP, _MARGIN_RIGHT, _MARGIN_BOTTOM = 62, 34, 12, 96
_COLOURS = [
    "#7eb26d",
    "#eab839",
    "#6ed0e0",
    "#ef843c",
    "#e24d42",
    "#1f78c1",
    "#ba43a9",
    "#705da0",
    "#508642",
    "#cca300",
]
_MAX_LINES = 10

Line = tuple[str, list[tuple[float, float]]]
"""A legend and its points: seconds since the start, and values."""


@dataclass(frozen=True, slots=True)
class Recording:
    """The scraped series, and the times of the scrapes."""

    series: Series
    times: list[float]


async def record(target: Target, customers: int) -> Recording:
    """Runs the demo on a mesh. Returns what was scraped during it and shortly after."""
    recording = Recording(Series(), [])
    demo = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-m", "demo", "--url", target.url, "--customers", str(customers)),
        env={
            **os.environ,
            "BOXOFFICE_HOME": str(target.home),
            "BOXOFFICE_ADMIN_REGISTRATION_SECRET": target.admin_secret,
        },
    )
    ended = asyncio.create_task(demo.wait())
    end = math.inf
    async with httpx.AsyncClient(timeout=1, trust_env=False) as client:
        while time.time() < end:
            pause = asyncio.create_task(asyncio.sleep(1))
            await _scrape(client, target.home, recording)
            await pause
            if ended.done() and end == math.inf:
                end = time.time() + _AFTERWARDS_SECONDS
    return recording


async def _scrape(client: httpx.AsyncClient, home: Path, recording: Recording) -> None:
    async def page(url: str) -> str | None:
        try:
            return (await client.get(url)).text
        except httpx.HTTPError:
            return None

    targets = [
        (group["labels"], address)
        for group in json.loads(scrape.path(home).read_text())
        for address in group["targets"]
    ]
    now = time.time()
    pages = await asyncio.gather(
        *(
            page(f"http://{address}{labels.get('__metrics_path__', '/metrics')}")
            for labels, address in targets
        )
    )
    for (labels, address), text in zip(targets, pages, strict=True):
        recording.series.scraped(text, time=now, job=labels["job"], instance=address)
    recording.times.append(now)


def lines(panel: Panel, recording: Recording) -> list[Line]:
    """A line for each set of labels in the results of the panel's queries."""
    points: dict[str, list[tuple[float, float]]] = {}
    for query, legend in panel.queries:
        expression = query.replace("$__rate_interval", _RATE_INTERVAL)
        for moment in recording.times:
            for labels, value in evaluate(expression, recording.series, moment).items():
                values = dict(labels)
                name = re.sub(r"{{(\w+)}}", lambda match: values.get(match[1], ""), legend)  # noqa: B023  used at once
                if math.isfinite(value):
                    points.setdefault(name, []).append((moment - recording.times[0], value))
    return sorted(points.items(), key=lambda line: -max(value for _, value in line[1]))


def picture(dashboard: Dashboard, recording: Recording) -> str:
    """The dashboard as an SVG."""
    rows = math.ceil(len(dashboard.panels) / _COLUMNS)
    seconds = max(recording.times[-1] - recording.times[0], 1)
    shown = (
        f'<g transform="translate({number % _COLUMNS * _WIDTH},{number // _COLUMNS * _HEIGHT})">'
        f"{_drawn(panel, lines(panel, recording), seconds)}</g>"
        for number, panel in enumerate(dashboard.panels)
    )
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{_COLUMNS * _WIDTH}" '
        f'height="{rows * _HEIGHT}" font-family="sans-serif" font-size="11">'
        f'<rect width="100%" height="100%" fill="white"/>{"".join(shown)}</svg>\n'
    )


def _drawn(panel: Panel, drawn: Sequence[Line], seconds: float) -> str:
    width, height = _WIDTH - _MARGIN_LEFT - _MARGIN_RIGHT, _HEIGHT - _MARGIN_TOP - _MARGIN_BOTTOM
    maximum = max((value for _, points in drawn for _, value in points), default=0) or 1
    parts = [f'<text x="{_MARGIN_LEFT}" y="20" font-size="13">{html.escape(panel.title)}</text>']
    for step in range(5):
        y = _MARGIN_TOP + height - height * step / 4
        parts.append(
            f'<path d="M{_MARGIN_LEFT} {y:.1f}h{width}" stroke="#ddd"/><text x="{_MARGIN_LEFT - 6}" '
            f'y="{y + 4:.1f}" text-anchor="end">{_text(maximum * step / 4, panel.unit)}</text>'
        )
    parts.append(
        f'<text x="{_MARGIN_LEFT + width}" y="{_MARGIN_TOP + height + 14}" text-anchor="end">'
    )
    parts.append(f"{seconds:.0f} s</text>")
    if not drawn:
        parts.append(
            f'<text x="{_MARGIN_LEFT + width / 2}" y="{_MARGIN_TOP + height / 2}">no data</text>'
        )
    x, y = float(_MARGIN_LEFT), _MARGIN_TOP + height + 28.0
    for number, (name, points) in enumerate(drawn[:_MAX_LINES]):
        colour = _COLOURS[number]
        path = " ".join(
            f"{_MARGIN_LEFT + width * at / seconds:.1f},{_MARGIN_TOP + height - height * value / maximum:.1f}"
            for at, value in points
        )
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="1.5"/>'
        )
        if x + 6.2 * len(name) > _WIDTH - _MARGIN_RIGHT:
            x, y = float(_MARGIN_LEFT), y + 13
        parts.append(f'<text x="{x:.0f}" y="{y:.0f}" fill="{colour}">{html.escape(name)}</text>')
        x += 6.2 * len(name) + 14
    return "".join(parts)


def _text(value: float, unit: str) -> str:
    if unit == "percentunit":
        return f"{value:.0%}"
    if unit == "bytes":
        return f"{value / 2**20:.0f} MiB"
    if unit == "s" and 0 < value < 1:
        return f"{value * 1000:.3g} ms"
    if value >= 10_000:
        return f"{value / 1e6:.3g} M"
    return f"{value:.3g}" + (" s" if unit == "s" else "")


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--customers", type=int, default=300)
    customers: int = parser.parse_args().customers
    async with open_target(DemoSettings(), url="", customers=customers, say=print) as target:
        recording = await record(target, customers)
    _FOLDER.mkdir(parents=True, exist_ok=True)
    for dashboard in DASHBOARDS:
        file = _FOLDER / f"{dashboard.name}.svg"
        file.write_text(picture(dashboard, recording))
        print(file)


if __name__ == "__main__":
    asyncio.run(main())
