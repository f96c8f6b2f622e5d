"""Dashboards and alerts: well formed, complete, and by Prometheus's own tool where it is."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from deploy import dashboards
from mesh.paths import ROOT
from tests.deploy.queries import metrics_of

PROMETHEUS = ROOT / "deploy" / "prometheus"
RULES = yaml.safe_load((PROMETHEUS / "alerts.yaml").read_text())
ALERTS = [rule for group in RULES["groups"] for rule in group["rules"]]


@pytest.mark.parametrize("dashboard", dashboards.DASHBOARDS, ids=lambda each: each.name)
def test_the_files_are_what_the_table_says(dashboard: dashboards.Dashboard) -> None:
    file = dashboards.FOLDER / f"{dashboard.name}.json"
    assert file.read_text() == dashboards.rendered(dashboard), "run `python -m deploy.dashboards`"
    shown = json.loads(file.read_text())
    places = [tuple(panel["gridPos"].values()) for panel in shown["panels"]]
    assert len(set(places)) == len(places)
    assert all(panel["targets"] for panel in shown["panels"])


def test_every_query_names_a_metric() -> None:
    queries = [
        query
        for each in dashboards.DASHBOARDS
        for panel in each.panels
        for query, _ in panel.queries
    ]
    queries += [alert["expr"] for alert in ALERTS]
    assert all(metrics_of(query) for query in queries)
    assert all(query.count("(") == query.count(")") for query in queries)


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: str(alert["alert"]))
def test_an_alert_says_how_bad_it_is_and_what_to_do(alert: dict[str, object]) -> None:
    assert set(alert) <= {"alert", "expr", "for", "labels", "annotations"}
    labels, annotations = alert["labels"], alert["annotations"]
    assert isinstance(labels, dict)
    assert isinstance(annotations, dict)
    assert labels["severity"] in ("critical", "warning")
    page, _, section = annotations["runbook"].partition("#")
    headings = [
        line.lstrip("# ").lower()
        for line in (ROOT / page).read_text().splitlines()
        if line.startswith("#")
    ]
    assert section in headings, f"{page} has no section {section}"


def test_every_alert_has_a_test_that_makes_it_fire() -> None:
    tests = yaml.safe_load((PROMETHEUS / "alerts_test.yaml").read_text())["tests"]
    fired = {
        rule["alertname"]
        for test in tests
        for rule in test["alert_rule_test"]
        if rule["exp_alerts"]
    }
    assert fired == {alert["alert"] for alert in ALERTS}


def test_promtool_agrees(tmp_path: Path) -> None:
    """Prometheus's own word, where its tool is installed; the tests above hold everywhere."""
    promtool = shutil.which("promtool")
    if promtool is None:
        return
    for arguments in (
        ["check", "config", "prometheus.yaml"],
        ["test", "rules", "alerts_test.yaml"],
    ):
        told = subprocess.run(
            [promtool, *arguments], cwd=PROMETHEUS, capture_output=True, text=True, check=False
        )
        assert told.returncode == 0, told.stdout + told.stderr
