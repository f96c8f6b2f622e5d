"""HTTP as clients in the field speak it: HEAD, HTTP/1.0, gzip, event streams, `+` in times."""

import base64
import gzip
import json
import random
import socket
import time
from collections.abc import Iterator
from typing import Any

import grpc
import httpx
import pytest
from google.protobuf.message import Message

from boxoffice.auth.v1 import auth_service_pb2
from boxoffice.bookings.v1 import booking_service_pb2
from boxoffice.catalogue.v1 import event_service_pb2
from testing.gateway_harness import Gateway, bearer, rest_client, token
from tests.gateway.test_errors import check

PLACE = "/boxoffice.bookings.v1.BookingService/PlaceBooking"
LOGOUT = "/boxoffice.auth.v1.AccountService/Logout"
GET_EVENT = "/boxoffice.catalogue.v1.EventService/GetEvent"
LIST_EVENTS = "/boxoffice.catalogue.v1.EventService/ListEvents"
WATCH = "/boxoffice.catalogue.v1.EventService/WatchAvailability"
EVENT_STREAM = "/api/v1/events/e1/availability/watch"


@pytest.mark.parametrize("scheme", ["bearer", "BEARER", "Bearer", "bearer "])
def test_the_scheme_of_a_token_has_any_case(gateway: Gateway, scheme: str) -> None:
    headers = {"authorization": f"{scheme} {token()}"}
    assert gateway.rest.get("/api/v1/bookings", headers=headers).status_code == 200
    gateway.unary(LOGOUT, metadata=headers)
    assert all("x-jwt-payload" in call.metadata for call in gateway.upstream.calls)


@pytest.mark.parametrize("is_http2", [False, True])
@pytest.mark.parametrize("encoding", ["gzip", "identity"])
def test_head_is_answered_as_get_without_a_body(
    running_by_tls: Gateway, is_http2: bool, encoding: str
) -> None:
    running_by_tls.upstream.answers[LIST_EVENTS] = lambda *_: event_service_pb2.ListEventsResponse(
        next_page_token="t" * 5000
    )
    headers = bearer() | {"accept-encoding": encoding}
    try:
        with rest_client(running_by_tls.settings, http2=is_http2) as client:
            for path in ("/api/v1/events", "/api/v1/events/e1", "/health"):
                answer = client.head(path, headers=headers)
                assert (answer.status_code, answer.content) == (200, b"")
                assert answer.headers["content-type"] == "application/json"
            missing = client.head("/api/v1/nothing", headers=headers)
            assert (missing.status_code, missing.content) == (404, b"")
            # The connection is still usable.
            assert client.get("/api/v1/events/e1", headers=headers).json()
    finally:
        running_by_tls.upstream.answers.clear()


def test_a_stream_has_no_head(gateway: Gateway) -> None:
    answer = gateway.rest.head(EVENT_STREAM)
    assert answer.status_code == 405
    assert "HEAD" not in answer.headers["allow"]


def test_http_1_0_is_answered(gateway: Gateway) -> None:
    address = ("127.0.0.1", gateway.settings.gateway_port)
    with socket.create_connection(address, timeout=60) as connection:
        connection.sendall(b"GET /health HTTP/1.0\r\n\r\n")
        answer = connection.makefile("rb").read()
    assert answer.split(b"\r\n")[0].endswith(b" 200 OK")


def place(gateway: Gateway, content: bytes, encoding: str) -> httpx.Response:
    headers = bearer() | {"content-type": "application/json", "content-encoding": encoding}
    return gateway.rest.post("/api/v1/bookings", content=content, headers=headers)


def test_a_gzip_body_is_inflated(gateway: Gateway) -> None:
    content = gzip.compress(json.dumps({"eventId": "e1"}).encode())
    assert place(gateway, content, "gzip").status_code == 201
    request = booking_service_pb2.PlaceBookingRequest.FromString(gateway.upstream.calls[0].request)
    assert request.event_id == "e1"


def test_an_inflated_body_is_checked(gateway: Gateway) -> None:
    body = check(
        place(gateway, gzip.compress(b'{"evntId": "e1"}'), "gzip"), 400, "VALIDATION_FAILED"
    )
    assert body["message"].startswith("evntId: unknown field")


def test_an_inflated_body_over_the_limit_is_refused(gateway: Gateway) -> None:
    text = base64.b64encode(random.Random(1).randbytes(1024 * 1024))
    content = gzip.compress(b'{"eventId": "' + text + b'"}')
    check(place(gateway, content, "gzip"), 413, "REQUEST_TOO_LARGE")
    assert gateway.upstream.calls == []


def test_a_body_that_inflates_a_thousandfold_is_refused(gateway: Gateway) -> None:
    content = gzip.compress(b'{"eventId": "' + b"a" * 64 * 1024 * 1024 + b'"}')
    assert place(gateway, content, "gzip").status_code in (400, 413)
    assert gateway.upstream.calls == []


