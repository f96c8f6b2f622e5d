"""The tables of the report: the sale, its speed, and the findings of the audit."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from chaos.checks.audit import Finding, still_open
from chaos.checks.evidence import OPEN, SOLD, Booking, Event, Evidence
from chaos.client import Tally
from chaos.faults.processes import Outage
from chaos.workload.customer import PLACE
from chaos.workload.journal import Journal

_SHOWN = 20


def show(
    console: Console,
    *,
    evidence: Evidence,
    findings: Sequence[Finding],
    journal: Journal,
    tally: Tally,
    kills: Sequence[Outage],
) -> None:
    """Prints all tables, then the findings."""
    for table in (
        _sale(evidence, journal),
        _refusals(journal, tally, kills),
        _speed(journal, tally),
        _stock(evidence),
        _money(evidence),
    ):
        console.print()
        console.print(table)
    console.print()
    _list(console, "Calls without an answer", journal.unanswered)
    oddities = [f"{count} times {text}" for text, count in tally.oddities.most_common()]
    _list(console, "Answers that violate the contract", [*journal.violations, *oddities])
    if findings:
        _list(console, f"Findings of the audit: {len(findings)}", map(_finding, findings))
    else:
        console.print(f"[bold green]Audit clean.[/] {_held(evidence)}", highlight=False)


def percentile(values: Iterable[float], percent: int) -> float:
    """The percentile by nearest rank; 0 without values."""
    ordered = sorted(values)
    if not ordered:
        return 0.0
    rank = -(-len(ordered) * percent // 100)
    return ordered[max(0, rank - 1)]


def rate(moments: Iterable[float]) -> float:
    """Events per second, without the first and last twentieth, to exclude stragglers."""
    ordered = sorted(moments)
    edge = len(ordered) // 20
    core = ordered[edge : len(ordered) - edge]
    if len(core) < 2 or core[-1] == core[0]:
        return 0.0
    return (len(core) - 1) / (core[-1] - core[0])


def busiest_second(moments: Iterable[float]) -> int:
    """The maximum of events within one second."""
    ordered = sorted(moments)
    first = maximum = 0
    for last, moment in enumerate(ordered):
        while moment - ordered[first] >= 1:
            first += 1
        maximum = max(maximum, last - first + 1)
    return maximum


def _sale(evidence: Evidence, journal: Journal) -> Table:
    bookings = evidence.bookings
    table = _table("The sale", "", "bookings", "places", "INR")
    _sale_row(table, "placed", bookings)
    for name, statuses in (
        ("confirmed", SOLD),
        ("declined and not paid", {"FAILED"}),
        ("expired", {"EXPIRED"}),
        ("cancelled", {"CANCELLED"}),
        ("still held", OPEN),
    ):
        chosen = [booking for booking in bookings if booking.status in statuses]
        if chosen or name != "still held":
            _sale_row(table, f"  {name}", chosen)
    refunded = [booking for booking in bookings if booking.refund_status == "PROCESSED"]
    _sale_row(table, "paid too late and refunded", refunded)
    retried = {order.booking_ids[0] for order in journal.orders if order.is_second_try}
    second_tries = [booking for booking in bookings if booking.booking_id in retried]
    _sale_row(table, "declined once, then paid in time", second_tries)
    confirmed = [booking for booking in second_tries if booking.status in SOLD]
    _sale_row(table, "  confirmed", confirmed)
    refunded = [booking for booking in second_tries if booking.refund_status == "PROCESSED"]
    # On an overloaded machine the payment can reach the booking after its hold.
    _sale_row(table, "  hold over when it arrived, refunded", refunded)
    table.add_section()
    table.add_row("customers", f"{journal.customers:,}")
    table.add_row("  with a call without an answer", f"{len(journal.unanswered):,}")
    table.add_row("  left before the outcome", f"{journal.undecided:,}")
    return table


def _sale_row(table: Table, name: str, bookings: Collection[Booking]) -> None:
    table.add_row(
        name,
        f"{len(bookings):,}",
        f"{sum(booking.quantity for booking in bookings):,}",
        _amount(sum(booking.total_minor for booking in bookings)),
    )


def _refusals(journal: Journal, tally: Tally, kills: Sequence[Outage]) -> Table:
    table = _table("Refusals and retries", "", "count")
    refusals = {f"{doing}: {reason}": count for (doing, reason), count in journal.refusals.items()}
    _counts(table, "refused", refusals)
    _counts(table, "retried with the same key", tally.retries)
    table.add_row("seats taken meanwhile, chose others", f"{journal.repicks:,}")
    if kills:
        table.add_section()
    for kill in kills:
        recovery = (
            f"recovered after {kill.away_seconds:.1f} s"
            if kill.away_seconds is not None
            else "[red]not recovered[/]"
        )
        table.add_row(kill.action, recovery)
    return table


def _counts(table: Table, name: str, counts: Mapping[str, int]) -> None:
    table.add_row(name, f"{sum(counts.values()):,}")
    for text, count in sorted(counts.items(), key=lambda item: -item[1]):
        table.add_row(f"  {text}", f"{count:,}")


def _speed(journal: Journal, tally: Tally) -> Table:
    table = _table("Speed", "", "p50", "p99", "per second", "busiest second")
    for name, seconds, moments in (
        ("click to booking, with retries", journal.placing_seconds, journal.placed_at),
        (PLACE + ", one call", tally.seconds[PLACE], ()),
        ("payment to CONFIRMED, as polled by the customer", journal.confirming_seconds, ()),
    ):
        table.add_row(
            name,
            _milliseconds(percentile(seconds, 50)),
            _milliseconds(percentile(seconds, 99)),
            f"{rate(moments):.0f}" if moments else "",
            f"{busiest_second(moments)}" if moments else "",
        )
    return table


def _stock(evidence: Evidence) -> Table:
    table = _table("Stock", "pool", "places", "sold", "confirmed", "held", "available")
    for event in evidence.events:
        table.add_section()
        table.add_row(f"[bold]{escape(event.name)}[/]")
        for pool in event.pools:
            offers = [offer for offer in event.offers if offer.pool_id == pool.pool_id]
            table.add_row(
                "  " + escape(" + ".join(offer.name for offer in offers)),
                f"{pool.capacity:,}",
                f"{pool.sold:,}",
                f"{_confirmed(evidence, event, pool.pool_id):,}",
                f"{pool.held:,}",
                f"{offers[0].available:,}" if offers else "",
            )
    return table


def _confirmed(evidence: Evidence, event: Event, pool_id: str) -> int:
    offers = {offer.offer_id for offer in event.offers if offer.pool_id == pool_id}
    return sum(
        item.quantity
        for booking in evidence.bookings
        if booking.event_id == event.event_id and booking.status in SOLD
        for item in booking.items
        if item.offer_id in offers
    )


def _money(evidence: Evidence) -> Table:
    table = _table("Money, from the payment provider's ledger", "", "entries", "INR")
    amounts: Counter[str] = Counter()
    entries: Counter[str] = Counter()
    for entry in evidence.ledger:
        amounts[entry.kind] += entry.amount_minor
        entries[entry.kind] += 1
    confirmed = [booking for booking in evidence.bookings if booking.status in SOLD]
    table.add_row("charged", f"{entries['CAPTURE']:,}", _amount(amounts["CAPTURE"]))
    table.add_row("refunded", f"{entries['REFUND']:,}", _amount(amounts["REFUND"]))
    table.add_row("kept", "", _amount(amounts["CAPTURE"] - amounts["REFUND"]))
    table.add_row(
        "price of the confirmed bookings",
        f"{len(confirmed):,}",
        _amount(sum(booking.total_minor for booking in confirmed)),
    )
    return table


def _held(evidence: Evidence) -> str:
    held = still_open(evidence)
    if not held:
        return "No booking is held any more."
    last = max(booking.hold_expire_time for booking in held)
    return f"{len(held)} unpaid bookings are still held, the last until {last:%H:%M:%S} UTC."


def _list(console: Console, title: str, lines: Iterable[str]) -> None:
    listed = list(lines)
    if not listed:
        return
    console.print(f"[bold red]{escape(title)}:[/]")
    for line in listed[:_SHOWN]:
        console.print(f"[red]  {escape(line)}[/]", highlight=False, soft_wrap=True)
    if len(listed) > _SHOWN:
        console.print(f"[red]  and {len(listed) - _SHOWN} more[/]")


def _finding(finding: Finding) -> str:
    return f"{finding.fault.name} ({finding.fault}): {finding.detail} [{', '.join(finding.ids)}]"


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", title_style="bold", expand=False)
    for number, column in enumerate(columns):
        # On a narrow screen the names wrap, not the numbers.
        table.add_column(column, justify="right" if number else "left", no_wrap=number > 0)
    return table


def _amount(minor: int) -> str:
    # Both events are priced in INR, which has two decimals.
    return f"{minor // 100:,}.{minor % 100:02}"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:,.0f} ms"
