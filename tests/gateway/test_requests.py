"""Successful calls with each protocol: what services receive and what clients get back."""

import base64
import json
import threading

import grpc
import pytest
from google.api import httpbody_pb2

from boxoffice.bookings.v1 import booking_pb2, booking_service_pb2
from boxoffice.catalogue.v1 import event_pb2, event_service_pb2
from boxoffice.payments.v1 import webhook_service_pb2
from boxoffice.types.v1 import money_pb2
from mesh.rpc.field_names import REST_HEADER
from testing import gateway_harness
from testing.gateway_harness import USER_ID, Gateway, bearer
from tests.gateway.conftest import CANCEL

PLACE = "/boxoffice.bookings.v1.BookingService/PlaceBooking"
GET_BOOKING = "/boxoffice.bookings.v1.BookingService/GetBooking"
GET_EVENT = "/boxoffice.catalogue.v1.EventService/GetEvent"
RECEIVE = "/boxoffice.payments.v1.WebhookService/ReceiveWebhook"
SHOW_CHECKOUT = "/boxoffice.payments.v1.SandboxService/ShowCheckout"

HELD = booking_pb2.Booking(
    booking_id="b1",
    status=booking_pb2.Booking.HELD,
    total=money_pb2.Money(currency_code="INR", amount_minor=49900),
)


def test_creating_answers_201_over_rest(gateway: Gateway) -> None:
    gateway.upstream.answers[PLACE] = lambda _request, _context: HELD
    body = {"eventId": "e1", "items": [{"offer_id": "o1", "quantity": 2}]}
    answer = gateway.rest.post("/api/v1/bookings", json=body, headers=bearer())
    assert answer.status_code == 201
    assert answer.headers["content-type"] == "application/json"
    booking = answer.json()
    assert (booking["bookingId"], booking["status"]) == ("b1", "HELD")
    assert booking["total"] == {"currencyCode": "INR", "amountMinor": "49900"}
    # Empty fields are present, unset messages are not.
    assert (booking["eventId"], booking["items"], booking["timeline"]) == ("", [], [])
    assert "payment" not in booking
    request = booking_service_pb2.PlaceBookingRequest.FromString(gateway.upstream.calls[0].request)
    assert request.event_id == "e1"
    assert (request.items[0].offer_id, request.items[0].quantity) == ("o1", 2)


def test_deleting_answers_204_without_a_body(gateway: Gateway) -> None:
    gateway.upstream.answers[CANCEL] = lambda _request, _context: HELD
    answer = gateway.rest.delete("/api/v1/bookings/b1", headers=bearer())
    assert answer.status_code == 204
    assert answer.content == b""
    # Remaining bytes would be read as the start of the next response on this connection.
    assert gateway.rest.get("/api/v1/bookings/b1", headers=bearer()).status_code == 200


def test_reading_answers_200_without_grpc_headers(gateway: Gateway) -> None:
    answer = gateway.rest.get("/api/v1/events/e1")
    assert answer.status_code == 200
    assert not [name for name in answer.headers if name.startswith(("grpc-", "x-envoy-"))]
    request = event_service_pb2.GetEventRequest.FromString(gateway.upstream.calls[0].request)
    assert request.event_id == "e1"


def test_grpc_works_with_a_token(gateway: Gateway) -> None:
    gateway.upstream.answers[PLACE] = lambda _request, _context: HELD
    assert booking_pb2.Booking.FromString(gateway.unary(PLACE, metadata=bearer())) == HELD


def test_grpc_web_works(gateway: Gateway) -> None:
    gateway.upstream.answers[PLACE] = lambda _request, _context: HELD
    answer = gateway.web(PLACE, headers=bearer())
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/grpc-web+proto"
    size = int.from_bytes(answer.content[1:5], "big")
    assert booking_pb2.Booking.FromString(answer.content[5 : 5 + size]) == HELD
    assert b"grpc-status:0" in answer.content[5 + size :]


def test_services_get_the_verified_claims_and_not_the_token(gateway: Gateway) -> None:
    gateway.rest.get("/api/v1/bookings", headers=bearer())
    metadata = gateway.upstream.calls[0].metadata
    payload = metadata["x-jwt-payload"]
    claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    assert (claims["sub"], claims["role"]) == (USER_ID, "CUSTOMER")
    assert "authorization" not in metadata


def test_services_learn_that_a_call_came_over_rest(gateway: Gateway) -> None:
    """They name fields in errors as the client writes them."""
    gateway.rest.get("/api/v1/events/e1", headers={REST_HEADER: "SPOOFED"})
    [over_rest] = gateway.upstream.calls
    assert over_rest.metadata[REST_HEADER] == "GET"
    gateway.upstream.calls.clear()
    for spoofed in ({}, {REST_HEADER: "GET"}):
        gateway.unary(GET_EVENT, metadata=spoofed)
        gateway.web(GET_EVENT, headers=spoofed)
    assert len(gateway.upstream.calls) == 4
    assert not any(REST_HEADER in call.metadata for call in gateway.upstream.calls)


