"""Evaluates alert rules over time series as Prometheus does, including `for`."""

import re
from typing import Any

import yaml

from mesh.paths import ROOT
from testing.promql import Labels, Series, evaluate

FOLDER = ROOT / "deploy" / "prometheus"
RULES: list[dict[str, Any]] = [
    rule
    for group in yaml.safe_load((FOLDER / "alerts.yaml").read_text())["groups"]
    for rule in group["rules"]
]
BY_NAME = {rule["alert"]: rule for rule in RULES}
_SECONDS = {"s": 1, "m": 60, "h": 3600}
_SELECTOR = re.compile(r"(\w+)(?:\{(.*)\})?")
_LABEL = re.compile(r'(\w+)="([^"]*)"')


def seconds(duration: str) -> float:
    """Parses `90s` or `5m`."""
    return float(duration[:-1]) * _SECONDS[duration[-1]]


def firing(rule: dict[str, Any], series: Series, *, at: float, interval: float) -> set[Labels]:
    """The labels for which the alert fires at `at`, evaluated every `interval` seconds since 0."""
    active: dict[Labels, float] = {}
    time = 0.0
    while time <= at:
        result = evaluate(rule["expr"], series, time)
        active = {labels: active.get(labels, time) for labels in result}
        time += interval
    least = seconds(rule.get("for", "0s"))
    return {labels for labels, since in active.items() if time - interval - since >= least}


def written(input_series: list[dict[str, str]], interval: float) -> Series:
    """The time series of a promtool test, e.g. `up{job="a"}` with `1 1 0x20` or `0+60x40`."""
    series = Series()
    for entry in input_series:
        selector = _SELECTOR.fullmatch(entry["series"])
        assert selector is not None, entry
        labels = frozenset(_LABEL.findall(selector[2] or ""))
        for number, value in enumerate(_values(entry["values"])):
            series.add(selector[1], labels, number * interval, value)
    return series


def _values(notation: str) -> list[float]:
    values: list[float] = []
    for part in notation.split():
        first, _, times = part.partition("x")
        start, _, step = first.partition("+")
        values += [float(start) + n * float(step or 0) for n in range(int(times or 0) + 1)]
    return values
