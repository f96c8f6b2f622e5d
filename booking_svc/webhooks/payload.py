"""The outbox's messages as the JSON that webhooks carry: the names that REST shows."""

import json

from google.protobuf.json_format import MessageToDict

from boxoffice.bookings.v1 import booking_event_pb2


def event_type(payload: bytes) -> str:
    """E.g. `booking.confirmed`."""
    return _type_of(booking_event_pb2.BookingEvent.FromString(payload))


def body(payload: bytes) -> bytes:
    """`{"type": …, "timestamp": …, "data": {"booking": …, "confirmed": …}}`, as it is signed."""
    message = booking_event_pb2.BookingEvent.FromString(payload)
    told = MessageToDict(message, always_print_fields_with_no_presence=True)
    kind = message.WhichOneof("event") or ""
    # The timeline is left out of events; an empty one would say that there is none.
    booking = {name: value for name, value in told["booking"].items() if name != "timeline"}
    content = {
        "type": _type_of(message),
        "timestamp": told["eventTime"],
        "data": {"booking": booking, kind: told.get(kind, {})},
    }
    return json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()


def _type_of(message: booking_event_pb2.BookingEvent) -> str:
    return f"booking.{message.WhichOneof('event')}"
