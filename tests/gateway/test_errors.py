"""Errors over REST have one format, whether Envoy or a service creates them."""

import json
import socket
from http.client import HTTPResponse
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from grpc_status import rpc_status

from mesh.errors import DomainError, FieldViolation, Reason
from mesh.rpc.errors import CODES, to_status
from testing.gateway_harness import Gateway, bearer, rest_client

PLACE = "/boxoffice.bookings.v1.BookingService/PlaceBooking"
GET_BOOKING = "/boxoffice.bookings.v1.BookingService/GetBooking"
TYPE = "type.googleapis.com/google.rpc."


def check(answer: Any, status: int, reason: str) -> dict[str, Any]:
    """Asserts the format of an error and returns its body."""
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/json"
    assert int(answer.headers["content-length"]) == len(answer.content)
    body: dict[str, Any] = answer.json()
    assert body.keys() == {"code", "message", "details"}
    assert body["details"][0] == {
        "@type": f"{TYPE}ErrorInfo",
        "reason": reason,
        "domain": "boxoffice",
        "metadata": {},
    }
    assert body["code"] == CODES[Reason(reason)].value[0]
    assert body["message"]
    hidden = [name for name in answer.headers if name.startswith(("grpc-", "x-boxoffice-"))]
    assert hidden == []
    return body


def place(gateway: Gateway, content: str) -> Any:
    headers = bearer() | {"content-type": "application/json"}
    answer = gateway.rest.post("/api/v1/bookings", content=content, headers=headers)
    assert gateway.upstream.calls == []
    return answer


@pytest.mark.parametrize(
    ("content", "field"),
    [
        ('{"items": [{"offerId": "o", "quantity": "abc"}]}', "items[0].quantity"),
        ('{"items": [{"offerId": "o"}, {"quantity": 1.5}]}', "items[1].quantity"),
        ('{"items": [{"quantity": 99999999999}]}', "items[0].quantity"),
        ('{"items": "none"}', "items"),
        ('{"items": [{"quantity": "a\\"b\\\\c"}]}', "items[0].quantity"),
    ],
)
def test_a_field_of_the_wrong_type_is_named(gateway: Gateway, content: str, field: str) -> None:
    body = check(place(gateway, content), 400, "VALIDATION_FAILED")
    assert body["message"].startswith(field)
    violations = body["details"][1]["fieldViolations"]
    assert body["details"][1]["@type"] == f"{TYPE}BadRequest"
    assert [violation["field"] for violation in violations] == [field]
    assert violations[0]["description"]


@pytest.mark.parametrize(
    "content", ["not json", '{"eventId": ', "[1, 2]", '"text"', "{} {}", "\x00"]
)
def test_a_body_that_is_not_json_is_refused_and_not_quoted(gateway: Gateway, content: str) -> None:
    body = check(place(gateway, content), 400, "VALIDATION_FAILED")
    (violation,) = body["details"][1]["fieldViolations"]
    assert violation["field"] == "body"
    assert violation["description"].startswith(("is not JSON at byte ", "must be a JSON object"))


@pytest.mark.parametrize(
    ("query", "field"),
    [("bogus=1", "bogus"), ("page_size=abc", "page_size"), ("status=NONE", "status")],
)
def test_a_wrong_query_parameter_is_named(gateway: Gateway, query: str, field: str) -> None:
    answer = gateway.rest.get(f"/api/v1/bookings?{query}", headers=bearer())
    body = check(answer, 400, "VALIDATION_FAILED")
    assert body["details"][1]["fieldViolations"][0]["field"] == field


@pytest.mark.parametrize(
    ("verb", "path"),
    [
        ("GET", "/api/v1/nothing"),
        ("GET", "/api/v1/bookings/b1/cancel/more"),
        ("POST", "/healthy"),
    ],
)
def test_an_unknown_path_is_a_404(gateway: Gateway, verb: str, path: str) -> None:
    check(gateway.rest.request(verb, path, headers=bearer()), 404, "ROUTE_NOT_FOUND")


