"""Measurements, their medians, and the goals that they are compared with. No input or output."""

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

ECHO, MONOLITH = "echo", "monolith"


@dataclass(frozen=True, slots=True)
class Goal:
    """A bound of a ratio: `at_least`, or else at most."""

    ratio: str
    bound: float
    at_least: bool = True

    def is_met(self, value: float) -> bool:
        return value >= self.bound if self.at_least else value <= self.bound

    def __str__(self) -> str:
        return f"{'≥' if self.at_least else '≤'} {self.bound:g}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Measurement:
    """One round of a scenario.

    `rate` is the number of expected answers a second. `cpu_ms` is CPU time by process and
    `batches` the mean size by kind of batch, both per expected answer or batch of this round.
    `unexpected` counts other answers by status. `ratios` are those that only the scenario knows.
    """

    rate: float
    p50_ms: float = 0.0
    p99_ms: float = 0.0
    cpu_ms: Mapping[str, float] = field(default_factory=dict)
    batches: Mapping[str, float] = field(default_factory=dict)
    unexpected: Mapping[str, int] = field(default_factory=dict)
    ratios: Mapping[str, float] = field(default_factory=dict)


@dataclass(slots=True)
class Result:
    """A scenario's rounds."""

    title: str
    goals: Sequence[Goal] = ()
    rounds: list[Measurement] = field(default_factory=list)

    def median(self, value: str) -> float:
        return statistics.median(float(getattr(measurement, value)) for measurement in self.rounds)

    def medians(self, value: str) -> dict[str, float]:
        """The medians by key of a mapping; a round without the key counts as 0."""
        mappings: list[Mapping[str, float]] = [
            getattr(measurement, value) for measurement in self.rounds
        ]
        keys = sorted({key for mapping in mappings for key in mapping})
        return {
            key: statistics.median(mapping.get(key, 0.0) for mapping in mappings) for key in keys
        }

    @property
    def unexpected(self) -> int:
        return sum(sum(measurement.unexpected.values()) for measurement in self.rounds)


@dataclass(slots=True)
class BenchmarkReport:
    """A run: where and how it was measured, all results, memory in MiB, findings of the audit."""

    about: dict[str, str] = field(default_factory=dict)
    results: dict[str, Result] = field(default_factory=dict)
    memory_mib: dict[str, float] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> "BenchmarkReport":
        results = {
            name: Result(
                result["title"],
                [Goal(**goal) for goal in result["goals"]],
                [Measurement(**measured) for measured in result["rounds"]],
            )
            for name, result in fields["results"].items()
        }
        return cls(**{**fields, "results": results})

    def ratios(self, name: str) -> dict[str, float]:
        """A scenario's own ratios, and those of its rate to the rates that its goals name."""
        result = self.results[name]
        ratios = result.medians("ratios")
        for goal in result.goals:
            other = goal.ratio.removeprefix("of ")
            if other not in self.results:
                continue
            if rate := self.results[other].median("rate"):
                ratios[goal.ratio] = result.median("rate") / rate
        return ratios

    def verdict(self, name: str, goal: Goal) -> bool | None:
        """Whether a goal is met; None if its ratio was not measured."""
        value = self.ratios(name).get(goal.ratio)
        return None if value is None else goal.is_met(value)


def percentile(values: Iterable[float], percent: int) -> float:
    """The percentile by nearest rank; 0 of no values."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)] if ordered else 0.0


def compare(
    before: BenchmarkReport, after: BenchmarkReport
) -> list[tuple[str, float, float, float, float]]:
    """By scenario of both: rates, and ratios to the echo of their own run, before and after.

    Without an echo the ratios are 0.
    """
    return [
        (
            name,
            before.results[name].median("rate"),
            after.results[name].median("rate"),
            before.ratios(name).get("of echo", 0.0),
            after.ratios(name).get("of echo", 0.0),
        )
        for name in before.results
        if name in after.results
    ]
