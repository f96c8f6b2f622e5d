"""Evaluates the subset of PromQL that the alerts and dashboards use; ValueError for the rest.

Rates are extrapolated as in Prometheus 3 (promql/functions.go). tests/deploy compares results
with promtool's.
"""

import itertools
import math
import operator
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from prometheus_client.parser import text_string_to_metric_families

Labels = frozenset[tuple[str, str]]
Vector = dict[Labels, float]
"""A value per label set, without the metric's name."""

_LOOKBACK_SECONDS = 300.0
_SECONDS = {"s": 1, "m": 60, "h": 3600}
_TOKEN = re.compile(
    r"\s*(?:(?P<number>\d+(?:\.\d+)?)(?![\dsmh])|(?P<word>[a-zA-Z_]\w*)|(?P<text>\"[^\"]*\")"
    r"|(?P<range>\[\d+[smh]\])|(?P<sign>=~|!=|==|[-(){},=<>/*]))"
)
_FOLDS: dict[str, Callable[[Iterable[float]], float]] = {"sum": sum, "max": max, "min": min}
_ARITHMETIC = {"/": lambda a, b: a / b if b else math.nan, "*": operator.mul}
_COMPARE = {"==": operator.eq, ">": operator.gt, "<": operator.lt}


@dataclass
class Series:
    """Scraped samples by metric and labels, oldest first.

    None marks the end of a time series, e.g. when its process has ended.
    """

    _samples: dict[str, dict[Labels, list[tuple[float, float | None]]]] = field(
        default_factory=dict
    )

    def add(self, metric: str, labels: Labels, time: float, value: float | None) -> None:
        self._samples.setdefault(metric, {}).setdefault(labels, []).append((time, value))

    def scraped(self, page: str | None, *, time: float, job: str, instance: str) -> None:
        """Adds the samples of a metrics page; None when the process did not answer."""
        target = frozenset({("job", job), ("instance", instance)})
        self.add("up", target, time, float(page is not None))
        present: set[tuple[str, Labels]] = set()
        for family in text_string_to_metric_families(page or ""):
            # The parser appends _total to all counters, also to Envoy's, which do not have it.
            added = "_total" if f"{family.name}_total" not in (page or "") else "\0"
            for sample in family.samples:
                name = sample.name.removesuffix(added)
                labels = target | frozenset(sample.labels.items())
                self.add(name, labels, time, sample.value)
                present.add((name, labels))
        for metric, by_labels in self._samples.items():
            for labels, samples in by_labels.items():
                has_ended = target <= labels and metric != "up" and (metric, labels) not in present
                if has_ended and samples[-1][1] is not None:
                    samples.append((time, None))

    def between(
        self, metric: str, matches: Callable[[dict[str, str]], bool], after: float, to: float
    ) -> Iterator[tuple[Labels, list[tuple[float, float | None]]]]:
        for labels, samples in self._samples.get(metric, {}).items():
            if matches(dict(labels)):
                yield labels, [sample for sample in samples if after < sample[0] <= to]


def evaluate(expression: str, series: Series, time: float) -> Vector:
    """The expression's value at a time. A scalar has no labels."""
    parser = _Parser(expression, series, time)
    value = parser.expression()
    parser.expect_end()
    return value if isinstance(value, dict) else {frozenset(): value}


