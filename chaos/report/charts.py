"""Charts of a run: calls per second, errors per second, and recoveries, with the faults as bands.
Each band and dot has a tooltip.
"""

from collections import Counter
from collections.abc import Mapping, Sequence

from chaos.checks.history import Outcome
from chaos.result import Result
from tools.reporting import drawing
from tools.reporting.drawing import Axis, Band, Drawing, Style


def charts(result: Result) -> list[tuple[str, Drawing]]:
    """Title and drawing of each chart."""
    seconds = max(1, int(result.ended - result.began) + 1)
    axis = Axis(0, seconds)
    counts = result.history.by_second(result.began)
    bands = [
        Band(
            outage.began - result.began,
            max(outage.healed, outage.began + 0.5) - result.began,
            outage.action,
        )
        for outage in result.outages
    ]
    others = {
        outcome.value: counts[outcome]
        for outcome in (Outcome.FAILED, Outcome.UNKNOWN, Outcome.LEFT)
    }
    recovered = [
        (
            outage.healed - result.began,
            outage.away_seconds,
            f"{outage.action}: {outage.away_seconds:.1f} s",
        )
        for outage in result.outages
        if outage.away_seconds is not None
    ]
    answered = _points(seconds, {"answered": counts[Outcome.ANSWERED]})
    return [
        ("Calls answered per second", drawing.lines(axis, answered, bands=bands)),
        (
            "Calls without a result per second: failed (5xx), unknown (no answer), left (cancelled)",
            drawing.lines(
                axis,
                _points(seconds, others),
                bands=bands,
                styles=(Style.SECOND, Style.THIRD, Style.FOURTH),
            ),
        ),
        (
            "Seconds until serving again, by the end of the fault",
            drawing.dots(axis, recovered, bands=bands),
        ),
    ]


def _points(
    seconds: int, series: Mapping[str, Counter[int]]
) -> dict[str, Sequence[tuple[float, float]]]:
    return {
        name: [(second + 0.5, counter.get(second, 0)) for second in range(seconds)]
        for name, counter in series.items()
    }
