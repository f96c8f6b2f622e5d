"""A table of all kinds of failures, tested with each protocol: status, reason, format, headers.

Each row causes one failure. Each test is a client: REST over HTTP/1.1 and HTTP/2, gRPC, gRPC-Web.
"""

import base64
import json
import urllib.parse
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import grpc
import httpx
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2
from grpc_status import rpc_status

from boxoffice.bookings.v1 import booking_service_pb2
from mesh.errors import DomainError, Reason
from mesh.rpc.errors import CODES, http_status, to_status
from testing import gateway_harness
from testing.gateway_harness import Gateway, bearer, token

PLACE = "/boxoffice.bookings.v1.BookingService/PlaceBooking"
AUDIT = "/boxoffice.stock.v1.StockService/Audit"
GET_BOOKING = "/boxoffice.bookings.v1.BookingService/GetBooking"
LARGE = booking_service_pb2.PlaceBookingRequest(event_id="a" * 70_000).SerializeToString()
SIGNED_IN = bearer()


@dataclass(frozen=True)
class Failure:
    """How to cause a failure, and the expected result. `rpc` None: cannot happen over gRPC."""

    name: str
    reason: Reason
    rest: tuple[str, str] | None = ("POST", "/api/v1/bookings")
    rpc: str | None = PLACE
    content: Any = "{}"
    message: bytes = b""
    headers: dict[str, str] = field(default_factory=lambda: SIGNED_IN)
    raised: DomainError | None = None
    http: int | None = None
    grpc_code: grpc.StatusCode | None = None
    with_headers: frozenset[str] = frozenset()


FAILURES = [
    Failure(
        "no token", Reason.TOKEN_INVALID, headers={}, with_headers=frozenset({"www-authenticate"})
    ),
    Failure(
        "a token with an invalid signature",
        Reason.TOKEN_INVALID,
        headers=bearer(token() + "x"),
        with_headers=frozenset({"www-authenticate"}),
    ),
    Failure(
        "an expired token",
        Reason.TOKEN_EXPIRED,
        headers=bearer(token(exp=1, iat=0)),
        with_headers=frozenset({"www-authenticate"}),
    ),
    Failure(
        "no such path",
        Reason.ROUTE_NOT_FOUND,
        rest=("GET", "/api/v1/nothing"),
        rpc="/boxoffice.bookings.v1.BookingService/Nothing",
        grpc_code=grpc.StatusCode.UNIMPLEMENTED,
    ),
    Failure(
        "no such verb",
        Reason.METHOD_NOT_ALLOWED,
        rest=("DELETE", "/api/v1/bookings"),
        rpc=None,
        with_headers=frozenset({"allow"}),
    ),
    Failure("no JSON", Reason.VALIDATION_FAILED, content="{", rpc=None),
    Failure("a field of another type", Reason.VALIDATION_FAILED, content='{"items": 1}', rpc=None),
    Failure(
        "no such enum value",
        Reason.VALIDATION_FAILED,
        rest=("GET", "/api/v1/bookings?status=NONE"),
        rpc=None,
    ),
    Failure(
        "no such query parameter",
        Reason.VALIDATION_FAILED,
        rest=("GET", "/api/v1/bookings?bogus=1"),
        rpc=None,
    ),
    Failure(
        "too large",
        Reason.REQUEST_TOO_LARGE,
        content=json.dumps({"eventId": "a" * 70_000}),
        message=LARGE,
    ),
    Failure("far too large", Reason.REQUEST_TOO_LARGE, content="a" * 1_100_000, message=LARGE * 16),
    Failure(
        "headers too large",
        Reason.REQUEST_TOO_LARGE,
        headers={**SIGNED_IN, "x-large": "a" * 40_000},
        http=431,
        # HTTP/2 ends the connection; the code for gRPC clients varies.
        rpc=None,
    ),
    Failure(
        "the service is unavailable",
        Reason.DEPENDENCY_UNAVAILABLE,
        rest=("GET", "/api/v1/events/e1/stock/audit"),
        rpc=AUDIT,
        with_headers=frozenset({"retry-after"}),
    ),
    Failure("the service refuses", Reason.SOLD_OUT, raised=DomainError(Reason.SOLD_OUT, "gone")),
    Failure(
        "a role is missing", Reason.STAFF_REQUIRED, raised=DomainError(Reason.STAFF_REQUIRED, "no")
    ),
    Failure(
        "the payment is refused",
        Reason.PAYMENT_FAILED,
        raised=DomainError(Reason.PAYMENT_FAILED, "no"),
    ),
    Failure(
        "the service is overloaded",
        Reason.OVERLOADED,
        raised=DomainError(Reason.OVERLOADED, "busy", retry_after_seconds=1),
        with_headers=frozenset({"retry-after"}),
    ),
    Failure(
        "the deadline passes",
        Reason.DEADLINE_EXCEEDED,
        raised=DomainError(Reason.DEADLINE_EXCEEDED, "late"),
    ),
    Failure("a bug", Reason.INTERNAL, raised=DomainError(Reason.INTERNAL, "internal error")),
]


