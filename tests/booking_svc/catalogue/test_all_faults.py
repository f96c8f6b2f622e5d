"""Violations of the contract and of the catalogue's rules are named in one answer."""

from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.message import Message

from booking_svc.catalogue.servicers import events as _events  # noqa: F401 - names its rules
from booking_svc.catalogue.servicers import venues as _venues  # noqa: F401 - names its rules
from boxoffice.catalogue.v1 import event_service_pb2, venue_pb2, venue_service_pb2
from mesh.errors import DomainError, Reason
from mesh.ids import new_id
from mesh.rpc import validation

OFFER = {"name": "Floor", "price": {"currencyCode": "INR", "amountMinor": "1"}, "capacity": 9}
EVENT: dict[str, Any] = {
    "name": "Monsoon Nights",
    "startTime": "2099-07-01T14:00:00Z",
    "endTime": "2099-07-01T17:00:00Z",
    "saleStartTime": "2026-01-01T00:00:00Z",
    "offers": [OFFER],
}


def faults(request: Message) -> list[str]:
    """The fields that are named."""
    with pytest.raises(DomainError) as refused:
        validation.validate(request)
    assert refused.value.reason is Reason.VALIDATION_FAILED
    return sorted(violation.field for violation in refused.value.violations)


def a_request(**changes: Any) -> Message:
    event = EVENT | changes
    return json_format.ParseDict(
        {"event": {name: value for name, value in event.items() if value is not None}},
        event_service_pb2.CreateEventRequest(),
    )


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"name": "", "endTime": "2099-07-01T13:00:00Z", "timeZone": "Nowhere"},
            ["event.end_time", "event.name", "event.time_zone"],
        ),
        # An invalid id, price or enum is no obstacle, and is named once.
        (
            {
                "productionId": "x",
                "offers": [OFFER | {"price": None, "capacity": None}, OFFER | {"seatType": 9}],
            },
            [
                "event.offers[0].capacity",
                "event.offers[0].price",
                "event.offers[1].seat_type",
                "event.production_id",
            ],
        ),
        (
            {"saleStartTime": None, "currencyCode": "inr", "offers": [OFFER | {"capacity": 0}]},
            ["event.currency_code", "event.offers[0].capacity", "event.sale_start_time"],
        ),
        # The contract refuses the list; nothing is said about its elements.
        (
            {"name": "", "offers": []},
            ["event.name", "event.offers"],
        ),
        (
            {"name": "", "startTime": None, "auditoriumId": str(new_id())},
            ["event.name", "event.start_time", "event.start_time"],
        ),
    ],
)
def test_all_faults_of_a_new_event_are_named(changes: dict[str, Any], expected: list[str]) -> None:
    assert faults(a_request(**changes)) == expected


def test_a_fault_that_a_time_out_of_range_hides_is_named_by_the_next_answer() -> None:
    request: Any = a_request(name="")
    request.event.end_time.seconds = -(10**12)
    assert "event.name" in faults(request)


def test_the_domain_alone_refuses_what_follows_the_contract() -> None:
    validation.validate(a_request(endTime="2099-07-01T13:00:00Z"))


def test_all_faults_of_a_venue_and_of_an_auditorium_are_named() -> None:
    venue = venue_service_pb2.CreateVenueRequest(venue=venue_pb2.Venue(time_zone="Nowhere"))
    assert faults(venue) == ["venue.name", "venue.time_zone"]
    # An empty name of a zone is a fault of the contract.
    venue = venue_service_pb2.CreateVenueRequest(venue=venue_pb2.Venue())
    assert faults(venue) == ["venue.name", "venue.time_zone"]
    seat = {"number": "1", "seat_type": "REGULAR"}
    auditorium = json_format.ParseDict(
        {
            "venue_id": "x",
            "name": "Hall",
            "rows": [{"label": "A", "seats": [seat, seat]}, {"label": "A", "seats": [seat]}],
        },
        venue_service_pb2.CreateAuditoriumRequest(),
    )
    assert faults(auditorium) == [
        "rows[0].label",
        "rows[0].seats[0].number",
        "rows[0].seats[1].number",
        "rows[1].label",
        "venue_id",
    ]
