"""Rendering mails from templates: subject, escaping, layout."""

from pathlib import Path

import jinja2
import pytest

from mesh.mail.templates import Templates

HTML = """{% extends "layout.html" %}
{% import "parts.html" as parts %}
{% block content %}
{% call parts.paragraph() %}Hello {{ name }}{% endcall %}
{{ parts.facts([("Name", name)]) }}
{{ parts.button(url, "Go on") }}
{% endblock %}
"""


def templates(
    folder: Path, *, text: str = "Subject: Hello {{ name }}\n\nDear {{ name }}\n"
) -> Templates:
    (folder / "hello.txt").write_text(text)
    (folder / "hello.html").write_text(HTML)
    return Templates(folder)


def test_a_mail_has_a_subject_and_text_and_html_in_the_layout(tmp_path: Path) -> None:
    rendered = templates(tmp_path).render("hello", name="Mira", url="https://example.org/")
    assert rendered.subject == "Hello Mira"
    assert rendered.text == "Dear Mira\n"
    assert rendered.html.startswith("<!DOCTYPE html>")
    assert "Hello Mira" in rendered.html
    assert 'href="https://example.org/"' in rendered.html


def test_markup_in_a_name_is_escaped(tmp_path: Path) -> None:
    name = '<script>alert("1")</script>{{ 7 * 7 }}'
    rendered = templates(tmp_path).render("hello", name=name, url="https://example.org/")
    assert "<script>" not in rendered.html
    assert rendered.html.count("&lt;script&gt;") == 4
    assert rendered.text == f"Dear {name}\n"
    assert rendered.subject == f"Hello {name}"


def test_a_missing_value_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(jinja2.UndefinedError):
        templates(tmp_path).render("hello", url="https://example.org/")


def test_a_template_without_a_subject_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="hello"):
        templates(tmp_path, text="Dear {{ name }}").render("hello", name="Mira", url="x")