def test_a_body_that_is_not_gzip_is_not_taken_for_an_empty_one(gateway: Gateway) -> None:
    for content in (b'{"scope": "CURRENT_SESSION"}', gzip.compress(b'{"eventId": "e1"}')[:15]):
        check(place(gateway, content, "gzip"), 400, "VALIDATION_FAILED")
    assert gateway.upstream.calls == []


@pytest.mark.parametrize("encoding", ["br", "zstd", "gzip, br"])
def test_other_encodings_are_a_415(gateway: Gateway, encoding: str) -> None:
    check(place(gateway, b"{}", encoding), 415, "VALIDATION_FAILED")
    assert gateway.upstream.calls == []


def test_plus_in_a_time_is_not_a_space(gateway: Gateway) -> None:
    query = "starts_after=2026-03-01T10:00:00+05:30&query=rock+roll"
    assert gateway.rest.get(f"/api/v1/events?{query}").status_code == 200
    request = event_service_pb2.ListEventsRequest.FromString(gateway.upstream.calls[0].request)
    assert request.starts_after.ToJsonString() == "2026-03-01T04:30:00Z"
    assert request.query == "rock roll"


@pytest.fixture
def updates(gateway: Gateway) -> Iterator[None]:
    def messages(*_: Any) -> Iterator[Message]:
        for version in (7, 8):
            yield event_service_pb2.AvailabilityUpdate(event_id="e1", version=version)

    gateway.upstream.streams[WATCH] = messages
    yield
    del gateway.upstream.streams[WATCH]


@pytest.mark.usefixtures("updates")
def test_messages_of_an_event_stream_have_ids_and_are_not_buffered(gateway: Gateway) -> None:
    answer = gateway.rest.get(EVENT_STREAM)
    assert answer.headers["content-type"] == "text/event-stream"
    assert answer.headers["x-accel-buffering"] == "no"
    lines = answer.text.split("\n")
    assert [line for line in lines if line.startswith("id:")] == ["id: 7", "id: 8"]
    assert [json.loads(line[6:])["version"] for line in lines if line.startswith("data: ")] == [
        "7",
        "8",
    ]


@pytest.mark.usefixtures("updates")
@pytest.mark.parametrize(("query", "version"), [("", 8), ("?afterVersion=5", 5)])
def test_a_browser_that_reconnects_continues_after_the_last_id(
    gateway: Gateway, query: str, version: int
) -> None:
    gateway.rest.get(EVENT_STREAM + query, headers={"last-event-id": "8"})
    sent = gateway.upstream.calls[0].request
    assert event_service_pb2.WatchAvailabilityRequest.FromString(sent).after_version == version


def test_pages_may_send_headers_of_tracing(gateway: Gateway) -> None:
    names = ["traceparent", "tracestate", "baggage", "sentry-trace", "x-requested-with"]
    answer = gateway.rest.options(
        "/api/v1/bookings",
        headers={
            "origin": "http://localhost:3000",
            "access-control-request-method": "POST",
            "access-control-request-headers": ",".join(names),
        },
    )
    assert set(names) <= set(answer.headers["access-control-allow-headers"].split(", "))
    exposed = gateway.rest.get("/health", headers={"origin": "http://localhost:3000"}).headers
    assert {"idempotent-replayed", "ratelimit", "ratelimit-policy"} <= set(
        exposed["access-control-expose-headers"].split(", ")
    )


def test_signing_out_accepts_an_ended_token(gateway: Gateway) -> None:
    gateway.upstream.answers[LOGOUT] = lambda *_: auth_service_pb2.LogoutResponse(message="bye")
    ended = bearer(token(exp=int(time.time()) - 86_400))
    assert gateway.rest.post("/api/v1/auth/logout", json={}, headers=ended).status_code == 200
    assert "x-jwt-payload" in gateway.upstream.calls[0].metadata
    assert gateway.rest.get("/api/v1/auth/me", headers=ended).status_code == 401
    with pytest.raises(grpc.RpcError):
        gateway.unary("/boxoffice.auth.v1.AccountService/GetMe", metadata=ended)
    forged = bearer(token()[:-4] + "AAAA")
    assert gateway.rest.post("/api/v1/auth/logout", json={}, headers=forged).status_code == 401


def test_a_public_read_reads_a_valid_token_only(gateway: Gateway) -> None:
    for headers, is_read in ((bearer(), True), ({}, False)):
        gateway.upstream.calls.clear()
        assert gateway.rest.get("/api/v1/events/e1", headers=headers).status_code == 200
        (call,) = gateway.upstream.calls
        assert call.path == GET_EVENT
        assert ("x-jwt-payload" in call.metadata) == is_read
        assert "authorization" not in call.metadata
    gateway.upstream.calls.clear()
    for invalid in (token(exp=int(time.time()) - 60), "nonsense"):
        answer = gateway.rest.get("/api/v1/events/e1", headers=bearer(invalid))
        assert answer.status_code == 401
    assert gateway.upstream.calls == []
