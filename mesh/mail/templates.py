"""Renders mails from `<name>.txt`, whose first line is the subject, and `<name>.html`.

HTML templates extend mesh/mail/templates/layout.html and import macros from parts.html.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from mesh.text import looks_like_link

SHARED = Path(__file__).parent / "templates"

_SUBJECT = "Subject: "


@dataclass(frozen=True, slots=True)
class Rendered:
    """The subject and both bodies of a mail."""

    subject: str
    text: str
    html: str


class Templates:
    """A service's templates in `folder`. Rendering raises when a value is missing."""

    def __init__(self, folder: Path, *, filters: Mapping[str, Any] | None = None) -> None:
        self._environment = jinja2.Environment(
            loader=jinja2.FileSystemLoader([folder, SHARED]),
            # Names of people and events may contain HTML characters.
            autoescape=jinja2.select_autoescape(["html"], default=False),
            undefined=jinja2.StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )
        self._environment.filters["greeted"] = _greeted
        self._environment.filters.update(filters or {})

    def render(self, name: str, /, **values: Any) -> Rendered:
        """Renders `<name>.txt` and `<name>.html`."""
        text = self._environment.get_template(f"{name}.txt").render(values)
        first, _, body = text.partition("\n")
        if not first.startswith(_SUBJECT):
            raise ValueError(f"{name}.txt does not begin with {_SUBJECT!r}")
        subject = first.removeprefix(_SUBJECT).strip()
        html = self._environment.get_template(f"{name}.html").render(values, subject=subject)
        return Rendered(subject, body.strip() + "\n", html)


def _greeted(name: str) -> str:
    """A customer's name after "Hello". Anyone can register the address of another person: a name
    that mail programs turn into a link is left out."""
    return "" if looks_like_link(name) else f" {name}"
