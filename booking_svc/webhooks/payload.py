"""Messages to endpoints, with the field names of REST, from the outbox's messages."""

import base64
import json
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from google.protobuf.json_format import MessageToDict

from booking_svc.bookings.outbox import OF_WAITING_LIST
from booking_svc.catalogue.outbox import PREFIX as OF_CATALOGUE
from booking_svc.clients.ports import InboundWebhook
from boxoffice.bookings.v1 import booking_event_pb2
from boxoffice.catalogue.v1 import catalogue_event_pb2
from boxoffice.queueing.v1 import waiting_list_event_pb2
from mesh.ids import new_id

TEST = "webhook.test"
"""The type of the messages of TestWebhookEndpoint."""


INBOUND = "inbound.received"


@dataclass(frozen=True, slots=True)
class WebhookMessage:
    """`message_id` is the `webhook-id`; `body` is what is signed and sent:
    `{"type": …, "timestamp": …, "data": {"booking": …, "confirmed": {…}}}`."""

    message_id: UUID
    event_type: str
    body: bytes


def from_outbox(event_type: str, payload: bytes) -> WebhookMessage:
    """The message of a domain event, by its type and payload in the outbox."""
    if event_type.startswith(OF_CATALOGUE):
        return _of_catalogue(catalogue_event_pb2.CatalogueEvent.FromString(payload))
    if event_type.startswith(OF_WAITING_LIST):
        return _of_waiting_list(waiting_list_event_pb2.WaitingListEvent.FromString(payload))
    return _of_booking(booking_event_pb2.BookingEvent.FromString(payload))


def of_inbound(webhook: InboundWebhook) -> WebhookMessage:
    """A webhook of another sender, passed on."""
    try:
        text = webhook.body.decode()
    except UnicodeDecodeError:
        text = None
    inbound = {
        "inboundWebhookId": str(webhook.inbound_id),
        "sender": webhook.sender,
        "contentType": webhook.content_type,
        "body": base64.b64encode(webhook.body).decode(),
        "text": text,
    }
    content = {
        "type": INBOUND,
        "timestamp": webhook.receive_time.isoformat().replace("+00:00", "Z"),
        "data": {"inbound": inbound},
    }
    body = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
    return WebhookMessage(webhook.inbound_id, INBOUND, body)


def of_test(endpoint_id: UUID, *, now: datetime) -> WebhookMessage:
    """A message with which an admin tries an endpoint."""
    content = {
        "type": TEST,
        "timestamp": now.isoformat().replace("+00:00", "Z"),
        "data": {"webhookEndpointId": str(endpoint_id)},
    }
    return WebhookMessage(new_id(), TEST, json.dumps(content, separators=(",", ":")).encode())


def _of_booking(message: booking_event_pb2.BookingEvent) -> WebhookMessage:
    fields = MessageToDict(message, always_print_fields_with_no_presence=True)
    # Events omit the timeline; an empty list would mean that the booking has none.
    booking = {name: value for name, value in fields["booking"].items() if name != "timeline"}
    kind = message.WhichOneof("event") or ""
    return _message("booking", booking, kind, fields)


def _of_catalogue(message: catalogue_event_pb2.CatalogueEvent) -> WebhookMessage:
    fields = MessageToDict(message, always_print_fields_with_no_presence=True)
    return _message("event", fields["event"], message.WhichOneof("kind") or "", fields)


def _of_waiting_list(message: waiting_list_event_pb2.WaitingListEvent) -> WebhookMessage:
    fields = MessageToDict(message, always_print_fields_with_no_presence=True)
    # Events have no position: it changes with every entry in front.
    return _message(
        "waiting_list",
        fields["waitingListEntry"],
        message.WhichOneof("kind") or "",
        fields,
        field="waitingListEntry",
    )


def _message(
    resource: str,
    value: dict[str, object],
    kind: str,
    fields: dict[str, object],
    *,
    field: str = "",
) -> WebhookMessage:
    """`kind` is the set field of the message's oneof, e.g. `event_moved`; `field` is the name of
    the resource in `data`, if it is another."""
    first, *rest = kind.split("_")
    name = first + "".join(part.title() for part in rest)
    content = {
        "type": f"{resource}.{kind}",
        "timestamp": fields["eventTime"],
        "data": {field or resource: value, name: fields.get(name, {})},
    }
    body = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
    return WebhookMessage(UUID(str(fields["eventKey"])), f"{resource}.{kind}", body)
