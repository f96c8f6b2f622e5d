"""Charts as shapes: lines over time, dots, and bars, in a frame with axes. svg.py and png.py show them."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Literal

_LEFT, _RIGHT, _TOP, _BOTTOM = 56, 14, 24, 26
_TICKS = 4
_PIXELS_PER_TICK = 60
_LEGEND_PIXELS_PER_LETTER = 7
_BAR_LABEL, _BAR_VALUE, _BAR_ROW = 190, 110, 26

Anchor = Literal["start", "middle", "end"]


class Style(StrEnum):
    """Colours by their use; page.py and png.py have them."""

    FIRST = "c1"
    SECOND = "c2"
    THIRD = "c3"
    FOURTH = "c4"
    GOOD = "c5"
    GRID = "grid"
    BAND = "band"


SERIES = (Style.FIRST, Style.SECOND, Style.THIRD, Style.FOURTH)


@dataclass(frozen=True, slots=True)
class Line:
    """Through all points. `width` in pixels."""

    points: Sequence[tuple[float, float]]
    style: Style
    width: float = 1.8
    is_dashed: bool = False


@dataclass(frozen=True, slots=True)
class Rectangle:
    x: float
    y: float
    width: float
    height: float
    style: Style
    tooltip: str = ""


@dataclass(frozen=True, slots=True)
class Dot:
    x: float
    y: float
    radius: float
    style: Style
    tooltip: str = ""


@dataclass(frozen=True, slots=True)
class Text:
    x: float
    y: float
    text: str
    anchor: Anchor = "start"


@dataclass(frozen=True, slots=True)
class Drawing:
    """`width` and `height` in pixels; y grows downward."""

    width: float
    height: float
    shapes: Sequence[Line | Rectangle | Dot | Text]


@dataclass(frozen=True, slots=True)
class Band:
    """Marks a part of the horizontal axis."""

    begin: float
    end: float
    tooltip: str


@dataclass(frozen=True, slots=True)
class Size:
    width: float = 1120
    height: float = 190


@dataclass(frozen=True, slots=True)
class Axis:
    """The horizontal axis, from `begin` to `end`; `label` writes a value of it."""

    begin: float
    end: float
    label: Callable[[float], str] = field(default=lambda second: f"{second:g} s")
    steps: Sequence[int] = (1, 2, 5)
    """What a step between labels may be, times a power of ten."""


def lines(
    axis: Axis,
    series: Mapping[str, Sequence[tuple[float, float]]],
    *,
    bands: Sequence[Band] = (),
    limit: float | None = None,
    styles: Sequence[Style] = SERIES,
    size: Size = Size(),
) -> Drawing:
    """Each series as a line, or a dot; `limit` as a dashed line. Several have a legend."""
    highest = max(
        [1.0, limit or 0.0, *(value for points in series.values() for _, value in points)]
    )
    frame = _Frame(axis, highest, size)
    shapes: list[Line | Rectangle | Dot | Text] = [*frame.axes(), *frame.bands(bands)]
    if limit is not None:
        ends = [(axis.begin, limit), (axis.end, limit)]
        shapes.append(frame.line(ends, Style.FOURTH, is_dashed=True))
    for points, style in zip(series.values(), styles, strict=False):
        if len(points) == 1:
            [(x, y)] = points
            shapes.append(Dot(frame.x(x), frame.y(y), 3, style))
        elif points:
            shapes.append(frame.line(points, style))
    if len(series) > 1:
        shapes += frame.legend(dict(zip(series, styles, strict=False)))
    return Drawing(size.width, size.height, shapes)


def dots(
    axis: Axis,
    values: Sequence[tuple[float, float, str]],
    *,
    bands: Sequence[Band] = (),
    radius: float = 4,
    highest: float = 1.0,
    size: Size = Size(),
) -> Drawing:
    """A dot for each x, y and tooltip. The vertical axis reaches to `highest` at least."""
    frame = _Frame(axis, max([highest, *(y for _, y, _ in values)]), size)
    marks = [Dot(frame.x(x), frame.y(y), radius, Style.FIRST, tip) for x, y, tip in values]
    return Drawing(size.width, size.height, [*frame.axes(), *frame.bands(bands), *marks])


def bars(
    values: Sequence[tuple[str, float, str]],
    *,
    style: Style = Style.FIRST,
    size: Size = Size(),
) -> Drawing:
    """A horizontal bar for each name, value and text beside it. As high as they need."""
    highest = max([1.0, *(value for _, value, _ in values)])
    shapes: list[Line | Rectangle | Dot | Text] = []
    for number, (name, value, text) in enumerate(values):
        y = 8 + number * _BAR_ROW
        width = value / highest * (size.width - _BAR_LABEL - _BAR_VALUE)
        shapes += [
            Text(_BAR_LABEL - 10, y + 13, name, "end"),
            Rectangle(_BAR_LABEL, y, max(2.0, width), _BAR_ROW - 6, style, f"{name}: {text}"),
            Text(_BAR_LABEL + max(2.0, width) + 8, y + 13, text),
        ]
    return Drawing(size.width, max(size.height, 16 + _BAR_ROW * len(values)), shapes)


class _Frame:
    """The axes: `axis`, and values from 0 to `highest`."""

    def __init__(self, axis: Axis, highest: float, size: Size) -> None:
        self._axis = axis
        self._size = size
        self._step = _nice(highest / _TICKS, (1, 2, 5))
        self._highest = self._step * -(-highest // self._step)

    def x(self, value: float) -> float:
        axis = self._axis
        inside = min(max(value, axis.begin), axis.end) - axis.begin
        return _LEFT + inside / (axis.end - axis.begin) * (self._size.width - _LEFT - _RIGHT)

    def y(self, value: float) -> float:
        height = self._size.height
        return height - _BOTTOM - value / self._highest * (height - _TOP - _BOTTOM)

    def line(
        self, points: Sequence[tuple[float, float]], style: Style, *, is_dashed: bool = False
    ) -> Line:
        return Line([(self.x(x), self.y(y)) for x, y in points], style, is_dashed=is_dashed)

    def axes(self) -> Iterator[Line | Text]:
        axis, right = self._axis, self._size.width - _RIGHT
        for number in range(round(self._highest / self._step) + 1):
            value = number * self._step
            y = self.y(value)
            yield Line([(_LEFT, y), (right, y)], Style.GRID, 1)
            yield Text(_LEFT - 8, y + 4, f"{value:,g}" if value < 1e6 else f"{value:.0e}", "end")
        most = (right - _LEFT) / _PIXELS_PER_TICK
        step = _nice((axis.end - axis.begin) / most, axis.steps)
        first = math.ceil(axis.begin / step)
        value = first * step
        while value <= axis.end:
            yield Text(self.x(value), self._size.height - 8, axis.label(value), "middle")
            value += step

    def bands(self, bands: Sequence[Band]) -> Iterator[Rectangle]:
        for band in bands:
            left, right = self.x(band.begin), self.x(band.end)
            height = self._size.height - _TOP - _BOTTOM
            yield Rectangle(left, _TOP, max(2.0, right - left), height, Style.BAND, band.tooltip)

    def legend(self, styles: Mapping[str, Style]) -> Iterator[Line | Text]:
        """At the top, from right to left."""
        x = self._size.width - _RIGHT
        for name, style in reversed(list(styles.items())):
            x -= len(name) * _LEGEND_PIXELS_PER_LETTER + 40
            yield Line([(x, 10), (x + 18, 10)], style, 3)
            yield Text(x + 24, 14, name)


def _nice(step: float, factors: Sequence[int]) -> float:
    """The next step of these factors times a power of ten, e.g. 1, 2, 5, 10, …"""
    power = 1.0
    while power >= step > 0:
        power /= 10
    while True:
        for factor in factors:
            if factor * power >= step:
                return factor * power
        power *= 10
