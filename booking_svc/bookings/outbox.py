"""Domain events of bookings: written to the outbox with their effect, read by mails and webhooks.

The outbox holds the contract's messages, which webhooks send. This module converts them from and
to plain values.
"""

from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.bookings import proto
from booking_svc.bookings.bookings import SYSTEM, Actor, Booking, By
from booking_svc.catalogue.event_moves import Schedule
from booking_svc.catalogue.outbox import PREFIX as OF_CATALOGUE
from booking_svc.catalogue.proto import schedule, to_schedule
from boxoffice.bookings.v1 import booking_event_pb2, booking_pb2
from boxoffice.types.v1 import money_pb2
from mesh.conversions import id_to_proto, money_from_proto, money_to_proto, time_from_proto
from mesh.db import outbox
from mesh.db.consumer import Batch
from mesh.db.database import on_commit
from mesh.db.outbox import OutboxReader
from mesh.db.pipeline import Statement
from mesh.ids import new_id
from mesh.money import Money
from mesh.observability import metrics

OF_WAITING_LIST = "waiting_list."
"""Prefix of the types of waiting lists' events, e.g. `waiting_list.offered`."""

_MONEY = metrics.counter(
    "booking_money_minor",
    "Money of bookings in minor units, sold and refunded.",
    "kind",
    "currency",
)
_CONFIRM_SECONDS = metrics.histogram(
    "booking_confirm_seconds",
    "Time from placing a booking to its confirmation, with the customer's time to pay.",
    buckets=(1.0, 5.0, 15.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0),
)


@dataclass(frozen=True, slots=True)
class Held:
    """Placed: the first event of every booking."""

    is_mail_wanted: bool = False


@dataclass(frozen=True, slots=True)
class Confirmed:
    """`by` is the system when `payment_id` was captured, or who checked out a free booking."""

    reason: str
    by: By = SYSTEM
    payment_id: UUID | None = None


@dataclass(frozen=True, slots=True)
class Cancelled:
    """`refund` is None if nothing is refunded."""

    actor: Actor
    reason: str
    refund: Money | None


@dataclass(frozen=True, slots=True)
class Expired:
    reason: str


@dataclass(frozen=True, slots=True)
class Failed:
    reason: str


@dataclass(frozen=True, slots=True)
class Rescheduled:
    """`refund` is None if nothing is refunded."""

    from_event_id: UUID
    previous_total: Money
    refund: Money | None


@dataclass(frozen=True, slots=True)
class Updated:
    """Items changed; `refund` is None if nothing is refunded."""

    previous_total: Money
    refund: Money | None


@dataclass(frozen=True, slots=True)
class Refunded:
    refund_id: UUID
    amount: Money


@dataclass(frozen=True, slots=True)
class Completed:
    """The event is over."""


@dataclass(frozen=True, slots=True)
class EventMoved:
    """The event takes place at another time or place. `key` is that of the domain event."""

    before: Schedule
    after: Schedule
    full_refund_until: datetime
    key: UUID


Change = (
    Held
    | Confirmed
    | Cancelled
    | Expired
    | Failed
    | Rescheduled
    | Updated
    | Refunded
    | Completed
    | EventMoved
)


@dataclass(frozen=True, slots=True)
class BookingEvent:
    """An event as consumers read it. `key` is unique: consumers use it to act once.

    `event_id` and `total` are those after the change. `payload` is the stored
    boxoffice.bookings.v1.BookingEvent.
    """

    key: UUID
    time: datetime
    booking_id: UUID
    event_id: UUID
    customer_id: UUID
    total: Money
    change: Change
    payload: bytes


async def append(
    connection: AsyncConnection, *, booking: Booking, change: Change, now: datetime
) -> None:
    """Writes an event in the transaction of its effect. `booking` is the state after it."""
    on_commit(connection, lambda: _count(booking, change))
    await outbox.append(connection, [to_new(booking, change, now)], now=now)


@dataclass(frozen=True, slots=True)
class OutboxEntry:
    """An event to write. `origin` is that of the causing call."""

    booking: Booking
    change: Change
    origin: str


def insertion(
    connection: AsyncConnection, events: Sequence[OutboxEntry], *, now: datetime
) -> Statement:
    """The statement that writes the events of several calls, in the caller's transaction."""
    for event in events:
        on_commit(connection, partial(_count, event.booking, event.change))
    new_events = [
        replace(to_new(event.booking, event.change, now), origin=event.origin) for event in events
    ]
    return outbox.insertion(connection, new_events, now=now)


def _count(booking: Booking, change: Change) -> None:
    if isinstance(change, Confirmed):
        _MONEY.labels("sold", booking.total.currency_code).inc(booking.total.amount_minor)
        _CONFIRM_SECONDS.observe((booking.update_time - booking.create_time).total_seconds())
    elif isinstance(change, Refunded):
        _MONEY.labels("refunded", change.amount.currency_code).inc(change.amount.amount_minor)


def to_new(booking: Booking, change: Change, now: datetime) -> outbox.NewEvent:
    """The event as the outbox stores it."""
    key = change.key if isinstance(change, EventMoved) else new_id()
    message = booking_event_pb2.BookingEvent(event_key=str(key), booking=proto.booking(booking))
    message.event_time.FromDatetime(now)
    message.booking.ClearField("timeline")
    # For the customer's client only. ClearField sets the message that it is called on.
    for parent in (message.booking, message.booking.change):
        if parent.HasField("payment"):
            parent.payment.ClearField("client_secret")
    _set(message, change)
    return outbox.NewEvent(
        aggregate_id=booking.booking_id,
        event_type=message.WhichOneof("event") or "",
        payload=message.SerializeToString(),
    )