@pytest.mark.parametrize(
    ("verb", "path", "allowed"),
    [
        ("DELETE", "/api/v1/bookings", {"GET", "HEAD", "POST"}),
        ("PUT", "/health", {"GET", "HEAD"}),
        ("OPTIONS", "/api/v1/bookings?page_size=1", {"GET", "HEAD", "POST"}),
        ("GET", "/api/v1/bookings/b1/cancel", {"POST"}),
        ("TRACE", "/.well-known/jwks.json", {"GET", "HEAD"}),
        ("POST", "/openapi.json", {"GET", "HEAD"}),
        ("DELETE", "/docs/start.js", {"GET", "HEAD"}),
    ],
)
def test_an_unsupported_http_method_is_a_405_with_allow(
    gateway: Gateway, verb: str, path: str, allowed: set[str]
) -> None:
    answer = gateway.rest.request(verb, path, headers=bearer())
    check(answer, 405, "METHOD_NOT_ALLOWED")
    assert set(answer.headers["allow"].split(", ")) == allowed
    assert gateway.upstream.calls == []


@pytest.mark.parametrize("path", ["/api/v1/bookings", "/webhooks/stripe"])
def test_a_large_body_is_refused(gateway: Gateway, path: str) -> None:
    content = json.dumps({"padding": "a" * 1024 * 1024})
    answer = gateway.rest.post(path, content=content, headers=bearer())
    check(answer, 413, "REQUEST_TOO_LARGE")
    assert gateway.upstream.calls == []


def test_large_headers_are_refused(gateway: Gateway) -> None:
    answer = gateway.rest.get("/health", headers={"a": "a" * 40_000})
    assert answer.status_code == 431
    assert answer.json()["details"][0]["reason"] == "REQUEST_TOO_LARGE"


def test_headers_with_underscores_are_refused(gateway: Gateway) -> None:
    answer = gateway.rest.get("/health", headers={"x_user_id": "1"})
    assert answer.status_code == 400
    assert answer.json()["details"][0]["reason"] == "VALIDATION_FAILED"


def test_bytes_that_are_not_http_are_refused(gateway: Gateway) -> None:
    address = ("127.0.0.1", gateway.settings.gateway_port)
    with socket.create_connection(address, timeout=60) as connection:
        connection.sendall(b"GARBAGE\r\n\r\n")
        answer = HTTPResponse(connection)
        # Not to the end of the connection, which the gateway closes 5 s later.
        answer.begin()
        body = answer.read()
    assert answer.status == 400
    assert json.loads(body)["details"][0]["domain"] == "boxoffice"


def test_a_missing_token_returns_a_challenge(gateway: Gateway) -> None:
    answer = gateway.rest.get("/api/v1/bookings")
    check(answer, 401, "TOKEN_INVALID")
    assert answer.headers["www-authenticate"] == 'Bearer realm="boxoffice"'


def test_an_unavailable_service_is_a_503_with_retry_after(gateway: Gateway) -> None:
    answer = gateway.rest.get("/api/v1/events/e1/stock/audit", headers=bearer())
    body = check(answer, 503, "DEPENDENCY_UNAVAILABLE")
    assert answer.headers["retry-after"] == "1"
    assert body["details"][1] == {"@type": f"{TYPE}RetryInfo", "retryDelay": "1s"}


def test_an_unavailable_service_is_unavailable_over_grpc(gateway: Gateway) -> None:
    with pytest.raises(grpc.RpcError) as failure:
        gateway.unary("/boxoffice.stock.v1.StockService/Audit", metadata=bearer())
    assert failure.value.code() is grpc.StatusCode.UNAVAILABLE
    assert failure.value.details() == "a service that this call needs is unavailable"


def test_a_services_own_error_keeps_its_details(gateway: Gateway) -> None:
    error = DomainError(
        Reason.SOLD_OUT,
        "only 1 of 2 places is available",
        violations=(FieldViolation("items[0].quantity", "too many"),),
        retry_after_seconds=1.5,
        offer_id="o1",
        available=1,
    )

    def refuse(_request: bytes, context: grpc.ServicerContext) -> Message:
        context.abort_with_status(rpc_status.to_status(to_status(error)))

    gateway.upstream.answers[PLACE] = refuse
    answer = gateway.rest.post("/api/v1/bookings", json={}, headers=bearer())
    assert answer.status_code == 409
    assert answer.headers["retry-after"] == "2"
    assert answer.json() == {
        "code": 10,
        "message": "only 1 of 2 places is available",
        "details": [
            {
                "@type": f"{TYPE}ErrorInfo",
                "reason": "SOLD_OUT",
                "domain": "boxoffice",
                "metadata": {"offerId": "o1", "available": "1"},
            },
            {
                "@type": f"{TYPE}BadRequest",
                "fieldViolations": [
                    {
                        "field": "items[0].quantity",
                        "description": "too many",
                        "reason": "",
                    }
                ],
            },
            {"@type": f"{TYPE}RetryInfo", "retryDelay": "1.500s"},
        ],
    }
    assert not [name for name in answer.headers if name.startswith("grpc-")]


