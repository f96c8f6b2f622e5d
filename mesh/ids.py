"""Identifiers: UUIDv7 (RFC 9562), which sort by creation time."""

from datetime import datetime
from hashlib import sha256
from uuid import UUID

from uuid_utils.compat import uuid7


def new_id() -> UUID:
    return uuid7()


def derived_id(base: UUID, of: UUID) -> UUID:
    """The UUIDv7 of a pair of ids, always the same; it has the time of `base`."""
    low = int.from_bytes(sha256(base.bytes + of.bytes).digest()[:8], "big")
    variant = 0b10 << 62
    return UUID(bytes=base.bytes[:8] + (variant | low >> 2).to_bytes(8, "big"))


def first_id(time: datetime) -> UUID:
    """The smallest UUIDv7 of a time, to compare with."""
    return UUID(int=int(time.timestamp() * 1000) << 80 | 0x7 << 76 | 0b10 << 62)
