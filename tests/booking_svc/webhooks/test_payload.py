"""Messages to webhook endpoints are what the OpenAPI document says, for every type of event."""

import json
from datetime import datetime
from typing import Any
from uuid import UUID

import pytest
from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor

from booking_svc.clients.ports import InboundWebhook
from booking_svc.webhooks import payload
from boxoffice.bookings.v1 import booking_event_pb2
from boxoffice.catalogue.v1 import catalogue_event_pb2
from boxoffice.queueing.v1 import waiting_list_event_pb2
from openapi.examples import Examples
from testing.described import api, checked_webhook

AN_ID = "0197f000-0000-7000-8000-000000000001"
A_TIME = "2030-06-01T09:30:00Z"
A_MOMENT = datetime.fromisoformat(A_TIME)
SOURCES: dict[str, Any] = {
    "booking": booking_event_pb2.BookingEvent,
    "event": catalogue_event_pb2.CatalogueEvent,
    "waiting_list": waiting_list_event_pb2.WaitingListEvent,
}
STATES = {"waiting_list": "waiting_list_entry"}


def test_every_message_is_as_described(subtests: pytest.Subtests) -> None:
    seen = set()
    for resource, source in SOURCES.items():
        fields = source.DESCRIPTOR.fields_by_name
        state = fields[STATES.get(resource, resource)]
        example = Examples().of_message(state.message_type)
        for kind in source.DESCRIPTOR.oneofs[0].fields:
            with subtests.test(f"{resource}.{kind.name}"):
                content = {"eventKey": AN_ID, "eventTime": A_TIME, state.json_name: example}
                event = json_format.ParseDict(
                    content | {kind.json_name: always_set(kind)}, source()
                )
                made = payload.from_outbox(f"{resource}.{kind.name}", event.SerializeToString())
                checked_webhook(json.loads(made.body))
                seen.add(made.event_type)
    test = payload.of_test(UUID(AN_ID), now=A_MOMENT)
    for body in (b"{}", b"\xff"):
        inbound = payload.of_inbound(
            InboundWebhook(UUID(AN_ID), "crm", "text/plain", body, A_MOMENT)
        )
        checked_webhook(json.loads(inbound.body))
    checked_webhook(json.loads(test.body))
    assert seen | {test.event_type, inbound.event_type} == set(api()["webhooks"])


KNOWN = {
    "google.protobuf.Timestamp": A_TIME,
    "boxoffice.types.v1.Money": {"currencyCode": "INR", "amountMinor": "150000"},
}


def always_set(field: FieldDescriptor) -> object:
    """A value of a field: a known one, the first of an enum, or the fields that are always set."""
    if field.enum_type is not None:
        return field.enum_type.values[1].name
    if field.message_type is None or field.message_type.full_name in KNOWN:
        return KNOWN[field.message_type.full_name] if field.message_type else None
    return {
        inner.json_name: always_set(inner)
        for inner in field.message_type.fields
        if (inner.message_type or inner.enum_type)
        and not inner.is_repeated
        and inner.containing_oneof is None
    }
