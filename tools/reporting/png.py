"""Drawings as a picture, in the light colours of page.py. Needs Pillow, which
`launcher/bootstrap.py --bench` installs."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mesh.paths import BENCH_PACKAGES
from tools.reporting.drawing import Dot, Drawing, Line, Rectangle, Style, Text

_INK, _SOFT, _BACK = "#1d2433", "#5b6476", "#ffffff"
_COLOURS = {
    Style.FIRST: "#2563a8",
    Style.SECOND: "#c2410c",
    Style.THIRD: "#7c3aed",
    Style.FOURTH: "#8a8f9c",
    Style.GOOD: "#2f7d4f",
    Style.GRID: "#d9dde5",
    Style.BAND: "#fbe8ce",
}
_MARGIN, _TITLE, _ROW, _GAP = 28, 30, 24, 24
# Drawn larger and scaled down: Pillow draws lines without anti-aliasing.
_DRAWN, _SHOWN = 4, 2
_DASH, _SPACE = 6.0, 5.0


class PillowMissingError(Exception):
    """Pillow is not installed."""


def write(
    file: Path,
    *,
    title: str,
    lines: Sequence[tuple[str, Style | None]],
    charts: Sequence[tuple[str, Drawing]],
    columns: int = 2,
) -> None:
    """A title, lines of text with the colour of a style, and titled drawings in columns.

    Raises PillowMissingError.
    """
    if str(BENCH_PACKAGES) not in sys.path:
        sys.path.append(str(BENCH_PACKAGES))
    try:
        from PIL import Image, ImageDraw, ImageFont
    except ImportError:
        raise PillowMissingError from None
    rows = [charts[first : first + columns] for first in range(0, len(charts), columns)]
    width = max([600.0, *(sum(chart.width + _GAP for _, chart in row) for row in rows)])
    heights = [max(chart.height for _, chart in row) + _TITLE + _GAP for row in rows]
    head = _MARGIN + 44 + _ROW * len(lines) + _GAP
    whole = (int(width + 2 * _MARGIN), int(head + sum(heights) + _MARGIN))
    image = Image.new("RGB", (whole[0] * _DRAWN, whole[1] * _DRAWN), _BACK)
    pencil = _Pencil(ImageDraw.Draw(image), ImageFont.load_default)
    pencil.text(_MARGIN, _MARGIN + 22, title, 24, _INK)
    for number, (text, style) in enumerate(lines):
        colour = _SOFT if style is None else _COLOURS[style]
        pencil.text(_MARGIN, _MARGIN + 54 + _ROW * number, text, 15, colour)
    y = float(head)
    for row, height in zip(rows, heights, strict=True):
        x = float(_MARGIN)
        for name, chart in row:
            pencil.text(x, y + 16, name, 15, _INK)
            pencil.draw(chart, x, y + _TITLE)
            x += chart.width + _GAP
        y += height
    image.resize((whole[0] * _SHOWN, whole[1] * _SHOWN), Image.Resampling.LANCZOS).save(file)


class _Pencil:
    """Draws in pixels of the drawings."""

    def __init__(self, draw: Any, font: Any) -> None:
        self._draw = draw
        self._font = font

    def draw(self, drawing: Drawing, left: float, top: float) -> None:
        for shape in drawing.shapes:
            self._shape(shape, left, top)

    def text(
        self, x: float, y: float, text: str, size: int, colour: str, anchor: str = "start"
    ) -> None:
        where = {"start": "ls", "middle": "ms", "end": "rs"}[anchor]
        font = self._font(size * _DRAWN)
        self._draw.text(_scaled(x, y), text, colour, font, anchor=where)

    def _shape(self, shape: Line | Rectangle | Dot | Text, left: float, top: float) -> None:
        match shape:
            case Line(points, style, width, is_dashed):
                moved = [(left + x, top + y) for x, y in points]
                for part in _dashes(moved) if is_dashed else [moved]:
                    self._draw.line(
                        [_scaled(x, y) for x, y in part],
                        _COLOURS[style],
                        round(width * _DRAWN),
                        joint="curve",
                    )
            case Rectangle(x, y, width, height, style, _):
                begin = _scaled(left + x, top + y)
                end = _scaled(left + x + width, top + y + height)
                self._draw.rectangle((*begin, *end), _COLOURS[style])
            case Dot(x, y, radius, style, _):
                begin = _scaled(left + x - radius, top + y - radius)
                end = _scaled(left + x + radius, top + y + radius)
                self._draw.ellipse((*begin, *end), _COLOURS[style])
            case Text(x, y, text, anchor):
                self.text(left + x, top + y, text, 12, _SOFT, anchor)


def _scaled(x: float, y: float) -> tuple[float, float]:
    return x * _DRAWN, y * _DRAWN


def _dashes(points: Sequence[tuple[float, float]]) -> list[list[tuple[float, float]]]:
    """The dashes of a horizontal line."""
    (x, y), (end, _) = points[0], points[-1]
    dashes = []
    while x < end:
        dashes.append([(x, y), (min(x + _DASH, end), y)])
        x += _DASH + _SPACE
    return dashes
