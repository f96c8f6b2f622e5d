"""The documents: links and anchors exist, the index is complete, each decision has a number and a status."""

import re
from pathlib import Path

import pytest

from mesh.paths import ROOT

DOCS = ROOT / "docs"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted(DOCS.rglob("*.md"))]
DECISIONS = sorted((DOCS / "decisions").glob("*.md"))

LINK = re.compile(r"\]\((?!https?:)([^)#]*)(?:#([^)]+))?\)")
STATUS = re.compile(
    r"\nStatus: (accepted|(?:partly )?superseded by \[(\d{4})\]\(\2-[a-z-]+\.md\))[.,]"
)


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path) -> list[str]:
    broken = []
    for target, anchor in LINK.findall(page.read_text()):
        linked = page.parent / target if target else page
        if not linked.exists() or (anchor and anchor not in anchors(linked)):
            broken.append(f"{target}#{anchor}")
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_its_anchor_to_a_heading(page: Path) -> None:
    assert broken_links(page) == []


def test_a_broken_link_is_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# A heading\n[a](page.md#a-heading) [b](#b) [c](c.md) [d](https://example.com)"
    )
    assert broken_links(page) == ["#b", "c.md#"]


def test_every_decision_has_a_number_of_its_own_and_in_its_title() -> None:
    numbers = [page.name[:4] for page in DECISIONS]
    # Numbers are given before pages are written: one that is not used leaves a gap.
    assert len(set(numbers)) == len(numbers)
    for page, number in zip(DECISIONS, numbers, strict=True):
        assert page.read_text().startswith(f"# {number} ")


@pytest.mark.parametrize("page", DECISIONS, ids=lambda page: page.name)
def test_every_decision_has_a_status(page: Path) -> None:
    assert STATUS.search(page.read_text()) is not None


def test_the_index_lists_every_page_and_decision() -> None:
    index = DOCS / "README.md"
    listed = {(DOCS / target).resolve() for target, _ in LINK.findall(index.read_text())}
    assert {page.resolve() for page in [*DOCS.glob("*.md"), *DECISIONS] if page != index} <= listed
