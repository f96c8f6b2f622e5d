"""Charts of a run as SVG: calls per second, errors per second, and recoveries, with the faults as
bands. Each band and dot has a tooltip.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from itertools import pairwise

from chaos.checks.history import Outcome
from chaos.faults.processes import Outage
from chaos.result import Result

_WIDTH, _LEFT, _RIGHT, _TOP, _BOTTOM = 1120, 56, 12, 14, 26
_HEIGHT = 190
_TICKS = 4
_LONGEST_TICKS = 12


def charts(result: Result) -> list[tuple[str, str]]:
    """Title and SVG of each chart."""
    seconds = max(1, int(result.ended - result.began) + 1)
    counts = result.history.by_second(result.began)
    bands = list(_bands(result))
    answered = {"answered": counts[Outcome.ANSWERED]}
    others = {
        outcome.value: counts[outcome]
        for outcome in (Outcome.FAILED, Outcome.UNKNOWN, Outcome.LEFT)
    }
    recovered = [
        (outage.healed - result.began, outage.away_seconds, outage)
        for outage in result.outages
        if outage.away_seconds is not None
    ]
    return [
        ("Calls answered per second", _lines(seconds, answered, bands)),
        (
            "Calls without a result per second: failed (5xx), unknown (no answer), left (cancelled)",
            _lines(seconds, others, bands),
        ),
        ("Seconds until serving again, by the end of the fault", _dots(seconds, recovered, bands)),
    ]


_Band = tuple[float, float, str]


def _bands(result: Result) -> Iterator[_Band]:
    for outage in result.outages:
        yield (
            outage.began - result.began,
            max(outage.healed, outage.began + 0.5) - result.began,
            outage.action,
        )


def _lines(seconds: int, series: Mapping[str, Counter[int]], bands: Sequence[_Band]) -> str:
    highest = max((max(counter.values(), default=0) for counter in series.values()), default=0)
    frame = _Frame(seconds, max(1.0, float(highest)))
    parts = [*frame.axes(), *frame.bands(bands)]
    for name, counter in series.items():
        points = [(second + 0.5, counter.get(second, 0)) for second in range(seconds)]
        path = " ".join(f"{frame.x(at):.1f},{frame.y(count):.1f}" for at, count in points)
        parts.append(f'<polyline class="line {name}" points="{path}"/>')
    if len(series) > 1:
        parts += frame.legend(list(series))
    return frame.svg(parts)


def _dots(seconds: int, dots: Sequence[tuple[float, float, Outage]], bands: Sequence[_Band]) -> str:
    frame = _Frame(seconds, max([1.0, *(away for _, away, _ in dots)]))
    parts = [*frame.axes(), *frame.bands(bands)]
    parts += [
        f'<circle class="dot" cx="{frame.x(at):.1f}" cy="{frame.y(away):.1f}" r="4">'
        f"<title>{escape(outage.action)}: {away:.1f} s</title></circle>"
        for at, away, outage in dots
    ]
    return frame.svg(parts)


class _Frame:
    """The axes: seconds from 0 to `seconds`, values from 0 to `highest`."""

    def __init__(self, seconds: float, highest: float) -> None:
        self._seconds = seconds
        self._step = _nice(highest / _TICKS)
        self._highest = self._step * -(-highest // self._step)

    def x(self, second: float) -> float:
        return _LEFT + min(second, self._seconds) / self._seconds * (_WIDTH - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        return _HEIGHT - _BOTTOM - value / self._highest * (_HEIGHT - _TOP - _BOTTOM)

    def axes(self) -> Iterator[str]:
        value = 0.0
        while value <= self._highest:
            y = self.y(value)
            yield f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
            yield f'<text class="tick" x="{_LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{value:g}</text>'
            value += self._step
        step = _nice(self._seconds / _LONGEST_TICKS)
        for second, _ in pairwise(_range(self._seconds + step, step)):
            x, y = self.x(second), _HEIGHT - 8
            yield f'<text class="tick" x="{x:.1f}" y="{y}" text-anchor="middle">{second:g} s</text>'

    def bands(self, bands: Sequence[_Band]) -> Iterator[str]:
        for began, ended, action in bands:
            left, right = self.x(began), self.x(ended)
            yield (
                f'<rect class="band" x="{left:.1f}" y="{_TOP}" width="{max(2.0, right - left):.1f}" '
                f'height="{_HEIGHT - _TOP - _BOTTOM}"><title>{escape(action)}</title></rect>'
            )

    def legend(self, names: Sequence[str]) -> Iterator[str]:
        for number, name in enumerate(names):
            x = _WIDTH - _RIGHT - 100 * (len(names) - number)
            yield f'<line class="line {name}" x1="{x}" x2="{x + 18}" y1="{_TOP}" y2="{_TOP}"/>'
            yield f'<text class="tick" x="{x + 24}" y="{_TOP + 4}">{name}</text>'

    def svg(self, parts: Sequence[str]) -> str:
        return f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img">{"".join(parts)}</svg>'


def _nice(step: float) -> float:
    """The next step of 1, 2, 5, 10, …"""
    power = 1.0
    while True:
        for factor in (1, 2, 5):
            if factor * power >= step:
                return factor * power
        power *= 10


def _range(end: float, step: float) -> list[float]:
    return [number * step for number in range(int(end / step) + 1)]
