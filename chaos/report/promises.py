"""How often a run has tried each promise, and how often it was broken.

docs/promises.md has all promises, their mechanisms and their other tests.
"""

from collections.abc import Collection
from dataclasses import dataclass

from chaos.checks.audit import Fault as Finding
from chaos.checks.history import Outcome
from chaos.faults.plan import OF_EDGES, Fault
from chaos.result import Result


@dataclass(frozen=True, slots=True)
class Measured:
    """A promise in a run: `runs` times `unit`, of which `failures` broke it."""

    number: str
    title: str
    runs: int
    unit: str
    failures: int

    @property
    def bound(self) -> str:
        """The upper bound of the failure probability, by the rule of three."""
        if self.failures:
            return "broken"
        return f"< {min(1.0, 3 / self.runs):.2%}" if self.runs else "not tried"


def measure(result: Result) -> list[Measured]:
    """The promises that a run of the whole mesh can try."""
    bookings = result.evidence.bookings if result.evidence else ()
    payments = result.evidence.ledger if result.evidence else ()
    captures = sum(entry.kind == "CAPTURE" for entry in payments)
    refunds = len(payments) - captures
    findings = Counted(result).of
    hung = len(result.hung())
    lost = sum(outage.away_seconds is None for outage in result.outages)
    late = sum(seconds is None for seconds in result.converged.values())
    outages = Counted(result).outages
    return [
        Measured(
            "P1",
            "Never more sold and held than there is",
            len(bookings),
            "bookings",
            findings(Finding.OVERSOLD, Finding.STOCK_DIFFERENCE) + len(result.violations),
        ),
        Measured(
            "P2",
            "No seat in two bookings",
            sum(bool(item.seat_id) for booking in bookings for item in booking.items),
            "booked seats",
            findings(Finding.SEAT_TWICE, Finding.SEAT_STATE_WRONG),
        ),
        Measured(
            "P3",
            "Every place is sold, held or available",
            len(bookings),
            "bookings",
            findings(
                Finding.SOLD_MISMATCH,
                Finding.HELD_MISMATCH,
                Finding.AVAILABILITY_WRONG,
                Finding.NOT_ENDED,
            ),
        ),
        Measured(
            "P4",
            "Every charge ends in a confirmed booking or a full refund",
            captures,
            "charges",
            findings(
                Finding.CHARGED_FOR_NOTHING,
                Finding.PAYMENT_LOST,
                Finding.CONFIRMATION_LOST,
                Finding.UNKNOWN_PAYMENT,
                Finding.REFUNDED_YET_CONFIRMED,
            ),
        ),
        Measured(
            "P5",
            "No booking is charged twice, none confirmed without a charge",
            captures,
            "charges",
            findings(Finding.CHARGED_TOO_MUCH, Finding.CONFIRMED_UNPAID),
        ),
        Measured(
            "P7",
            "Each refund is made once",
            refunds,
            "refunds",
            findings(Finding.REFUNDED_TOO_MUCH, Finding.REFUND_OPEN),
        ),
        Measured(
            "P8",
            "One booking per idempotency key",
            len(result.journal.orders),
            "keys",
            findings(
                Finding.KEY_TWICE,
                Finding.BOOKING_SHARED,
                Finding.BOOKING_UNREPORTED,
                Finding.BOOKING_LOST,
            ),
        ),
        Measured(
            "P13",
            "Every killed process serves again without help",
            outages({Fault.KILL, Fault.STOP, Fault.FREEZE}),
            "kills, stops and freezes",
            lost,
        ),
        Measured(
            "P14", "Sales go on without Redis", outages(targets="redis"), "outages of Redis", 0
        ),
        Measured(
            "P15",
            "PostgreSQL's outages: answers in time, nothing leaks",
            outages(targets="postgres"),
            "outages of PostgreSQL or the way to it",
            hung + len(result.leftovers),
        ),
        Measured(
            "P16",
            "A lost COMMIT is neither lost nor repeated",
            sum(result.commits_cut.values()),
            "connections cut at a COMMIT",
            findings(Finding.BOOKING_LOST, Finding.KEY_TWICE, Finding.BOOKING_UNREPORTED),
        ),
        Measured(
            "P17",
            "Sagas end after a partition",
            outages(OF_EDGES),
            "broken edges",
            late + result.has_open_sagas,
        ),
        Measured(
            "P18",
            "Cancelled calls leave nothing behind",
            result.history.counts()[Outcome.LEFT],
            "cancelled calls",
            len(result.leftovers),
        ),
    ]


class Counted:
    """Counts findings and outages of a result."""

    def __init__(self, result: Result) -> None:
        self._result = result

    def of(self, *faults: Finding) -> int:
        return sum(finding.fault in faults for finding in self._result.findings)

    def outages(self, faults: Collection[Fault] = (), targets: str = "") -> int:
        """Outages of these kinds, and of these targets by the end of their names."""
        return sum(
            (not faults or outage.fault in faults) and outage.target.endswith(targets)
            for outage in self._result.outages
        )
