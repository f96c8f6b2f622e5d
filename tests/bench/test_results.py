"""Medians, ratios, goals, the table and the comparison of benchmark reports."""

import io
import json
from pathlib import Path

import pytest
from rich.console import Console

from bench import output, processes
from bench.final_audit import lost
from bench.measuring import mean_sizes
from bench.results import BenchmarkReport, Goal, Measurement, Result, percentile
from bench.scenarios import SCENARIOS

OF_ECHO = Goal("of echo", 0.55)


def a_result(*rates: float, title: str = "", goals: tuple[Goal, ...] = ()) -> Result:
    return Result(title, goals, [Measurement(rate=rate) for rate in rates])


def a_report(**rates: float) -> BenchmarkReport:
    return BenchmarkReport(
        results={
            name: a_result(rate, title=name, goals=() if name == "echo" else (OF_ECHO,))
            for name, rate in rates.items()
        }
    )


def a_console() -> Console:
    return Console(width=200, record=True, file=io.StringIO())


def text_of(report: BenchmarkReport) -> str:
    console = a_console()
    output.show(report, console)
    return console.export_text()


def test_ratios_are_of_the_medians() -> None:
    report = BenchmarkReport(
        results={
            "echo": a_result(900, 1000, 5000),
            "monolith": a_result(50),
            "place_hot": a_result(100, 600, 700, goals=(OF_ECHO, Goal("of monolith", 10))),
        }
    )
    assert report.ratios("place_hot") == {"of echo": 0.6, "of monolith": 12}
    assert report.ratios("echo") == {}


def test_a_goal_may_compare_with_another_scenario() -> None:
    goal = Goal("of few", 1 / 1.3)
    report = BenchmarkReport(results={"few": a_result(130), "many": a_result(99, goals=(goal,))})
    assert report.verdict("many", goal) is False
    report.results["many"].rounds = [Measurement(rate=101)]
    assert report.verdict("many", goal) is True


def test_a_goal_without_its_ratio_is_not_judged() -> None:
    report = a_report(place_hot=100)
    assert report.verdict("place_hot", Goal("of echo", 0.5)) is None


@pytest.mark.parametrize(
    ("goal", "met", "missed"),
    [(Goal("of echo", 0.5), 0.5, 0.49), (Goal("p50", 3, at_least=False), 3.0, 3.1)],
)
def test_goals_have_a_direction(goal: Goal, met: float, missed: float) -> None:
    assert goal.is_met(met)
    assert not goal.is_met(missed)


def test_medians_of_mappings_count_a_missing_key_as_zero() -> None:
    result = Result(
        "", (), [Measurement(rate=1, cpu_ms={"a": value} if value else {}) for value in (0, 0, 4)]
    )
    assert result.medians("cpu_ms") == {"a": 0}


def test_the_table_has_goals_cpu_and_unexpected_answers() -> None:
    report = a_report(echo=1000)
    report.results["place_hot"] = Result(
        "PlaceBooking",
        (Goal("of echo", 0.55),),
        [
            Measurement(
                rate=600,
                p50_ms=1.25,
                cpu_ms={"booking_svc": 1.1, "postgres": 0.5},
                batches={"place": 12.5},
                unexpected={"429": 7},
            )
        ],
    )
    report.memory_mib = {"redis": 5, "postgres": 95}
    report.findings = ["sold twice"]
    text = text_of(report)
    for part in ("✓ 0.60 of echo, goal ≥ 0.55", "1.60 = booking_svc 1.10, postgres 0.50", " 7 │",
                 "place 12.5", "Memory in MiB: 100 =", "AUDIT: sold twice"):  # fmt: skip
        assert part in text


def test_a_missed_goal_is_marked() -> None:
    report = a_report(echo=1000)
    report.results["get_me"] = a_result(100, goals=(Goal("of echo", 0.65),))
    assert "✗ 0.10 of echo, goal ≥ 0.65" in text_of(report)


def test_a_report_survives_json(tmp_path: Path) -> None:
    report = a_report(echo=1000)
    report.about["version"] = "abc"
    report.results["idle"] = Result(
        "Idle",
        (Goal("% of a core", 4, at_least=False),),
        [Measurement(rate=1, ratios={"% of a core": 3.5})],
    )
    [data, *_] = output.write(report, tmp_path)
    read = output.read(data)
    assert json.dumps(read.as_json()) == json.dumps(report.as_json())
    assert read.verdict("idle", read.results["idle"].goals[0]) is True


def test_reports_are_compared_by_scenario_and_by_their_own_echo() -> None:
    before, after = a_report(echo=1000, get_me=200, gone=1), a_report(echo=2000, get_me=600, new=1)
    console = a_console()
    output.show_comparison(before, after, console)
    [line] = [line for line in console.export_text().splitlines() if "get_me" in line]
    assert [cell.strip() for cell in line.strip("│").split("│")] == [
        *("get_me", "200.0", "600.0", "3.00", "0.20", "0.30", "1.50")
    ]
    assert "gone" not in console.export_text()


@pytest.mark.parametrize(("percent", "value"), [(50, 2), (99, 4), (25, 1)])
def test_percentiles_are_by_nearest_rank(percent: int, value: float) -> None:
    assert percentile([4, 3, 2, 1], percent) == value
    assert percentile([], percent) == 0


def test_batch_sizes_are_those_between_two_readings() -> None:
    metrics = """# TYPE boxoffice_batch_size histogram
boxoffice_batch_size_bucket{{batches="place",le="+Inf"}} {count}
boxoffice_batch_size_count{{batches="place"}} {count}
boxoffice_batch_size_sum{{batches="place"}} {sum}
"""
    before = processes.parse_batches(metrics.format(count=10, sum=20))
    after = processes.parse_batches(metrics.format(count=14, sum=60))
    assert before == {"place": (20, 10)}
    assert mean_sizes(before, after) == {"place": 10}
    assert mean_sizes({}, before) == {"place": 2}
    assert mean_sizes(before, before) == {}


def test_a_booking_that_was_answered_and_does_not_exist_is_a_finding() -> None:
    assert lost((), 0) == []
    assert lost((), 2) == ["2 bookings were answered, 0 exist"]


def test_goals_name_scenarios_that_exist() -> None:
    peers = {"echo", "monolith"}
    for scenario in SCENARIOS.values():
        for goal in scenario.goals:
            if goal.ratio.startswith("of "):
                assert goal.ratio.removeprefix("of ") in peers | SCENARIOS.keys()
