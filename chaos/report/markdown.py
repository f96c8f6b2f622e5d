"""The report as Markdown, for terminals and CI."""

from chaos.report.summary import sections, verdict
from chaos.result import Result
from tools.reporting.page import Section

_MOST_FAILURES = 100


def write(result: Result) -> str:
    """The whole report."""
    failures = result.failures()
    return "\n".join(
        [
            f"# Chaos: {verdict(result)}",
            "",
            f"Repeat with `{result.command}`",
            "",
            *(f"- {name}: {value}" for name, value in result.about.items()),
            *(
                ["", "## Failures", "", *(f"- {text}" for text in failures[:_MOST_FAILURES])]
                if failures
                else []
            ),
            *(line for section in sections(result) for line in _table(section)),
            "",
        ]
    )


def _table(section: Section) -> list[str]:
    rows = [section.columns, ("---",) * len(section.columns), *section.rows]
    return [
        "",
        f"## {section.title}",
        "",
        *("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows),
        *(["", section.note] if section.note else []),
    ]
