"""REST responses beyond their JSON: Location, ETag, compression, size limits."""

import grpc
import pytest
from google.protobuf.message import Message

from boxoffice.bookings.v1 import booking_pb2, booking_service_pb2
from boxoffice.catalogue.v1 import event_pb2
from mesh.rpc.policy import DEFAULT_REQUEST_BYTES, MAX_REQUEST_BYTES
from testing.gateway_harness import Gateway, bearer

PLACE = "/boxoffice.bookings.v1.BookingService/PlaceBooking"
GET_EVENT = "/boxoffice.catalogue.v1.EventService/GetEvent"
ID = "01932c07-5e0a-7cc0-b3a5-d3a1b3c0ffee"


def test_creating_returns_the_location_of_the_resource(gateway: Gateway) -> None:
    def place(_request: bytes, _context: grpc.ServicerContext) -> Message:
        return booking_pb2.Booking(booking_id=ID, event_id="e1")

    gateway.upstream.answers[PLACE] = place
    answer = gateway.rest.post("/api/v1/bookings", json={}, headers=bearer())
    assert answer.status_code == 201
    assert answer.headers["location"] == f"/api/v1/bookings/{ID}"
    assert answer.json()["bookingId"] == ID


def test_grpc_has_no_location(gateway: Gateway) -> None:
    gateway.upstream.answers[PLACE] = lambda *_: booking_pb2.Booking(booking_id=ID)
    call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = gateway.channel.unary_unary(PLACE)
    _, details = call.with_call(b"", metadata=tuple(bearer().items()), timeout=60)
    assert "location" not in dict(details.initial_metadata())


def test_a_name_cannot_forge_an_etag(gateway: Gateway) -> None:
    event = event_pb2.Event(event_id=ID, name='","etag":"forged","x":"', etag="7")
    gateway.upstream.answers[GET_EVENT] = lambda *_: event
    answer = gateway.rest.get("/api/v1/events/e1")
    assert answer.headers["etag"] == '"7"'
    assert answer.json()["name"] == event.name


def test_a_list_has_no_etag(gateway: Gateway) -> None:
    assert "etag" not in gateway.rest.get("/api/v1/events").headers


def test_a_large_response_is_compressed_for_clients_that_accept_it(gateway: Gateway) -> None:
    def answer(_request: bytes, _context: grpc.ServicerContext) -> Message:
        return event_pb2.Event(event_id=ID, description="a" * 5000, etag="7")

    gateway.upstream.answers[GET_EVENT] = answer
    compressed = gateway.rest.get("/api/v1/events/e1", headers={"accept-encoding": "gzip"})
    plain = gateway.rest.get("/api/v1/events/e1", headers={"accept-encoding": "identity"})
    assert compressed.headers["content-encoding"] == "gzip"
    assert compressed.headers["etag"] == 'W/"7"'
    assert "accept-encoding" in compressed.headers["vary"].lower()
    assert "content-encoding" not in plain.headers
    assert compressed.json() == plain.json()


@pytest.mark.parametrize("content_type", ["application/json", "application/grpc-web+proto"])
def test_a_method_accepts_requests_up_to_its_limit(gateway: Gateway, content_type: str) -> None:
    """The limit applies to the message, not to the JSON, which may have up to 1 MiB."""
    fits, too_long = DEFAULT_REQUEST_BYTES - 200, DEFAULT_REQUEST_BYTES + 200
    for length, is_accepted in ((fits, True), (too_long, False)):
        gateway.upstream.calls.clear()
        checkout = booking_service_pb2.Checkout(success_url="a" * length)
        if content_type == "application/json":
            body = {"checkout": {"successUrl": checkout.success_url}}
            answer = gateway.rest.post("/api/v1/bookings", json=body, headers=bearer())
            assert answer.status_code == (201 if is_accepted else 413), answer.text
        else:
            request = booking_service_pb2.PlaceBookingRequest(checkout=checkout)
            answer = gateway.web(PLACE, request.SerializeToString(), bearer())
            assert ("grpc-status" not in answer.headers) == is_accepted, answer.headers
        assert bool(gateway.upstream.calls) == is_accepted
    if content_type == "application/json":
        assert answer.json()["details"][0]["reason"] == "REQUEST_TOO_LARGE"


def test_staff_and_webhooks_have_higher_limits(gateway: Gateway) -> None:
    large = {"name": "a" * (MAX_REQUEST_BYTES - 100)}
    assert gateway.rest.post("/api/v1/events", json=large, headers=bearer()).status_code == 201
    half = 512 * 1024
    assert gateway.rest.post("/webhooks/stripe", content=b"x" * half).status_code == 200
    assert gateway.rest.post("/webhooks/stripe", content=b"x" * (half + 1024)).status_code == 413
