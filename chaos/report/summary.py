"""The tables of the report, from the result. Pure; markdown.py and page.py show them."""

from collections import defaultdict
from collections.abc import Iterable
from statistics import median

from chaos.checks.evidence import SOLD
from chaos.checks.history import Outcome
from chaos.faults.plan import Fault
from chaos.faults.processes import Outage
from chaos.report import promises
from chaos.result import Result
from tools.reporting.page import Section

_REASONS = 12


def sections(result: Result) -> list[Section]:
    """All tables in their order."""
    return [
        _promises(result),
        _faults(result),
        _calls(result),
        _sale(result),
    ]


def verdict(result: Result) -> str:
    """One sentence."""
    failures = result.failures()
    if failures:
        return f"{len(failures)} failures."
    return f"No failure in {len(result.outages)} faults and {len(result.history.attempts):,} calls."


def _promises(result: Result) -> Section:
    rows = [
        (
            measured.number,
            measured.title,
            f"{measured.runs:,}",
            measured.unit,
            str(measured.failures),
            measured.bound,
        )
        for measured in promises.measure(result)
    ]
    return Section(
        "Promises",
        ("", "Promise", "Runs", "of", "Failures", "Failure probability"),
        rows,
        "The bound is the rule of three: with no failure in n independent runs it is below 3/n with "
        "95 % confidence. Runs of one mesh are not fully independent.",
    )


def _faults(result: Result) -> Section:
    outages: dict[tuple[Fault, str], list[tuple[Outage, float | None]]] = defaultdict(list)
    for number, outage in enumerate(result.outages):
        outages[outage.fault, outage.target].append((outage, result.converged.get(number)))
    rows = [
        (
            fault,
            target,
            str(len(listed)),
            _spread(outage.away_seconds for outage, _ in listed),
            _spread(converged for _, converged in listed),
        )
        for (fault, target), listed in sorted(outages.items())
    ]
    return Section(
        "Faults",
        ("Fault", "Target", "Times", "Serving again after", "Sagas done after"),
        rows,
        "Seconds after the fault, or after its end if it has a duration: median, maximum. Serving "
        "again: the process is ready, and a purchase through every gateway succeeds.",
    )


def _calls(result: Result) -> Section:
    counts = result.history.counts()
    outside, failed = result.history.failed_outside(result.windows())
    rate = f"{failed / outside:.3%}" if outside else "no calls"
    rows = [(outcome.value, f"{counts[outcome]:,}") for outcome in Outcome]
    rows += [
        ("outside of faults and recoveries", f"{outside:,}"),
        ("  without a result", f"{failed:,} ({rate})"),
    ]
    rows += [
        (f"  {reason}", f"{count:,}")
        for reason, count in result.history.reasons().most_common(_REASONS)
    ]
    return Section("Calls", ("Attempts", "Count"), rows, "Each attempt of a retried call counts.")


def _sale(result: Result) -> Section:
    bookings = result.evidence.bookings if result.evidence else ()
    rows = [
        ("customers", f"{result.journal.customers:,}"),
        ("bookings", f"{len(bookings):,}"),
        (
            "  confirmed at the end",
            f"{sum(booking.status in SOLD for booking in bookings):,}",
        ),
        ("confirmations seen by customers", f"{result.journal.confirmed:,}"),
        ("customers with a call without an answer", f"{len(result.journal.unanswered):,}"),
        ("customers who left before the outcome", f"{result.journal.undecided:,}"),
        ("purchases of the canary", f"{result.purchases:,}"),
        ("looks at stock and bookings during the run", f"{result.looks:,}"),
        ("COMMITs cut before they reached PostgreSQL", f"{result.commits_cut.get('before', 0):,}"),
        ("COMMITs whose answer was lost", f"{result.commits_cut.get('after', 0):,}"),
        ("seconds until the audit was final", f"{result.settled_seconds:.0f}"),
    ]
    return Section("Sale", ("", "Count"), rows)


def _spread(values: Iterable[float | None]) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "–"
    return f"{median(known):.1f}, {max(known):.1f}"
