"""The statistics in the report's tables."""

from demo.report import busiest_second, percentile, rate


def test_percentiles_by_nearest_rank() -> None:
    hundred = [float(n) for n in range(100, 0, -1)]
    assert [percentile(hundred, p) for p in (50, 99, 100)] == [50, 99, 100]
    assert percentile([7.0], 99) == 7
    assert percentile([], 50) == 0


def test_the_rate_ignores_stragglers() -> None:
    steady = [n / 10 for n in range(100)]
    assert round(rate(steady)) == 10
    assert round(rate([*steady, 500.0])) == 10
    assert rate([1.0]) == 0


def test_the_busiest_second() -> None:
    assert busiest_second([0.0, 0.5, 0.9, 1.4, 5.0]) == 3
    assert busiest_second([]) == 0