class BookingEvents:
    """The outbox as batches of BookingEvent: `open_stream` of EventConsumer."""

    def __init__(self, reader: OutboxReader) -> None:
        self._reader = reader

    async def open(self, after_position: str) -> AsyncIterator[Batch[BookingEvent]]:
        async for batch in self._reader.stream(after_position):
            yield (
                batch[-1].position,
                [
                    from_payload(event.payload)
                    for event in batch
                    if not event.event_type.startswith((OF_CATALOGUE, OF_WAITING_LIST))
                ],
            )


def from_payload(payload: bytes) -> BookingEvent:
    """The event of a stored payload."""
    message = booking_event_pb2.BookingEvent.FromString(payload)
    return BookingEvent(
        key=UUID(message.event_key),
        time=time_from_proto(message.event_time),
        booking_id=UUID(message.booking.booking_id),
        event_id=UUID(message.booking.event_id),
        customer_id=UUID(message.booking.customer_id),
        total=money_from_proto(message.booking.total),
        change=_change(message),
        payload=payload,
    )


def _set(message: booking_event_pb2.BookingEvent, change: Change) -> None:
    match change:
        case Held(is_mail_wanted):
            message.held.mail_wanted = is_mail_wanted
            message.held.SetInParent()
        case Confirmed(reason, by, payment_id):
            message.confirmed.reason = reason
            message.confirmed.confirmed_by.CopyFrom(
                booking_event_pb2.ConfirmedBy(
                    actor=booking_pb2.TimelineEntry.Actor.Value(by.actor),
                    user_id=id_to_proto(by.user_id),
                    payment_id=id_to_proto(payment_id),
                )
            )
        case Cancelled(actor, reason, refund):
            message.cancelled.actor = booking_pb2.TimelineEntry.Actor.Value(actor)
            message.cancelled.reason = reason
            _put(message.cancelled.refund, refund)
        case Expired(reason):
            message.expired.reason = reason
            message.expired.SetInParent()
        case Failed(reason):
            message.failed.reason = reason
            message.failed.SetInParent()
        case Rescheduled(from_event_id, previous_total, refund):
            message.rescheduled.from_event_id = str(from_event_id)
            _put(message.rescheduled.previous_total, previous_total)
            _put(message.rescheduled.refund, refund)
        case Updated(previous_total, refund):
            _put(message.updated.previous_total, previous_total)
            _put(message.updated.refund, refund)
        case Refunded(refund_id, amount):
            message.refunded.refund_id = str(refund_id)
            _put(message.refunded.amount, amount)
        case Completed():
            message.completed.SetInParent()
        case EventMoved(before, after, full_refund_until):
            message.event_moved.before.CopyFrom(schedule(before))
            message.event_moved.after.CopyFrom(schedule(after))
            message.event_moved.full_refund_until.FromDatetime(full_refund_until)


def _change(message: booking_event_pb2.BookingEvent) -> Change:
    return _CHANGES[message.WhichOneof("event") or ""](message)


def _confirmed(message: booking_event_pb2.BookingEvent) -> Change:
    confirmed, by = message.confirmed, message.confirmed.confirmed_by
    if not by.actor:
        # Of an older version.
        return Confirmed(confirmed.reason)
    actor = Actor(booking_pb2.TimelineEntry.Actor.Name(by.actor))
    user_id = UUID(by.user_id) if by.HasField("user_id") else None
    payment_id = UUID(by.payment_id) if by.HasField("payment_id") else None
    return Confirmed(confirmed.reason, By(actor, user_id), payment_id)


def _cancelled(message: booking_event_pb2.BookingEvent) -> Change:
    cancelled = message.cancelled
    actor = Actor(booking_pb2.TimelineEntry.Actor.Name(cancelled.actor))
    return Cancelled(actor, cancelled.reason, _refund(cancelled))


def _event_moved(message: booking_event_pb2.BookingEvent) -> Change:
    moved = message.event_moved
    return EventMoved(
        to_schedule(moved.before),
        to_schedule(moved.after),
        time_from_proto(moved.full_refund_until),
        UUID(message.event_key),
    )


def _rescheduled(message: booking_event_pb2.BookingEvent) -> Change:
    moved = message.rescheduled
    return Rescheduled(
        UUID(moved.from_event_id), money_from_proto(moved.previous_total), _refund(moved)
    )


_CHANGES: dict[str, Callable[[booking_event_pb2.BookingEvent], Change]] = {
    "held": lambda message: Held(message.held.mail_wanted),
    "confirmed": _confirmed,
    "cancelled": _cancelled,
    "expired": lambda message: Expired(message.expired.reason),
    "failed": lambda message: Failed(message.failed.reason),
    "rescheduled": _rescheduled,
    "updated": lambda message: Updated(
        money_from_proto(message.updated.previous_total), _refund(message.updated)
    ),
    "refunded": lambda message: Refunded(
        UUID(message.refunded.refund_id), money_from_proto(message.refunded.amount)
    ),
    "completed": lambda _: Completed(),
    "event_moved": _event_moved,
}


def _put(message: money_pb2.Money, value: Money | None) -> None:
    if value is not None:
        message.CopyFrom(money_to_proto(value))


def _refund(
    message: booking_event_pb2.BookingCancelled
    | booking_event_pb2.BookingRescheduled
    | booking_event_pb2.BookingUpdated,
) -> Money | None:
    return money_from_proto(message.refund) if message.HasField("refund") else None
