"""Dashboards and alerts: up to date, complete, and checked by promtool where it is installed."""

import json
import shutil
import subprocess

import pytest
import yaml

from deploy import dashboards
from mesh.paths import ROOT
from tests.deploy.queries import metrics_of

PROMETHEUS = ROOT / "deploy" / "prometheus"
RULES = yaml.safe_load((PROMETHEUS / "alerts.yaml").read_text())
ALERTS = [rule for group in RULES["groups"] for rule in group["rules"]]


@pytest.mark.parametrize("dashboard", dashboards.DASHBOARDS, ids=lambda dashboard: dashboard.name)
def test_the_files_are_up_to_date(dashboard: dashboards.Dashboard) -> None:
    file = dashboards.FOLDER / f"{dashboard.name}.json"
    assert file.read_text() == dashboards.rendered(dashboard), "run `python -m deploy.dashboards`"
    shown = json.loads(file.read_text())
    places = [tuple(panel["gridPos"].values()) for panel in shown["panels"]]
    assert len(set(places)) == len(places)
    assert all(panel["targets"] for panel in shown["panels"])
    stats = [panel["gridPos"] for panel in shown["panels"] if panel["type"] == "stat"]
    assert {place["y"] for place in stats} == {0}
    assert sum(place["w"] for place in stats) <= 24


def test_every_query_names_a_metric() -> None:
    queries = [query for dashboard in dashboards.DASHBOARDS for query in dashboard.queries]
    queries += [alert["expr"] for alert in ALERTS]
    assert all(metrics_of(query) for query in queries)
    assert all(query.count("(") == query.count(")") for query in queries)


@pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: str(alert["alert"]))
def test_an_alert_has_a_severity_and_a_runbook(alert: dict[str, object]) -> None:
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
    base = "{{ $externalLabels.docs_url }}"
    assert annotations["runbook_url"] == f"{base}/{page.removeprefix('docs/')}#{section}"


def test_every_alert_fires_in_a_promtool_test() -> None:
    tests = yaml.safe_load((PROMETHEUS / "alerts_test.yaml").read_text())["tests"]
    fired = {
        rule["alertname"]
        for test in tests
        for rule in test["alert_rule_test"]
        if rule["exp_alerts"]
    }
    assert fired == {alert["alert"] for alert in ALERTS}


def test_promtool_accepts_the_configuration_and_the_alerts() -> None:
    """Only where promtool is installed; test_promql.py runs the alert tests everywhere."""
    promtool = shutil.which("promtool")
    if promtool is None:
        return
    for arguments in (
        ["check", "config", "prometheus.yaml"],
        ["test", "rules", "alerts_test.yaml"],
    ):
        completed = subprocess.run(
            [promtool, *arguments], cwd=PROMETHEUS, capture_output=True, text=True, check=False
        )
        assert completed.returncode == 0, completed.stdout + completed.stderr
