"""AUTO: steers how many admitted visitors may be active, by what PlaceBooking really does.

Additive increase, multiplicative decrease, as TCP's congestion control: while bookings are placed
quickly the target grows step by step; slow or refused ones cut it by a third at once.
"""

from collections import deque
from dataclasses import dataclass

from mesh.errors import Reason

LEAST_TARGET = 5.0
MOST_TARGET = 100_000.0
INTERVAL_SECONDS = 5.0
"""Time between two decisions: long enough to see the effect of one."""

_SLOW_SECONDS = 1.0
_MOST_REFUSED = 0.02
_INCREASE = 10.0
_INCREASE_SHARE = 0.05
_DECREASE = 0.7
# Of a target that is not used, more would not be noticed.
_USED_SHARE = 0.8
_MAX_SAMPLES = 2_000

# What the mesh refuses because it is busy; all else is about the request or the stock.
BUSY = frozenset({Reason.OVERLOADED, Reason.DEADLINE_EXCEEDED, Reason.DEPENDENCY_UNAVAILABLE})


@dataclass(frozen=True, slots=True)
class Sales:
    """PlaceBooking calls of this process in an interval. `slowest_seconds` is the 95th percentile."""

    calls: int
    busy: int
    slowest_seconds: float


class SalesMonitor:
    """Collects the calls of this process; `take` empties it."""

    def __init__(self) -> None:
        self._seconds: deque[float] = deque(maxlen=_MAX_SAMPLES)
        self._calls = 0
        self._busy = 0

    def add(self, seconds: float, refusal: Reason | None) -> None:
        self._calls += 1
        self._busy += refusal in BUSY
        self._seconds.append(seconds)

    def take(self) -> Sales:
        ordered = sorted(self._seconds)
        slowest = ordered[int(len(ordered) * 0.95)] if ordered else 0.0
        sales = Sales(self._calls, self._busy, slowest)
        self._seconds.clear()
        self._calls = self._busy = 0
        return sales


def next_target(target: float, *, active: int, sales: Sales) -> float:
    """The number of active visitors to aim at.

    Without a call nothing is known and nothing changes.
    """
    if not sales.calls:
        return target
    if sales.busy > _MOST_REFUSED * sales.calls or sales.slowest_seconds > _SLOW_SECONDS:
        return max(LEAST_TARGET, target * _DECREASE)
    if active < _USED_SHARE * target:
        return target
    return min(MOST_TARGET, target + max(_INCREASE, _INCREASE_SHARE * target))
