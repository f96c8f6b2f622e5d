"""The JSON body of webhooks, with the field names of REST, from the outbox's messages."""

import json

from google.protobuf.json_format import MessageToDict

from boxoffice.bookings.v1 import booking_event_pb2


def event_type(payload: bytes) -> str:
    """The event type, e.g. `booking.confirmed`."""
    return _type_of(booking_event_pb2.BookingEvent.FromString(payload))


def body(payload: bytes) -> bytes:
    """The signed body: `{"type": …, "timestamp": …, "data": {"booking": …, "confirmed": …}}`."""
    message = booking_event_pb2.BookingEvent.FromString(payload)
    fields = MessageToDict(message, always_print_fields_with_no_presence=True)
    kind = message.WhichOneof("event") or ""
    # Events omit the timeline; an empty list would mean that the booking has none.
    booking = {name: value for name, value in fields["booking"].items() if name != "timeline"}
    content = {
        "type": _type_of(message),
        "timestamp": fields["eventTime"],
        "data": {"booking": booking, kind: fields.get(kind, {})},
    }
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


def _type_of(message: booking_event_pb2.BookingEvent) -> str:
    return f"booking.{message.WhichOneof('event')}"
