"""The gateway exchanges API keys at auth_svc; for access tokens it does not ask."""

import base64
import json
from collections.abc import Callable
from typing import Any

import grpc
import httpx
import pytest

from boxoffice.authorization.v1 import authorization_service_pb2 as pb
from testing.gateway_harness import Gateway, bearer, token
from tests.gateway.test_denials import denial

CHECK = "/envoy.service.auth.v3.Authorization/Check"
LIST = "/boxoffice.bookings.v1.BookingService/ListBookings"
BOOKINGS = "/api/v1/bookings"
EVENTS = "/api/v1/events"
KEY = {"authorization": "Bearer boxoffice_Vt9kQw"}
KEY_ID = "0192aaaa-0000-7000-8000-0000000000ff"


def allowed(request: bytes, _: object) -> pb.CheckResponse:
    headers = pb.CheckRequest.FromString(request).attributes.request.http.headers
    assert dict(headers) == KEY
    answer = pb.CheckResponse(status=pb.Status())
    header = answer.ok_response.headers.add()
    header.header.key = "authorization"
    header.header.value = f"Bearer {token(sub=KEY_ID, sid=None, api_key=True)}"
    header.append.value = False
    return answer


def denied(status: int) -> Callable[[bytes, object], pb.CheckResponse]:
    refusal = pb.DeniedHttpResponse(status=pb.HttpStatus(code=status))
    return lambda *_: pb.CheckResponse(status=pb.Status(code=16), denied_response=refusal)


def failing(_: bytes, context: grpc.ServicerContext) -> Any:
    context.abort(grpc.StatusCode.UNAVAILABLE, "auth_svc is away")


def reason(answer: httpx.Response) -> str:
    return str(answer.json()["details"][0]["reason"])


@pytest.mark.parametrize("scheme", ["Bearer", "bearer "])
def test_a_call_with_an_api_key_has_the_keys_claims(gateway: Gateway, scheme: str) -> None:
    gateway.upstream.answers[CHECK] = allowed
    key = {"authorization": KEY["authorization"].replace("Bearer", scheme)}
    assert gateway.rest.get(BOOKINGS, headers=key).status_code == 200
    gateway.unary(LIST, metadata=key)
    assert gateway.web(LIST, headers=key).status_code == 200
    exchanges = [call for call in gateway.upstream.calls if call.path == CHECK]
    calls = [call for call in gateway.upstream.calls if call.path == LIST]
    assert (len(exchanges), len(calls)) == (3, 3)
    for call in calls:
        payload = call.metadata["x-jwt-payload"]
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
        assert (claims["sub"], claims["api_key"]) == (KEY_ID, True)
        assert "authorization" not in call.metadata


@pytest.mark.parametrize(("status", "expected"), [(401, "TOKEN_INVALID"), (410, "TOKEN_EXPIRED")])
def test_a_refused_key_is_401_on_every_method(gateway: Gateway, status: int, expected: str) -> None:
    gateway.upstream.answers[CHECK] = denied(status)
    for path in (BOOKINGS, EVENTS):
        answer = gateway.rest.get(path, headers=KEY)
        assert (answer.status_code, reason(answer)) == (401, expected)
        assert "API key" in answer.json()["message"]
        assert answer.headers["www-authenticate"].startswith("Bearer ")
    assert denial(gateway, LIST, KEY) == (grpc.StatusCode.UNAUTHENTICATED, expected)
    assert {call.path for call in gateway.upstream.calls} == {CHECK}


def test_without_auth_svc_a_call_with_a_key_is_503(gateway: Gateway) -> None:
    gateway.upstream.answers[CHECK] = failing
    answer = gateway.rest.get(BOOKINGS, headers=KEY)
    assert (answer.status_code, reason(answer)) == (503, "DEPENDENCY_UNAVAILABLE")


def test_nothing_is_exchanged_for_access_tokens_and_for_anonymous_calls(gateway: Gateway) -> None:
    gateway.upstream.answers[CHECK] = denied(401)
    assert gateway.rest.get(BOOKINGS, headers=bearer()).status_code == 200
    assert gateway.rest.get(EVENTS).status_code == 200
    gateway.unary(LIST, metadata=bearer())
    assert CHECK not in {call.path for call in gateway.upstream.calls}
