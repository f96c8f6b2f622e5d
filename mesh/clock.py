"""The time, as a parameter: tests move it, domain functions get `now` and never ask."""

from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], datetime]
"""Returns the time now, aware, in UTC."""


def system_clock() -> datetime:
    return datetime.now(UTC)
