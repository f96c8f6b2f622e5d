"""The gateway's log line of a call: the RPC's status, the reason of an error, the user."""

import json
import time
from typing import Any
from uuid import uuid4

import grpc
import pytest
from google.protobuf.message import Message

from mesh.errors import DomainError, Reason
from mesh.rpc.errors import REASON_HEADER, to_grpc
from testing.gateway_harness import USER_ID, Gateway, bearer

PLACE = "/boxoffice.bookings.v1.BookingService/PlaceBooking"


def sold_out(_request: bytes, context: grpc.ServicerContext) -> Message:
    context.abort_with_status(to_grpc(DomainError(Reason.SOLD_OUT, "sold out")))


def line(gateway: Gateway, request_id: str) -> dict[str, Any]:
    """The log line of a request, as soon as it is written."""
    log = gateway.settings.home / "envoy.log"
    deadline = time.monotonic() + 60
    while True:
        for text in log.read_text().splitlines():
            if request_id in text:
                entry: dict[str, Any] = json.loads(text)
                return entry
        assert time.monotonic() < deadline, request_id
        time.sleep(0.05)


def test_calls_over_rest_have_the_rpcs_status_reason_and_user(gateway: Gateway) -> None:
    request_id = str(uuid4())
    headers = {**bearer(), "x-request-id": request_id}
    gateway.rest.get("/api/v1/bookings/b1", headers=headers)
    served = line(gateway, request_id)
    assert (served["status"], served["grpc_status"]) == (200, "OK")
    assert served["user_id"] == USER_ID
    assert "reason" not in served

    gateway.upstream.answers[PLACE] = sold_out
    request_id = str(uuid4())
    headers = {**bearer(), "x-request-id": request_id}
    answer = gateway.rest.post("/api/v1/bookings", json={}, headers=headers)
    assert REASON_HEADER not in answer.headers
    refused = line(gateway, request_id)
    assert (refused["status"], refused["grpc_status"], refused["reason"], refused["user_id"]) == (
        409,
        "ABORTED",
        "SOLD_OUT",
        USER_ID,
    )


def test_calls_over_grpc_have_the_same(gateway: Gateway) -> None:
    gateway.upstream.answers[PLACE] = sold_out
    request_id = str(uuid4())
    with pytest.raises(grpc.RpcError) as failure:
        gateway.unary(PLACE, metadata={**bearer(), "x-request-id": request_id})
    trailers = failure.value.trailing_metadata() or ()
    assert REASON_HEADER not in [entry[0] for entry in trailers]  # type: ignore[index]
    refused = line(gateway, request_id)
    assert (refused["grpc_status"], refused["reason"], refused["user_id"]) == (
        "ABORTED",
        "SOLD_OUT",
        USER_ID,
    )


@pytest.mark.parametrize(
    ("verb", "path", "status", "reason"),
    [
        ("GET", "/api/v1/bookings", "UNAUTHENTICATED", "TOKEN_INVALID"),
        ("PATCH", "/api/v1/bookings", "UNIMPLEMENTED", "METHOD_NOT_ALLOWED"),
        ("GET", "/api/v1/nothing", "UNIMPLEMENTED", "ROUTE_NOT_FOUND"),
        ("GET", "/api/v1/events?pageSize=many", "INVALID_ARGUMENT", "VALIDATION_FAILED"),
    ],
)
def test_errors_of_the_gateway_have_a_reason(
    gateway: Gateway, verb: str, path: str, status: str, reason: str
) -> None:
    request_id = str(uuid4())
    answer = gateway.rest.request(verb, path, headers={"x-request-id": request_id})
    assert answer.json()["details"][0]["reason"] == reason
    refused = line(gateway, request_id)
    assert (refused["grpc_status"], refused["reason"]) == (status, reason)
    assert "user_id" not in refused
