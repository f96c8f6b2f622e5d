"""A report as one HTML file without scripts or external parts, in light and dark."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2433; --soft: #5b6476; --rule: #d9dde5; --back: #fff;
  --c1: #2563a8; --c2: #c2410c; --c3: #7c3aed; --c4: #8a8f9c; --c5: #2f7d4f; --band: #e9a23b33; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --soft: #9aa3b5; --rule: #343b4a;
  --back: #151922; --c1: #6aa9ec; --c2: #fb8a4c; --c3: #b794f6; --c4: #8a8f9c; --c5: #69c28e;
  --band: #e9a23b40; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back);
  max-width: 1160px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0 0 .5rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
h3 { font-size: .95rem; font-weight: 600; margin: 1.2rem 0 .2rem; }
code { font-size: .9em; overflow-wrap: anywhere; } .note, dt { color: var(--soft); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: .5rem 0; }
dd { margin: 0; overflow-wrap: anywhere; } .failed-verdict { color: var(--c2); }
.good-verdict { color: var(--c5); } .verdict { font-weight: 600; margin: .2rem 0; }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(130px, 1fr)); gap: .8rem;
  margin: 1rem 0; } .tile { border: 1px solid var(--rule); border-radius: 8px; padding: .5rem .8rem; }
.tile b { display: block; font-size: 1.3rem; font-variant-numeric: tabular-nums; }
.tile span { color: var(--soft); font-size: .85rem; }
.charts { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(480px, 100%), 1fr));
  gap: 0 1.5rem; }
div.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--rule);
  vertical-align: top; white-space: pre-wrap; font-variant-numeric: tabular-nums; }
th { color: var(--soft); font-weight: 600; }
svg { width: 100%; height: auto; display: block; }
.tick { fill: var(--soft); font-size: 12px; } .line { fill: none; }
.line.grid { stroke: var(--rule); } .line.c1 { stroke: var(--c1); } .line.c2 { stroke: var(--c2); }
.line.c3 { stroke: var(--c3); } .line.c4 { stroke: var(--c4); } .line.c5 { stroke: var(--c5); }
.fill.band { fill: var(--band); } .fill.c1 { fill: var(--c1); } .fill.c2 { fill: var(--c2); }
.fill.c3 { fill: var(--c3); } .fill.c4 { fill: var(--c4); } .fill.c5 { fill: var(--c5); }
"""


@dataclass(frozen=True, slots=True)
class Section:
    """A table. `note` explains its figures."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]
    note: str = ""


def write(title: str, parts: Sequence[str]) -> str:
    """The whole page from pieces of HTML."""
    return "".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>{escape(title)}</title><style>{_STYLE}</style></head><body>",
            *parts,
            "</body></html>\n",
        ]
    )


def table(section: Section) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in section.columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
        for row in section.rows
    )
    note = f"<p class=note>{escape(section.note)}</p>" if section.note else ""
    return (
        f"<h2>{escape(section.title)}</h2><div class=wide><table><thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>{note}"
    )
