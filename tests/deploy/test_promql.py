"""testing/promql.py computes the same results as Prometheus."""

import math
from typing import Any

import pytest
import yaml

from testing.alerting import BY_NAME, FOLDER, firing, seconds, written
from testing.promql import Series, evaluate

WRITTEN: list[dict[str, Any]] = yaml.safe_load((FOLDER / "alerts_test.yaml").read_text())["tests"]


@pytest.mark.parametrize("case", WRITTEN, ids=lambda case: str(case["name"]))
def test_alerts_fire_as_alerts_test_yaml_expects(case: dict[str, Any]) -> None:
    """promtool runs the same file where it is installed."""
    interval = seconds(case["interval"])
    series = written(case["input_series"], interval)
    for expected in case["alert_rule_test"]:
        rule = BY_NAME[expected["alertname"]]
        firing_labels = firing(rule, series, at=seconds(expected["eval_time"]), interval=60)
        assert {labels | frozenset(rule["labels"].items()) for labels in firing_labels} == {
            frozenset(alert["exp_labels"].items()) for alert in expected["exp_alerts"]
        }


def gauge(**values: float) -> Series:
    series = Series()
    for job, value in values.items():
        series.add("g", frozenset({("job", job), ("zone", "x")}), 100, value)
    return series


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("g", [1.0, 2.0, 6.0]),
        ('g{job="a"}', [1.0]),
        ('g{job!="a"}', [2.0, 6.0]),
        ('g{job=~"a|c"}', [1.0, 6.0]),
        ('g{job=~"."} > 1', [2.0, 6.0]),
        ("sum(g)", [9.0]),
        ("min by (zone) (g) * 60", [60.0]),
        ("max by (job) (g) / max by (job) (g)", [1.0, 1.0, 1.0]),
        ("(g) == 2", [2.0]),
        ("g > 1 and g < 6", [2.0]),
        ("missing", []),
        ("7", [7.0]),
    ],
)
def test_an_expression_has_prometheus_result(query: str, expected: list[float]) -> None:
    assert sorted(evaluate(query, gauge(a=1, b=2, c=6), 100).values()) == expected


@pytest.mark.parametrize("query", ["g +", "avg(g)", "rate(g)", "g{", "g or g", "sum(1)", "g > g"])
def test_an_unsupported_expression_is_refused(query: str) -> None:
    with pytest.raises(ValueError, match=r"\w"):
        evaluate(query, gauge(a=1), 100)


def test_rates_are_extrapolated_as_in_prometheus() -> None:
    """Values from Prometheus's tests (promql/testdata/functions.test)."""
    series = Series()
    for minute in range(11):
        series.add("requests", frozenset(), minute * 300, minute * 10.0)
    assert evaluate("rate(requests[50m])", series, 3000) == {
        frozenset(): pytest.approx(0.03333333, rel=1e-5)
    }
    reset = Series()
    for minute, value in enumerate([0, 1, 2, 3, 2, 3, 4]):
        reset.add("c", frozenset(), minute * 300, float(value))
    assert evaluate("increase(c[30m])", reset, 1800) == {frozenset(): pytest.approx(7)}


def test_quantiles_are_interpolated_within_their_bucket() -> None:
    series = Series()
    for bound, count in {"0.1": 2.0, "0.2": 4.0, "+Inf": 5.0}.items():
        series.add("b", frozenset({("le", bound)}), 0, count)
    assert evaluate("histogram_quantile(0.6, b)", series, 0)[frozenset()] == pytest.approx(0.15)
    assert evaluate("histogram_quantile(0.99, b)", series, 0)[frozenset()] == pytest.approx(0.2)
    empty = Series()
    empty.add("b", frozenset({("le", "+Inf")}), 0, 0.0)
    assert math.isnan(evaluate("histogram_quantile(0.5, b)", empty, 0)[frozenset()])
    assert evaluate("histogram_quantile(0.5, b) > 0", empty, 0) == {}


def test_a_process_that_does_not_answer_has_no_samples() -> None:
    series = Series()
    page = "# TYPE boxoffice_ready gauge\nboxoffice_ready 1.0\n"
    series.scraped(page, time=10, job="a", instance="1")
    series.scraped(page, time=10, job="b", instance="1")
    series.scraped(None, time=20, job="a", instance="1")
    series.scraped(page, time=20, job="b", instance="1")
    assert len(evaluate("boxoffice_ready", series, 10)) == 2
    assert [dict(labels)["job"] for labels in evaluate("boxoffice_ready == 1", series, 20)] == ["b"]
    assert [dict(labels)["job"] for labels in evaluate("up == 0", series, 20)] == ["a"]


def test_a_counter_without_the_suffix_total_keeps_its_name() -> None:
    """Envoy's counters have no suffix."""
    series = Series()
    page = "# TYPE envoy_rq_xx counter\nenvoy_rq_xx 3\n# TYPE a_total counter\na_total 4\n"
    series.scraped(page, time=10, job="gateway", instance="1")
    assert list(evaluate("envoy_rq_xx", series, 10).values()) == [3.0]
    assert list(evaluate("a_total", series, 10).values()) == [4.0]