class _Parser:
    """Parses an expression and evaluates it at the same time."""

    def __init__(self, text: str, series: Series, time: float) -> None:
        self._text = text
        self._tokens = list(_tokens(text))
        self._series = series
        self._time = time

    def expression(self) -> Vector | float:
        value = self._comparison()
        while self._next == "and":
            self._take()
            both = _vector(self._comparison())
            value = {labels: kept for labels, kept in _vector(value).items() if labels in both}
        return value

    def _comparison(self) -> Vector | float:
        value = self._product()
        while self._next in _COMPARE:
            value = _compared(_COMPARE[self._take()], value, self._product())
        return value

    def expect_end(self) -> None:
        if self._tokens:
            raise ValueError(f"unexpected {self._next!r} in {self._text}")

    def _product(self) -> Vector | float:
        value = self._operand()
        while self._next in _ARITHMETIC:
            value = _calculated(_ARITHMETIC[self._take()], value, self._operand())
        return value

    def _operand(self) -> Vector | float:
        token = self._take()
        if token == "(":
            value = self.expression()
            self._take(")")
            return value
        if token[0].isdigit():
            return float(token)
        if token in _FOLDS:
            return self._folded(_FOLDS[token])
        if token in ("rate", "increase"):
            self._take("(")
            value = self._risen(self._take(), per_second=token == "rate")
            self._take(")")
            return value
        if token == "histogram_quantile":
            self._take("(")
            share = float(self._take())
            self._take(",")
            value = _quantiles(share, _vector(self.expression()))
            self._take(")")
            return value
        return self._latest(token)

    def _folded(self, fold: Callable[[Iterable[float]], float]) -> Vector:
        names: set[str] = set()
        if self._next == "by":
            self._take("by")
            self._take("(")
            while (token := self._take()) != ")":
                names |= {token} - {","}
        self._take("(")
        inner = _vector(self.expression())
        self._take(")")
        groups: dict[Labels, list[float]] = {}
        for labels, value in inner.items():
            group = frozenset(label for label in labels if label[0] in names)
            groups.setdefault(group, []).append(value)
        return {labels: fold(values) for labels, values in groups.items()}

    def _latest(self, metric: str) -> Vector:
        after = self._time - _LOOKBACK_SECONDS
        matching = self._series.between(metric, self._matcher(), after, self._time)
        return {
            labels: value
            for labels, samples in matching
            if samples and (value := samples[-1][1]) is not None
        }

    def _risen(self, metric: str, *, per_second: bool) -> Vector:
        matches = self._matcher()
        span = self._take()
        if not span.startswith("["):
            raise ValueError(f"expected a range after {metric} in {self._text}")
        seconds = float(int(span[1:-2]) * _SECONDS[span[-2]])
        risen: Vector = {}
        for labels, samples in self._series.between(
            metric, matches, self._time - seconds, self._time
        ):
            known = [(time, value) for time, value in samples if value is not None]
            if len(known) > 1:
                increase = _extrapolated(known, self._time - seconds, self._time)
                risen[labels] = increase / seconds if per_second else increase
        return risen

    def _matcher(self) -> Callable[[dict[str, str]], bool]:
        conditions: list[tuple[str, str, str]] = []
        if self._next == "{":
            self._take("{")
            while self._next != "}":
                conditions.append((self._take(), self._take(), self._take()[1:-1]))
                if self._next == ",":
                    self._take(",")
            self._take("}")
        return lambda labels: all(
            _matches(labels.get(name, ""), sign, text) for name, sign, text in conditions
        )

    @property
    def _next(self) -> str:
        return self._tokens[0] if self._tokens else ""

    def _take(self, expected: str = "") -> str:
        if not self._tokens or (expected and self._next != expected):
            raise ValueError(
                f"expected {expected or 'a token'} instead of {self._next!r} in {self._text}"
            )
        return self._tokens.pop(0)


def _tokens(text: str) -> Iterator[str]:
    place = 0
    while text[place:].strip():
        match = _TOKEN.match(text, place)
        if match is None:
            raise ValueError(f"unexpected {text[place:]!r} in {text}")
        yield match[0].strip()
        place = match.end()


def _matches(value: str, sign: str, text: str) -> bool:
    if sign == "=~":
        return re.fullmatch(text, value) is not None
    return (value == text) is (sign == "=")


def _vector(value: Vector | float) -> Vector:
    if not isinstance(value, dict):
        raise ValueError("expected a vector, not a scalar")
    return value


def _compared(
    compare: Callable[[float, float], bool], left: Vector | float, right: Vector | float
) -> Vector:
    if isinstance(right, dict):
        raise ValueError("the right side of a comparison must be a scalar")
    return {labels: value for labels, value in _vector(left).items() if compare(value, right)}


def _calculated(
    calculate: Callable[[float, float], float], left: Vector | float, right: Vector | float
) -> Vector:
    vector = _vector(left)
    if not isinstance(right, dict):
        return {labels: calculate(value, right) for labels, value in vector.items()}
    return {
        labels: calculate(value, right[labels])
        for labels, value in vector.items()
        if labels in right
    }


def _extrapolated(samples: list[tuple[float, float]], start: float, end: float) -> float:
    """A counter's increase from start to end, extrapolated from the samples in between."""
    first, last = samples[0], samples[-1]
    increase = last[1] - first[1]
    for (_, before), (_, after) in itertools.pairwise(samples):
        # A smaller value is a counter reset.
        increase += before if after < before else 0.0
    sampled = last[0] - first[0]
    gap = sampled / (len(samples) - 1)
    until_first = first[0] - start
    if increase > 0 and first[1] >= 0:
        # Counters start at 0, so the extrapolation must not go below it.
        until_first = min(until_first, sampled * first[1] / increase)
    covered = sampled
    for missing in (until_first, end - last[0]):
        covered += missing if missing < gap * 1.1 else gap / 2
    return increase * covered / sampled


def _quantiles(share: float, buckets: Vector) -> Vector:
    histograms: dict[Labels, list[tuple[float, float]]] = {}
    for labels, count in buckets.items():
        bound = dict(labels)["le"]
        others = frozenset(label for label in labels if label[0] != "le")
        histograms.setdefault(others, []).append((float(bound), count))
    return {labels: _quantile(share, sorted(bounds)) for labels, bounds in histograms.items()}


def _quantile(share: float, bounds: list[tuple[float, float]]) -> float:
    total = bounds[-1][1]
    if len(bounds) < 2 or not total or not math.isinf(bounds[-1][0]):
        return math.nan
    rank = share * total
    index = next(n for n, (_, count) in enumerate(bounds) if count >= rank)
    if index == len(bounds) - 1:
        return bounds[-2][0]
    lower, below = bounds[index - 1] if index else (0.0, 0.0)
    upper, count = bounds[index]
    return lower + (upper - lower) * (rank - below) / (count - below)
