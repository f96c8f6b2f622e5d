"""Writes a page with samples of all mails: as on a desktop, as on a phone, and as text.

The modules in _PREVIEWS define the samples: `samples()` yields names and mails.
"""

import importlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import jinja2

from mesh.mail.templates import Rendered
from mesh.paths import BUILD

PAGE = BUILD / "mails.html"

_PREVIEWS = {
    "auth_svc": "auth_svc.previews",
    "booking_svc": "booking_svc.notifications.previews",
}

_PAGE = """\
<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<title>Mails of Boxoffice</title>
<style>
  body { font: 15px/22px system-ui, sans-serif; margin: 32px; color: #1b1b2f; }
  section { margin: 0 0 56px; }
  h2 { margin: 0; font-size: 18px; }
  .subject { color: #63637a; margin: 0 0 12px; }
  .shown { display: flex; gap: 24px; align-items: flex-start; }
  iframe { border: 1px solid #d8d6e4; border-radius: 8px; height: 780px; }
  .desktop { width: 640px; }
  .phone { width: 360px; }
  pre { margin: 0; width: 400px; padding: 16px; white-space: pre-wrap; background: #f5f4fa;
        border-radius: 8px; font: 13px/19px ui-monospace, monospace; }
</style>
<h1>Mails of Boxoffice</h1>
{% for sample in samples %}
<section>
  <h2>{{ sample.service }}: {{ sample.name }}</h2>
  <p class="subject">{{ sample.mail.subject }}</p>
  <div class="shown">
    <iframe class="desktop" srcdoc="{{ sample.mail.html }}"></iframe>
    <iframe class="phone" srcdoc="{{ sample.mail.html }}"></iframe>
    <pre>{{ sample.mail.text }}</pre>
  </div>
</section>
{% endfor %}
</html>
"""


@dataclass(frozen=True, slots=True)
class Sample:
    """A service's mail with example values."""

    service: str
    name: str
    mail: Rendered


def samples() -> Iterator[Sample]:
    """The samples of all services."""
    for service, module in _PREVIEWS.items():
        for name, mail in importlib.import_module(module).samples():
            yield Sample(service, name, mail)


def write(path: Path = PAGE) -> Path:
    """Writes the page and returns its path."""
    template = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined).from_string(
        _PAGE
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(template.render(samples=list(samples())), encoding="utf-8")
    return path
