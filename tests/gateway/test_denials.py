"""Default deny for every RPC of the contract: REST and gRPC, with and without TLS."""

import base64
import hashlib
import hmac
import json
import re
import time
from collections.abc import Callable
from typing import Any

import grpc
import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from mesh.rpc import policy
from mesh.rpc.identity import AUDIENCE, ISSUER
from mesh.rpc.policy import HttpBinding
from testing import gateway_harness
from testing.gateway_harness import KEY, KEY_ID, Gateway, bearer, token

POLICIES = list(policy.of_contract(gateway_harness.contract()).values())
PROTECTED = [rpc for rpc in POLICIES if rpc.needs_token]
PUBLIC = [rpc for rpc in POLICIES if rpc.is_routed and not rpc.needs_token]
INTERNAL = [rpc for rpc in POLICIES if not rpc.is_routed]

ELSEWHERE = [
    "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
    "/grpc.health.v1.Health/Check",
    "/boxoffice.bookings.v1.BookingService/NoSuchMethod",
    "/boxoffice.bookings.v1.BookingService/placebooking",
    "/boxoffice.bookings.v1.BookingService/PlaceBooking/",
    "/nobody.Knows/This",
]


@pytest.fixture
def gateway(each_listener: Gateway) -> Gateway:
    return each_listener


def rest(gateway: Gateway, binding: HttpBinding, headers: dict[str, str]) -> Any:
    path = re.sub(r"\{[^}]*\}", "x", binding.path)
    content = b"{}" if binding.body else None
    return gateway.rest.request(binding.verb, path, headers=headers, content=content)


def denial(gateway: Gateway, path: str, metadata: dict[str, str]) -> tuple[grpc.StatusCode, str]:
    """The gRPC code, and the reason in the details, of a refused gRPC call."""
    with pytest.raises(grpc.RpcError) as failure:
        gateway.unary(path, metadata=metadata)
    # from_call raises when the details contradict the code or the message.
    status = rpc_status.from_call(failure.value)  # type: ignore[arg-type]
    assert status is not None, "the gateway's error has no details"
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.domain == "boxoffice"
    return failure.value.code(), str(info.reason)


def test_a_protected_rpc_requires_a_token(gateway: Gateway, subtests: pytest.Subtests) -> None:
    for rpc in PROTECTED:
        with subtests.test(rpc.path):
            unauthenticated = (grpc.StatusCode.UNAUTHENTICATED, "TOKEN_INVALID")
            assert denial(gateway, rpc.path, {}) == unauthenticated
            assert gateway.web(rpc.path).headers["grpc-status"] == "16"
            for binding in rpc.bindings:
                answer = rest(gateway, binding, {})
                assert (answer.status_code, answer.json()["code"]) == (401, 16)
            assert gateway.upstream.calls == []


def test_a_public_rpc_requires_no_token(gateway: Gateway, subtests: pytest.Subtests) -> None:
    for rpc in PUBLIC:
        with subtests.test(rpc.path):
            gateway.unary(rpc.path)
            for binding in rpc.bindings:
                assert rest(gateway, binding, {}).status_code == rpc.success_status


def test_an_internal_rpc_cannot_be_reached(gateway: Gateway, subtests: pytest.Subtests) -> None:
    for rpc in INTERNAL:
        with subtests.test(rpc.path):
            assert denial(gateway, rpc.path, {})[0] is grpc.StatusCode.UNAUTHENTICATED
            unknown = (grpc.StatusCode.UNIMPLEMENTED, "ROUTE_NOT_FOUND")
            assert denial(gateway, rpc.path, bearer()) == unknown
            assert gateway.web(rpc.path, headers=bearer()).headers["grpc-status"] == "12"
            answer = gateway.rest.post(rpc.path, json={}, headers=bearer())
            assert answer.status_code == 404
            assert answer.json()["details"][0]["reason"] == "ROUTE_NOT_FOUND"
            assert gateway.upstream.calls == []


def test_methods_outside_the_contract_cannot_be_reached(
    gateway: Gateway, subtests: pytest.Subtests
) -> None:
    for path in ELSEWHERE:
        with subtests.test(path):
            assert denial(gateway, path, {})[0] is grpc.StatusCode.UNAUTHENTICATED
            assert denial(gateway, path, bearer())[0] is grpc.StatusCode.UNIMPLEMENTED
            assert gateway.rest.get(path, headers=bearer()).status_code == 404
            assert gateway.upstream.calls == []


def test_a_grpc_path_does_not_accept_rest_calls(
    gateway: Gateway, subtests: pytest.Subtests
) -> None:
    for rpc in (*PROTECTED, *PUBLIC):
        with subtests.test(rpc.path):
            for verb in ("GET", "POST"):
                answer = gateway.rest.request(verb, rpc.path, headers=bearer())
                assert answer.status_code == 404
            assert gateway.upstream.calls == []


PUBLIC_PEM = KEY.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def hs256_with_the_public_key() -> str:
    """Built by hand, because PyJWT refuses to sign with a public key."""

    def part(value: object) -> bytes:
        return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=")

    claims = jwt.decode(token(), options={"verify_signature": False})
    signed = part({"alg": "HS256", "kid": KEY_ID, "typ": "at+jwt"}) + b"." + part(claims)
    mac = base64.urlsafe_b64encode(hmac.digest(PUBLIC_PEM, signed, hashlib.sha256)).rstrip(b"=")
    return (signed + b"." + mac).decode()


