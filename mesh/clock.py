"""The clock as a parameter, so that tests can set it. Domain functions take `now` instead."""

from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], datetime]
"""Returns the current time, timezone-aware, in UTC."""


def system_clock() -> datetime:
    return datetime.now(UTC)


def rfc3339(time: datetime) -> str:
    """A time in text as the API writes it, for example `2026-12-01T05:49:05Z`."""
    return time.astimezone(UTC).isoformat().replace("+00:00", "Z")
