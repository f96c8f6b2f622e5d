"""Drawings as SVG for a page of page.py, whose style has the colours."""

from html import escape

from tools.reporting.drawing import Dot, Drawing, Line, Rectangle, Text


def write(drawing: Drawing) -> str:
    """An `svg` element without external parts."""
    shapes = "".join(_shape(shape) for shape in drawing.shapes)
    return f'<svg viewBox="0 0 {drawing.width:g} {drawing.height:g}" role="img">{shapes}</svg>'


def _shape(shape: Line | Rectangle | Dot | Text) -> str:
    match shape:
        case Line(points, style, width, is_dashed):
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            dash = ' stroke-dasharray="6 5"' if is_dashed else ""
            return (
                f'<polyline class="line {style}" points="{path}" stroke-width="{width:g}"{dash}/>'
            )
        case Rectangle(x, y, width, height, style, tooltip):
            return (
                f'<rect class="fill {style}" x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" '
                f'height="{height:.1f}">{_title(tooltip)}</rect>'
            )
        case Dot(x, y, radius, style, tooltip):
            return (
                f'<circle class="fill {style}" cx="{x:.1f}" cy="{y:.1f}" r="{radius:g}">'
                f"{_title(tooltip)}</circle>"
            )
        case Text(x, y, text, anchor):
            return (
                f'<text class="tick" x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">'
                f"{escape(text)}</text>"
            )


def _title(text: str) -> str:
    return f"<title>{escape(text)}</title>" if text else ""
