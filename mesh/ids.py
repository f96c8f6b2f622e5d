"""Identifiers: UUIDv7 (RFC 9562), which sort by creation time."""

from uuid import UUID

from uuid_utils.compat import uuid7


def new_id() -> UUID:
    return uuid7()
