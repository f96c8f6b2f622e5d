"""Domain events of the catalogue: written to the outbox with their effect, sent by webhooks.

Drafts have none. The outbox holds the contract's messages; bookings/outbox.py has those of bookings.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.catalogue import proto
from booking_svc.catalogue.event_moves import Schedule
from booking_svc.catalogue.events import Event
from booking_svc.clients.ports import Availability
from boxoffice.catalogue.v1 import catalogue_event_pb2, event_pb2
from mesh.conversions import time_to_proto
from mesh.db import outbox
from mesh.ids import new_id

PREFIX = "event."
"""Of the types of these events, e.g. `event.sold_out`."""

_JSON_NAMES = {field.name: field.json_name for field in event_pb2.Event.DESCRIPTOR.fields}
# `revision` and `update_time` change always; webhooks are not sent for a description.
_COMPARED = _JSON_NAMES.keys() - {"description", "update_time", "status", "available", "etag"}


@dataclass(frozen=True, slots=True)
class Created:
    """Created, or published."""


@dataclass(frozen=True, slots=True)
class Changed:
    """`fields` are those of Event in JSON; `moved` is the old and the new schedule, if it moved."""

    fields: Sequence[str]
    moved: tuple[Schedule, Schedule] | None = None


@dataclass(frozen=True, slots=True)
class Cancelled:
    reason: str


@dataclass(frozen=True, slots=True)
class SoldOut:
    """The last available place was held or sold."""


Change = Created | Changed | Cancelled | SoldOut


async def append(
    connection: AsyncConnection, *, event: Event, stock: Availability, change: Change, now: datetime
) -> None:
    """Writes an event in the transaction of its effect. `event` is the state after it."""
    if event.is_draft:
        return
    message = catalogue_event_pb2.CatalogueEvent(
        event_key=str(new_id()),
        event_time=time_to_proto(now),
        event=proto.event(event, stock, now),
    )
    match change:
        case Created():
            message.created.SetInParent()
        case Changed(fields, moved):
            message.changed.changed_fields.extend(fields)
            if moved is not None:
                message.changed.before.CopyFrom(proto.schedule(moved[0]))
                message.changed.after.CopyFrom(proto.schedule(moved[1]))
        case Cancelled(reason):
            message.cancelled.reason = reason
            message.cancelled.SetInParent()
        case SoldOut():
            message.sold_out.SetInParent()
    new = outbox.NewEvent(
        aggregate_id=event.event_id,
        event_type=f"{PREFIX}{message.WhichOneof('kind')}",
        payload=message.SerializeToString(),
    )
    await outbox.append(connection, [new], now=now)


def changed_fields(before: Event, after: Event) -> tuple[str, ...]:
    """The fields of Event in JSON that differ; empty if only the description does."""
    return tuple(
        _JSON_NAMES[name]
        for name in sorted(_COMPARED)
        if getattr(before, name, None) != getattr(after, name, None)
    )
