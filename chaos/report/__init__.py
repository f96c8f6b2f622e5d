"""The report of a run: what was injected, what came out, and which promises that supports."""

from pathlib import Path

from chaos.report import markdown, page
from chaos.result import Result


def write(result: Result, folder: Path) -> str:
    """Writes report.html and report.md into the folder; returns the text of the second."""
    folder.mkdir(parents=True, exist_ok=True)
    text = markdown.write(result)
    (folder / "report.md").write_text(text)
    (folder / "report.html").write_text(page.write(result))
    return text
