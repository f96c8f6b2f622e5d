"""The report of a run: failures by name, figures with their bounds, and a page without scripts."""

import re
from dataclasses import replace
from pathlib import Path

from chaos import report
from chaos.checks.audit import Fault as Broken
from chaos.checks.audit import Finding
from chaos.client import Attempt
from chaos.faults.plan import Fault
from chaos.faults.processes import Outage
from chaos.report import promises
from chaos.result import Result


def a_result() -> Result:
    """A clean run with a kill and a lost COMMIT."""
    result = Result(7, "python -m chaos --seed 7", [], began=100.0, ended=160.0)
    result.outages = [
        Outage(Fault.KILL, "stock_svc", 0.0, 110.0, 110.0, 4.2),
        Outage(Fault.CUT_COMMIT, "stock_svc>postgres", 5.0, 130.0, 135.0, 0.4),
    ]
    result.converged = {0: 1.0, 1: 2.0}
    result.journal.confirmed = 3
    result.commits_cut = {"before": 20, "after": 10}
    for second in range(60):
        call = Attempt(second, "GET", "/x", "", "", 100.0 + second, 100.5 + second, 200, "")
        result.history.record(call)
    return result


def test_a_clean_run(tmp_path: Path) -> None:
    text = report.write(a_result(), tmp_path)
    assert text.startswith("# Chaos: No failure in 2 faults and 60 calls.\n")
    assert "| kill | stock_svc | 1 | 4.2, 4.2 | 1.0, 1.0 |" in text
    assert "## Failures" not in text
    assert text == (tmp_path / "report.md").read_text()


def test_bounds_follow_the_rule_of_three() -> None:
    measured = {promise.number: promise for promise in promises.measure(a_result())}
    assert (measured["P16"].runs, measured["P16"].bound) == (30, "< 10.00%")
    assert measured["P14"].bound == "not tried"
    broken = a_result()
    broken.findings = [Finding(Broken.KEY_TWICE, "key k")]
    assert {p.bound for p in promises.measure(broken) if p.number in {"P8", "P16"}} == {"broken"}


def test_every_failure_is_listed(tmp_path: Path) -> None:
    result = a_result()
    result.findings = [Finding(Broken.OVERSOLD, "the <pit>")]
    result.violations = ["a seat twice"]
    result.leftovers = ["1 connections of stock_svc in use"]
    result.oddities = ["2 times GET /x: 500"]
    result.journal.violations = ["KeyError"]
    result.outages[0] = replace(result.outages[0], away_seconds=None)
    result.converged[1] = None
    result.history.record(Attempt(99, "GET", "/y", "", "", 140.0, 155.0, 0, "ReadTimeout"))
    result.history.record(Attempt(98, "GET", "/z", "", "", 120.0, 120.1, 500, "INTERNAL"))
    failures = result.failures()
    assert len(failures) == 9
    text = report.write(result, tmp_path)
    assert all(failure in text for failure in failures)
    page = (tmp_path / "report.html").read_text()
    assert "the &lt;pit&gt;" in page
    assert "<pit>" not in page


def test_no_answer_is_no_failure_while_the_way_in_was_broken() -> None:
    result = a_result()
    result.history.record(Attempt(99, "GET", "/y", "", "", 140.0, 155.0, 0, "ReadTimeout"))
    assert len(result.failures()) == 1
    result.outages.append(Outage(Fault.STALL, "clients>gateway", 20.0, 139.0, 159.0, 0.1))
    assert result.failures() == []


def test_a_run_that_sold_nothing_proves_nothing() -> None:
    result = a_result()
    result.journal.confirmed = 0
    assert result.failures() == ["nothing was sold, so this run proves nothing"]


def test_the_page_stands_alone(tmp_path: Path) -> None:
    report.write(a_result(), tmp_path)
    page = (tmp_path / "report.html").read_text()
    assert page.count("<svg") == 3
    assert "<title>kill stock_svc</title>" in page
    assert not re.search(r"<script|src=|href=|https?://", page)