STATUSES = {
    Reason.VALIDATION_FAILED: 400,
    Reason.INVALID_CREDENTIALS: 401,
    Reason.PAYMENT_FAILED: 402,
    Reason.STAFF_REQUIRED: 403,
    Reason.BOOKING_NOT_FOUND: 404,
    Reason.ALREADY_CONFIRMED: 409,
    Reason.SEAT_UNAVAILABLE: 409,
    Reason.OVERLOADED: 429,
    Reason.INTERNAL: 500,
    Reason.PAYMENT_GATEWAY_ERROR: 503,
    Reason.DEADLINE_EXCEEDED: 504,
}


@pytest.mark.parametrize("reason", STATUSES)
def test_a_reason_has_its_http_status(gateway: Gateway, reason: Reason) -> None:
    def refuse(_request: bytes, context: grpc.ServicerContext) -> Message:
        context.abort_with_status(rpc_status.to_status(to_status(DomainError(reason, "refused"))))

    gateway.upstream.answers[PLACE] = refuse
    answer = gateway.rest.post("/api/v1/bookings", json={}, headers=bearer())
    check(answer, STATUSES[reason], reason)


@pytest.mark.parametrize(
    ("code", "status", "reason"),
    [
        (grpc.StatusCode.DEADLINE_EXCEEDED, 504, "DEADLINE_EXCEEDED"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, 429, "OVERLOADED"),
        (grpc.StatusCode.INTERNAL, 500, "INTERNAL"),
    ],
)
def test_an_error_of_the_grpc_runtime_gets_a_reason(
    gateway: Gateway, code: grpc.StatusCode, status: int, reason: str
) -> None:
    """gRPC's runtime answers for an overloaded service, without a reason."""

    def refuse(_request: bytes, context: grpc.ServicerContext) -> Message:
        context.abort(code, 'no "details" of mine')

    gateway.upstream.answers[PLACE] = refuse
    answer = gateway.rest.post("/api/v1/bookings", json={}, headers=bearer())
    assert check(answer, status, reason)["message"] == 'no "details" of mine'


def test_a_services_401_has_a_challenge(gateway: Gateway) -> None:
    error = DomainError(Reason.INVALID_CREDENTIALS, "wrong e-mail address or password")

    def refuse(_request: bytes, context: grpc.ServicerContext) -> Message:
        context.abort_with_status(rpc_status.to_status(to_status(error)))

    gateway.upstream.answers["/boxoffice.auth.v1.AuthService/Login"] = refuse
    answer = gateway.rest.post("/api/v1/auth/login", json={})
    check(answer, 401, "INVALID_CREDENTIALS")
    assert answer.headers["www-authenticate"] == "Bearer"


def test_an_unknown_compression_is_refused(gateway: Gateway) -> None:
    """gRPC's runtime in the services would answer INTERNAL."""
    unknown = bearer() | {"grpc-encoding": "zzz"}
    answer = gateway.rest.get("/api/v1/bookings", headers=unknown)
    body = check(answer, 400, "VALIDATION_FAILED")
    assert body["message"] == "grpc-encoding must be one of identity, deflate, gzip"
    assert gateway.web(GET_BOOKING, headers=unknown).headers["grpc-status"] == "12"
    with rest_client(gateway.settings, http2=True) as client:
        native = unknown | {"content-type": "application/grpc", "te": "trailers"}
        refused = client.post(GET_BOOKING, headers=native, content=b"\0" * 5).headers
    assert (refused["grpc-status"], refused["grpc-accept-encoding"]) == (
        "12",
        "identity,deflate,gzip",
    )
    assert gateway.upstream.calls == []
    for known in ("identity", "deflate", "gzip"):
        headers = bearer() | {"grpc-encoding": known}
        assert gateway.rest.get("/api/v1/bookings", headers=headers).status_code == 200