def test_an_unverified_token_does_not_reach_a_public_method(gateway: Gateway) -> None:
    forged = {"authorization": "Bearer forged"}
    assert gateway.rest.get("/webhooks/health", headers=forged).status_code == 200
    [received] = gateway.upstream.calls
    assert not {"authorization", "x-jwt-payload"} & received.metadata.keys()
    # Where a token is optional, it must be valid.
    assert gateway.rest.get("/api/v1/events/e1", headers=forged).status_code == 401
    assert gateway.upstream.calls == [received]


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"x",
        b'{ "spaces" : "kept",\n "\xc3\xa9": 1.10 }\r\n',
        bytes(range(256)),
        b"a" * (16 * 1024 - 1),
        b"a" * (16 * 1024 + 1),
        b"a" * (300 * 1024),
        b"a" * (512 * 1024),
    ],
    ids=len,
)
@pytest.mark.parametrize("http2", [False, True], ids=["HTTP/1.1", "HTTP/2"])
def test_webhooks_arrive_byte_for_byte(gateway: Gateway, body: bytes, http2: bool) -> None:
    headers = {"content-type": "application/json", "stripe-signature": "t=1,v1=abc"}
    with gateway_harness.rest_client(gateway.settings, http2=http2) as client:
        answer = client.post("/webhooks/stripe", content=body, headers=headers)
    assert (answer.status_code, answer.http_version) == (200, "HTTP/2" if http2 else "HTTP/1.1")
    call = gateway.upstream.calls[0]
    request = webhook_service_pb2.ReceiveWebhookRequest.FromString(call.request)
    assert request.provider == "stripe"
    assert request.payload.data == body
    assert request.payload.content_type == "application/json"
    assert call.metadata["stripe-signature"] == "t=1,v1=abc"


def test_a_page_keeps_its_own_content_security_policy(gateway: Gateway) -> None:
    def page(_request: bytes, context: grpc.ServicerContext) -> httpbody_pb2.HttpBody:
        context.send_initial_metadata((("content-security-policy", "default-src 'self'"),))
        return httpbody_pb2.HttpBody(content_type="text/html; charset=utf-8", data=b"<h1>Pay</h1>")

    gateway.upstream.answers[SHOW_CHECKOUT] = page
    answer = gateway.rest.get("/sandbox/pay/p1")
    assert (answer.status_code, answer.text) == (200, "<h1>Pay</h1>")
    assert answer.headers["content-type"] == "text/html; charset=utf-8"
    assert answer.headers["content-security-policy"] == "default-src 'self'"
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_a_clients_request_id_is_kept_and_returned(gateway: Gateway) -> None:
    answer = gateway.rest.get("/api/v1/events/e1", headers={"x-request-id": "mine"})
    assert answer.headers["x-request-id"] == "mine"
    assert gateway.upstream.calls[0].metadata["x-request-id"] == "mine"


def test_every_request_has_an_id(gateway: Gateway) -> None:
    answer = gateway.rest.get("/api/v1/events/e1")
    assert answer.headers["x-request-id"]
    assert gateway.upstream.calls[0].metadata["x-request-id"] == answer.headers["x-request-id"]


def test_a_retryable_call_is_retried_when_its_service_restarts(gateway: Gateway) -> None:
    def restarting(_request: bytes, context: grpc.ServicerContext) -> event_pb2.Event:
        if len(gateway.upstream.calls) == 1:
            context.abort(grpc.StatusCode.UNAVAILABLE, "going away")
        return event_pb2.Event(event_id="e1")

    gateway.upstream.answers[GET_EVENT] = restarting
    assert gateway.rest.get("/api/v1/events/e1").status_code == 200
    assert len(gateway.upstream.calls) == 2


def test_a_call_with_effects_is_not_retried(gateway: Gateway) -> None:
    def unavailable(_request: bytes, context: grpc.ServicerContext) -> booking_pb2.Booking:
        context.abort(grpc.StatusCode.UNAVAILABLE, "going away")

    gateway.upstream.answers[PLACE] = unavailable
    answer = gateway.rest.post("/api/v1/bookings", json={}, headers=bearer())
    assert answer.status_code == 503
    assert len(gateway.upstream.calls) == 1


def test_a_clients_timeout_cannot_exceed_the_policys_deadline(gateway: Gateway) -> None:
    """The service is told the policy's 3 s and not the client's 60 s, and hangs for longer."""
    left: list[float] = []
    ended = threading.Event()

    def slow(_request: bytes, context: grpc.ServicerContext) -> booking_pb2.Booking:
        left.append(context.time_remaining())
        context.add_callback(ended.set)
        ended.wait(120)
        return HELD

    gateway.upstream.answers[GET_BOOKING] = slow
    with pytest.raises(grpc.RpcError) as failure:
        gateway.unary(GET_BOOKING, metadata=bearer(), timeout=60)
    assert failure.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    assert left[0] <= 3


@pytest.mark.parametrize(
    ("name", "value"),
    [("x|y", "1"), ("a!b", "1"), ("p.q&r", "1"), ("x-y-bin", "!!"), ("x-y-bin", "")],
)
def test_headers_that_are_no_metadata_reach_no_service(
    gateway: Gateway, name: str, value: str
) -> None:
    """gRPC would answer INTERNAL."""
    answer = gateway.rest.get("/api/v1/events/e1", headers={name: value, "x.z-1": "kept"})
    assert answer.status_code == 200
    metadata = gateway.upstream.calls[0].metadata
    assert name not in metadata
    assert metadata["x.z-1"] == "kept"
