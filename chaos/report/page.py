"""The report as one HTML file without scripts or external parts."""

from html import escape

from chaos.report.charts import charts
from chaos.report.summary import Section, sections, verdict
from chaos.result import Result

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2433; --soft: #5b6476; --rule: #d9dde5; --back: #fff;
  --answered: #2563a8; --failed: #c2410c; --unknown: #7c3aed; --left: #8a8f9c; --band: #e9a23b33; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --soft: #9aa3b5; --rule: #343b4a;
  --back: #151922; --answered: #6aa9ec; --failed: #fb8a4c; --unknown: #b794f6; --left: #8a8f9c;
  --band: #e9a23b40; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--back);
  max-width: 1160px; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.5rem; margin: 0 0 .5rem; } h2 { font-size: 1.1rem; margin: 2rem 0 .5rem; }
h3 { font-size: .95rem; font-weight: 600; margin: 1.2rem 0 .2rem; }
code { font-size: .9em; } .note, dt { color: var(--soft); }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .1rem 1rem; margin: .5rem 0; }
dd { margin: 0; } .failed-verdict { color: var(--failed); }
div.wide { overflow-x: auto; } table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .3rem .8rem .3rem 0; border-bottom: 1px solid var(--rule);
  vertical-align: top; white-space: pre-wrap; font-variant-numeric: tabular-nums; }
th { color: var(--soft); font-weight: 600; }
svg { width: 100%; height: auto; display: block; } .grid { stroke: var(--rule); }
.tick { fill: var(--soft); font-size: 12px; } .band { fill: var(--band); }
.line { fill: none; stroke-width: 1.5; } .dot { fill: var(--answered); }
.answered { stroke: var(--answered); } .failed { stroke: var(--failed); }
.unknown { stroke: var(--unknown); } .left { stroke: var(--left); }
"""


def write(result: Result) -> str:
    """The whole page."""
    failures = result.failures()
    return "".join(
        [
            '<!doctype html><html lang="en"><head><meta charset="utf-8">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<title>Chaos, seed {result.seed}</title><style>{_STYLE}</style></head><body>",
            f"<h1{' class=failed-verdict' if failures else ''}>{escape(verdict(result))}</h1>",
            f"<p>Repeat with <code>{escape(result.command)}</code></p><dl>",
            *(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in result.about.items()),
            "</dl>",
            *(
                [
                    "<h2>Failures</h2><ul>",
                    *(f"<li>{escape(text)}</li>" for text in failures),
                    "</ul>",
                ]
                if failures
                else []
            ),
            "<h2>Over time</h2><p class=note>Bands are faults; point at one for its name.</p>",
            *(f"<h3>{escape(title)}</h3>{svg}" for title, svg in charts(result)),
            *(_table(section) for section in sections(result)),
            "</body></html>\n",
        ]
    )


def _table(section: Section) -> str:
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
