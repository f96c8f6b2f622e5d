"""What the customers went through, as they tell it: for the progress display and the report."""

import time
from collections import Counter
from dataclasses import dataclass, field

from demo.evidence import Order


@dataclass
class Journal:
    """Written by the customers while they run.

    `refusals` counts by what the customer was doing and the reason; `repicks` how often
    one took other seats because somebody was quicker. `placing_seconds` are from click to
    booking, `confirming_seconds` from paying to seeing it CONFIRMED, retries included.
    `placed_at` is in seconds of the monotonic clock.
    """

    customers: int
    inside: int = 0
    gone: int = 0
    repicks: int = 0
    impatient: int = 0
    confirmed: int = 0
    orders: list[Order] = field(default_factory=list)
    refusals: Counter[tuple[str, str]] = field(default_factory=Counter)
    unanswered: list[str] = field(default_factory=list)
    mishaps: list[str] = field(default_factory=list)
    placing_seconds: list[float] = field(default_factory=list)
    confirming_seconds: list[float] = field(default_factory=list)
    placed_at: list[float] = field(default_factory=list)

    @property
    def refused(self) -> int:
        return sum(self.refusals.values())

    def placed(self, clicked_at: float) -> None:
        """A customer got the booking that was asked for at `clicked_at`."""
        now = time.monotonic()
        self.placed_at.append(now)
        self.placing_seconds.append(now - clicked_at)
