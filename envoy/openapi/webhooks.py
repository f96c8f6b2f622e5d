"""The `webhooks` section: the requests that a webhook endpoint receives."""

from collections.abc import Mapping
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.descriptor_pool import DescriptorPool

from openapi.comments import paragraphs, summary
from openapi.rules import Schema
from openapi.schemas import Schemas

SOURCES = {
    "booking": "boxoffice.bookings.v1.BookingEvent",
    "event": "boxoffice.catalogue.v1.CatalogueEvent",
    "waiting_list": "boxoffice.queueing.v1.WaitingListEvent",
}
"""By the first part of event types, e.g. `booking.held`, the message whose oneof has the second
part. The message has a field named like the first part, or as in _STATES, with the state after the
event."""

_STATES = {"waiting_list": "waiting_list_entry"}

_LEFT_OUT = frozenset({"timeline"})
"""What booking_svc/webhooks/payload.py leaves out."""

_ID: Schema = {"type": "string", "format": "uuid"}
_OTHERS: dict[str, tuple[str, dict[str, Schema]]] = {
    "inbound.received": (
        "A webhook of another sender, passed on. `body` is base64; `text` is null for a body that "
        "is no UTF-8.",
        {
            "inbound": {
                "type": "object",
                "required": ["inboundWebhookId", "sender", "contentType", "body", "text"],
                "properties": {
                    "inboundWebhookId": _ID,
                    "sender": {"type": "string"},
                    "contentType": {"type": "string"},
                    "body": {"type": "string", "contentEncoding": "base64"},
                    "text": {"type": ["string", "null"]},
                },
            }
        },
    ),
    "webhook.test": (
        "A message with which an admin tries an endpoint.",
        {"webhookEndpointId": _ID},
    ),
}
"""Types that booking_svc/webhooks/payload.py writes without a message of the contract."""

_HEADERS = {
    "webhook-id": "Id of the message, the same for every attempt: process each id once.",
    "webhook-timestamp": "Time of the attempt in seconds since 1970.",
    "webhook-signature": "One `v1,<base64>` per active secret, separated by spaces: HMAC-SHA256 "
    "over `<webhook-id>.<webhook-timestamp>.<body>`.",
}


def section(pool: DescriptorPool, answers: Schemas, comments: Mapping[str, str]) -> dict[str, Any]:
    """A path item per event type."""
    items = {}
    for resource, name in SOURCES.items():
        message = pool.FindMessageTypeByName(name)
        state = message.fields_by_name[_STATES.get(resource, resource)]
        [kind] = [oneof for oneof in message.oneofs if len(oneof.fields) > 1]
        for event in kind.fields:
            text = comments.get(event.full_name, "")
            parts = {
                state.json_name: answers.part(_message_of(state), _LEFT_OUT),
                event.json_name: answers.of(_message_of(event)),
            }
            items[f"{resource}.{event.name}"] = _item(f"{resource}.{event.name}", text, parts)
    for type_, (text, parts) in _OTHERS.items():
        items[type_] = _item(type_, text, parts)
    return items


def _item(type_: str, text: str, parts: dict[str, Schema]) -> dict[str, Any]:
    return {"post": _operation(type_, text, parts)}


def _operation(type_: str, text: str, parts: dict[str, Schema]) -> dict[str, Any]:
    """`parts` are the fields of `data`, all of which each message has."""
    return {
        "operationId": type_,
        "summary": summary(text),
        "description": paragraphs(text),
        "security": [],
        "parameters": [
            {
                "name": name,
                "in": "header",
                "required": True,
                "description": description,
                "schema": {"type": "string"},
            }
            for name, description in _HEADERS.items()
        ],
        "requestBody": {
            "required": True,
            "content": {
                "application/json": {
                    "schema": {
                        "type": "object",
                        "required": ["type", "timestamp", "data"],
                        "properties": {
                            "type": {"const": type_},
                            "timestamp": {"type": "string", "format": "date-time"},
                            "data": {
                                "type": "object",
                                "required": list(parts),
                                "properties": parts,
                            },
                        },
                    }
                }
            },
        },
        "responses": {
            "2XX": {"description": "Received. Anything else, or no answer in 15 s: sent again."},
            "410": {"description": "The endpoint is gone: it is disabled."},
        },
    }


def _message_of(field: FieldDescriptor) -> Descriptor:
    if field.message_type is None:
        raise TypeError(f"{field.full_name} is not a message")
    return field.message_type
