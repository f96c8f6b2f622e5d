"""The contract's rules on fields and headers, enforced before the servicer."""

import re
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2

from boxoffice.bookings.v1 import booking_service_pb2
from boxoffice.catalogue.v1 import event_service_pb2
from mesh.errors import DomainError
from mesh.rpc import call as current
from mesh.rpc.validation import refuse_unstorable, validate
from testing.network import (
    Context,
    Network,
    a_service,
    call,
    details_of,
    reason_of,
    refusal,
    standing_in,
)
from testing.tokens import a_payload, encoded

BOOKINGS = "boxoffice.bookings.v1.BookingService"
EVENT_ID = "01932c07-5e0a-7cc0-b3a5-d3a1b3c0ffee"


def a_booking(**changes: Any) -> booking_service_pb2.PlaceBookingRequest:
    item = booking_service_pb2.PlaceBookingRequest.Item(offer_id=EVENT_ID, quantity=1)
    return booking_service_pb2.PlaceBookingRequest(
        **{"event_id": EVENT_ID, "items": [item]} | changes
    )


async def place(
    network: Network, request: booking_service_pb2.PlaceBookingRequest, **headers: str
) -> list[str | None]:
    """Places a booking as the gateway does; returns the idempotency keys that the servicer got."""
    seen: list[str | None] = []

    async def place_booking(request: Any, context: Context) -> Any:
        seen.append(current.idempotency_key())
        return booking_service_pb2.PlaceBookingRequest()

    metadata = [("x-jwt-payload", encoded(a_payload()))]
    metadata += [(name.replace("_", "-"), value) for name, value in headers.items()]
    service = a_service(standing_in(BOOKINGS, PlaceBooking=place_booking))
    async with (
        network.serve("booking_svc", service) as port,
        network.plain_channel("gateway", "booking_svc", port) as channel,
    ):
        await call(channel, f"/{BOOKINGS}/PlaceBooking", request, metadata=metadata)
    return seen


async def invalid_fields(
    network: Network, request: booking_service_pb2.PlaceBookingRequest, **headers: str
) -> list[str]:
    error = await refusal(place(network, request, **headers))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert reason_of(error) == "VALIDATION_FAILED"
    violations = details_of(error, error_details_pb2.BadRequest).field_violations
    assert all(violation.description for violation in violations)
    assert all(re.fullmatch("[A-Z][A-Z0-9_]*[A-Z0-9]", v.reason) for v in violations)
    return [violation.field for violation in violations]


async def test_every_invalid_field_is_named(network: Network) -> None:
    item = booking_service_pb2.PlaceBookingRequest.Item
    request = a_booking(
        event_id="7",
        items=[
            item(offer_id=EVENT_ID, quantity=0),
            item(offer_id=EVENT_ID, quantity=2),
            item(seat_id="A1"),
            item(seat_id=EVENT_ID, quantity=1),
        ],
        checkout={"provider": "Sand Box", "success_url": "javascript:alert(1)"},
    )
    fields = await invalid_fields(network, request, idempotency_key="k")
    assert set(fields) == {
        "event_id",
        "items[0].quantity",
        "items[2].seat_id",
        "items[3]",
        "checkout.provider",
        "checkout.success_url",
    }


def test_a_missing_enum_value_is_required() -> None:
    request = event_service_pb2.SetEventStatusRequest(event_id=EVENT_ID)
    with pytest.raises(DomainError) as refused:
        validate(request)
    assert str(refused.value) == "status: value is required"


@pytest.mark.parametrize("quantity", [0, -1, 1001])
async def test_a_quantity_out_of_bounds_is_named(network: Network, quantity: int) -> None:
    item = booking_service_pb2.PlaceBookingRequest.Item(offer_id=EVENT_ID, quantity=quantity)
    fields = await invalid_fields(network, a_booking(items=[item]), idempotency_key="k")
    assert fields == ["items[0].quantity"]


async def test_too_many_and_no_items_are_refused(network: Network) -> None:
    item = booking_service_pb2.PlaceBookingRequest.Item(offer_id=EVENT_ID, quantity=1)
    for items in ([], [item] * 101):
        fields = await invalid_fields(network, a_booking(items=items), idempotency_key="k")
        assert fields == ["items"]


@pytest.mark.parametrize("header", ["idempotency_key", "x_idempotency_key"])
async def test_the_servicer_gets_the_key(network: Network, header: str) -> None:
    assert await place(network, a_booking(), **{header: "abc"}) == ["abc"]


async def test_a_required_key_must_have_1_to_128_characters(network: Network) -> None:
    assert await invalid_fields(network, a_booking()) == ["Idempotency-Key"]
    for key in ("", "k" * 129):
        fields = await invalid_fields(network, a_booking(), idempotency_key=key)
        assert fields == ["Idempotency-Key"]
    assert await place(network, a_booking(), idempotency_key="k" * 128) == ["k" * 128]


@pytest.mark.parametrize("sent", [b"\xff", b"\x0a\x05ab", b"\x0a\x02\xc3\x28"])
async def test_malformed_bytes_are_refused(network: Network, sent: bytes) -> None:
    """gRPC's runtime would answer INTERNAL."""
    method = f"/{BOOKINGS}/PlaceBooking"
    metadata = [("x-jwt-payload", encoded(a_payload())), ("idempotency-key", "k")]
    async with (
        network.serve("booking_svc", a_service(standing_in(BOOKINGS))) as port,
        network.plain_channel("gateway", "booking_svc", port) as channel,
    ):
        stub: grpc.aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(method)
        error = await refusal(stub(sent, metadata=metadata))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert reason_of(error) == "VALIDATION_FAILED"


def test_a_text_with_a_zero_character_is_named() -> None:
    item = booking_service_pb2.PlaceBookingRequest.Item(offer_id="\0", quantity=1)
    request = a_booking(event_id="a\0b", items=[item])
    with pytest.raises(DomainError) as refused:
        refuse_unstorable(request, request.SerializeToString())
    fields = [violation.field for violation in refused.value.violations]
    assert fields == ["event_id", "items[0].offer_id"]


@pytest.mark.parametrize(
    ("seconds", "nanos", "is_valid"),
    [
        (0, 0, True),
        (253_402_300_799, 999_999_999, True),
        (253_402_300_800, 0, False),
        (-62_135_596_801, 0, False),
        (2**63 - 1, 0, False),
        (1, -1, False),
        (1, 1_000_000_000, False),
    ],
)
def test_a_time_out_of_range_is_named(seconds: int, nanos: int, is_valid: bool) -> None:
    request = event_service_pb2.ListEventsRequest()
    request.starts_after.seconds, request.starts_after.nanos = seconds, nanos
    if is_valid:
        refuse_unstorable(request, request.SerializeToString())
        return
    with pytest.raises(DomainError) as refused:
        refuse_unstorable(request, request.SerializeToString())
    assert [violation.field for violation in refused.value.violations] == ["starts_after"]
