"""Counts and durations that the customers record, for the progress display and the report."""

import time
from collections import Counter
from dataclasses import dataclass, field

from chaos.checks.evidence import Order


@dataclass
class Journal:
    """Written by the customers while they run.

    `refusals` counts by action and reason; `repicks` counts choices of other seats after the first
    ones were taken; `undecided` counts customers who left before the outcome. `placing_seconds` are
    from click to booking, `confirming_seconds` from payment to CONFIRMED, including retries.
    `placed_at` is in seconds of the monotonic clock.
    """

    customers: int
    active: int = 0
    done: int = 0
    repicks: int = 0
    undecided: int = 0
    confirmed: int = 0
    orders: list[Order] = field(default_factory=list)
    refusals: Counter[tuple[str, str]] = field(default_factory=Counter)
    unanswered: list[str] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)
    placing_seconds: list[float] = field(default_factory=list)
    confirming_seconds: list[float] = field(default_factory=list)
    placed_at: list[float] = field(default_factory=list)

    @property
    def refused(self) -> int:
        return sum(self.refusals.values())

    def placed(self, clicked_at: float) -> None:
        """Records a booking that was requested at `clicked_at`."""
        now = time.monotonic()
        self.placed_at.append(now)
        self.placing_seconds.append(now - clicked_at)
