"""The report as one HTML file without scripts or external parts."""

from html import escape

from chaos.report.charts import charts
from chaos.report.summary import sections, verdict
from chaos.result import Result
from tools.reporting import page, svg


def write(result: Result) -> str:
    """The whole page."""
    failures = result.failures()
    return page.write(
        f"Chaos, seed {result.seed}",
        [
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
            *(f"<h3>{escape(title)}</h3>{svg.write(chart)}" for title, chart in charts(result)),
            *(page.table(section) for section in sections(result)),
        ],
    )