BAD_TOKENS: dict[str, tuple[Callable[[], str], str]] = {
    "expired": (lambda: token(exp=int(time.time()) - 60), "TOKEN_EXPIRED"),
    "another key": (lambda: token(key=rsa.generate_private_key(65537, 2048)), "TOKEN_INVALID"),
    "altered": (lambda: token()[:-6] + "AAAAAA", "TOKEN_INVALID"),
    "alg none": (lambda: token(key="", algorithm="none"), "TOKEN_INVALID"),
    "HS256 with the public key": (hs256_with_the_public_key, "TOKEN_INVALID"),
    "wrong issuer": (lambda: token(iss="somebody"), "TOKEN_INVALID"),
    "wrong audience": (lambda: token(aud="something-else"), "TOKEN_INVALID"),
    "no audience": (lambda: token(aud=None), "TOKEN_INVALID"),
    "no expiry": (lambda: token(exp=None), "TOKEN_INVALID"),
    "not yet valid": (lambda: token(nbf=int(time.time()) + 600), "TOKEN_INVALID"),
    "an opaque string": (lambda: "c29tZSByZWZyZXNoIHRva2Vu", "TOKEN_INVALID"),
    "a refresh token": (lambda: "rx2AkaSrYOR3yOxq42OYZbdXJ65DaXKsQ8_JsrzZJ8w", "TOKEN_WRONG_TYPE"),
}


def test_a_bad_token_is_refused(gateway: Gateway, subtests: pytest.Subtests) -> None:
    for name, (make, reason) in BAD_TOKENS.items():
        with subtests.test(name):
            headers = bearer(make())
            answer = gateway.rest.get("/api/v1/bookings", headers=headers)
            assert (answer.status_code, answer.json()["details"][0]["reason"]) == (401, reason)
            assert (
                answer.headers["www-authenticate"]
                == 'Bearer realm="boxoffice", error="invalid_token"'
            )
            native = denial(gateway, "/boxoffice.bookings.v1.BookingService/ListBookings", headers)
            assert native == (grpc.StatusCode.UNAUTHENTICATED, reason)
            assert gateway.upstream.calls == []


def test_a_bad_token_is_refused_where_a_token_is_optional(
    gateway: Gateway, subtests: pytest.Subtests
) -> None:
    optional = [rpc for rpc in PUBLIC if rpc.reads_token]
    assert {rpc.name for rpc in optional} >= {"EventService/GetEvent", "SearchService/Search"}
    for rpc in optional:
        for name, (make, reason) in BAD_TOKENS.items():
            with subtests.test(f"{rpc.name}: {name}"):
                headers = bearer(make())
                unauthenticated = (grpc.StatusCode.UNAUTHENTICATED, reason)
                assert denial(gateway, rpc.path, headers) == unauthenticated
                for binding in rpc.bindings:
                    answer = rest(gateway, binding, headers)
                    assert answer.status_code == 401
                    assert answer.json()["details"][0]["reason"] == reason
                assert gateway.upstream.calls == []


def test_a_token_outside_of_the_header_is_ignored(gateway: Gateway) -> None:
    assert gateway.rest.get("/api/v1/bookings", headers={"cookie": token()}).status_code == 401
    assert gateway.rest.get(f"/api/v1/bookings?access_token={token()}").status_code == 400
    in_query = f"/boxoffice.bookings.v1.BookingService/ListBookings?access_token={token()}"
    assert denial(gateway, in_query, {})[0] is grpc.StatusCode.UNAUTHENTICATED
    assert gateway.upstream.calls == []


PATHS = [
    "/api/v1/bookings/",
    "/api/v1//bookings",
    "/api/v1/./bookings",
    "/api/v1/events/../bookings",
    "/api/v1/events/..;/bookings",
    "/api/v1/events/x/..%2f..%2fbookings",
    "/api/v1%2Fbookings",
    "/api/v1/bookings%5C",
    "/api/v1/bookings;x=y",
    "/api/v1/bookings%00",
    "/API/v1/bookings",
    "//boxoffice.bookings.v1.BookingService/ListBookings",
    "/x/../boxoffice.bookings.v1.BookingService/ListBookings",
]


def test_no_spelling_of_a_path_bypasses_the_rules(
    gateway: Gateway, subtests: pytest.Subtests
) -> None:
    for path in PATHS:
        with subtests.test(path):
            assert gateway.rest.get(path).status_code in {400, 401, 404}
            grpc_headers = {"content-type": "application/grpc", "te": "trailers"}
            refused = gateway.rest.post(path, headers=grpc_headers)
            if "%" in path:
                assert gateway.rest.get(path, headers=bearer()).status_code in {400, 404}
            # INVALID_ARGUMENT or UNAUTHENTICATED.
            assert refused.headers["grpc-status"] in {"3", "16"}
            assert gateway.upstream.calls == []


def test_tokens_of_the_harness_have_the_meshs_issuer_and_audience() -> None:
    claims = jwt.decode(token(), options={"verify_signature": False})
    assert (claims["iss"], claims["aud"]) == (ISSUER, AUDIENCE)
