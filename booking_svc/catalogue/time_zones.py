"""IANA time zones by name."""

from zoneinfo import available_timezones

from mesh.errors import FieldViolation

_NAMES = available_timezones()


def violations(field: str, name: str) -> list[FieldViolation]:
    """What is wrong with a time zone's name; nothing for a known one."""
    if name in _NAMES:
        return []
    return [FieldViolation(field, f"{name!r} is no IANA time zone, such as Asia/Kolkata")]
