"""Conversions of money, times and ids to and from the contract's messages, for all services."""

from datetime import UTC, datetime
from typing import Any
from uuid import UUID

from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from boxoffice.types.v1 import money_pb2
from mesh.errors import FieldViolation, invalid
from mesh.money import Money

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECONDS_PER_DAY = 86_400


def money_to_proto(money: Money) -> money_pb2.Money:
    return money_pb2.Money(currency_code=money.currency_code, amount_minor=money.amount_minor)


def money_from_proto(message: money_pb2.Money) -> Money:
    return Money(message.amount_minor, message.currency_code)


def time_to_proto(time: datetime | None) -> Timestamp | None:
    """None stays None, which leaves the message's field unset."""
    if time is None:
        return None
    # FromDatetime takes three times as long.
    since = time - _EPOCH
    return Timestamp(
        seconds=since.days * _SECONDS_PER_DAY + since.seconds, nanos=since.microseconds * 1000
    )


def time_from_proto(message: Timestamp, field: str = "time") -> datetime:
    """A time in UTC. Raises VALIDATION_FAILED for `field` outside the years 1 to 9999."""
    try:
        return message.ToDatetime(UTC)
    except (ValueError, OverflowError):
        raise invalid(FieldViolation(field, "must be within the years 1 to 9999")) from None


def id_to_proto(value: UUID | None) -> str | None:
    """None stays None, which leaves the message's field unset."""
    return None if value is None else str(value)


def given(message: Message, field: str) -> Any:
    """The value of an optional field; None when the client did not send it."""
    return getattr(message, field) if message.HasField(field) else None
