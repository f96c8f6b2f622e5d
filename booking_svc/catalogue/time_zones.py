"""IANA time zones by name."""

from zoneinfo import available_timezones

from mesh.errors import FieldViolation

_NAMES = available_timezones()


def violations(field: str, name: str) -> list[FieldViolation]:
    """A violation of `field` for an unknown time zone."""
    if name in _NAMES:
        return []
    return [FieldViolation(field, f"must be an IANA time zone such as Asia/Kolkata, not {name!r}")]