@pytest.fixture(params=FAILURES, ids=lambda failure: failure.name)
def failure(request: pytest.FixtureRequest, gateway: Gateway) -> Iterator[Failure]:
    failure: Failure = request.param
    if (error := failure.raised) is not None:

        def refuse(_request: bytes, context: grpc.ServicerContext) -> Message:
            context.abort_with_status(rpc_status.to_status(to_status(error)))

        gateway.upstream.answers[PLACE] = refuse
    yield failure
    if error is None:
        assert gateway.upstream.calls == []


def check_rest(failure: Failure, answer: httpx.Response) -> None:
    assert answer.status_code == (failure.http or http_status(failure.reason)), answer.text
    assert answer.headers["content-type"] == "application/json"
    body = answer.json()
    assert body.keys() == {"code", "message", "details"}
    assert body["code"] == CODES[failure.reason].value[0]
    assert body["message"]
    info = body["details"][0]
    assert (info["reason"], info["domain"]) == (failure.reason, "boxoffice")
    assert failure.with_headers <= answer.headers.keys()
    assert not [name for name in answer.headers if name.startswith(("grpc-", "x-boxoffice-"))]
    if answer.status_code != 431:
        assert "x-request-id" in answer.headers


def check_grpc(failure: Failure, code: int, details: status_pb2.Status) -> None:
    expected = failure.grpc_code or CODES[failure.reason]
    assert code == details.code == expected.value[0]
    info = error_details_pb2.ErrorInfo()
    assert details.details[0].Unpack(info)
    assert (info.reason, info.domain) == (failure.reason, "boxoffice")


@pytest.mark.parametrize("http2", [False, True], ids=["http/1.1", "http/2"])
def test_rest(gateway: Gateway, failure: Failure, http2: bool) -> None:
    assert failure.rest is not None
    verb, path = failure.rest
    content = failure.content if verb == "POST" else None
    headers = failure.headers | {"content-type": "application/json"}
    if http2 and failure.http == 431:
        headers["x-large"] = "a" * 34_000
    with gateway_harness.rest_client(gateway.settings, http2=http2) as client:
        try:
            answer = client.request(verb, path, content=content, headers=headers)
        except (httpx.RemoteProtocolError, httpx.LocalProtocolError, httpx.ReadTimeout):
            # HTTP/2 ends the stream where HTTP/1.1 answers 431. The client library does not read
            # a response before it has sent the whole request: it waits for the flow control window.
            assert http2
            assert failure.name in {"headers too large", "far too large"}
            return
    check_rest(failure, answer)


def test_grpc(gateway: Gateway, failure: Failure) -> None:
    if failure.rpc is None:
        return
    with pytest.raises(grpc.RpcError) as caught:
        gateway.unary(failure.rpc, failure.message, failure.headers)
    status = rpc_status.from_call(caught.value)  # type: ignore[arg-type]
    assert status is not None
    check_grpc(failure, caught.value.code().value[0], status)


def test_grpc_web(gateway: Gateway, failure: Failure) -> None:
    if failure.rpc is None:
        return
    answer = gateway.web(failure.rpc, failure.message, failure.headers)
    assert answer.status_code == 200
    metadata = dict(answer.headers) | _trailers(answer.content)
    details = metadata["grpc-status-details-bin"]
    status = status_pb2.Status.FromString(base64.b64decode(details + "=" * (-len(details) % 4)))
    check_grpc(failure, int(metadata["grpc-status"]), status)
    assert urllib.parse.unquote(metadata["grpc-message"])


def _trailers(body: bytes) -> dict[str, str]:
    """The trailers of a gRPC-Web body without messages: its only frame."""
    if not body or body[0] != 0x80:
        return {}
    lines = body[5:].decode().split("\r\n")
    return dict(line.split(":", 1) for line in lines if line)
