"""Domain values ⇄ the contract's messages. Shapes only: no rule is decided here.

What several servicers need; the rest is in catalogue_messages.py and booking_messages.py.
"""

from datetime import UTC, datetime
from uuid import UUID

from google.protobuf.timestamp_pb2 import Timestamp

from booking_svc import cancellation
from boxoffice.catalogue.v1 import event_pb2
from boxoffice.types.v1 import money_pb2
from mesh.money import Money


def money(value: Money) -> money_pb2.Money:
    return money_pb2.Money(currency_code=value.currency_code, amount_minor=value.amount_minor)


def time(value: datetime | None) -> Timestamp | None:
    if value is None:
        return None
    message = Timestamp()
    message.FromDatetime(value)
    return message


def to_time(message: Timestamp) -> datetime:
    return message.ToDatetime(tzinfo=UTC)


def policy(value: cancellation.Policy) -> event_pb2.CancellationPolicy:
    message = event_pb2.CancellationPolicy()
    if isinstance(value, cancellation.PurchaseWindow):
        message.purchase_window.window.FromTimedelta(value.window)
        return message
    for tier in value.tiers:
        added = message.tiered.tiers.add(percent=tier.percent, exclusive=tier.exclusive)
        added.before_start.FromTimedelta(tier.before_start)
    return message


def optional(value: UUID | None) -> str | None:
    return None if value is None else str(value)
