"""Every method of every service, by every way in, refuses whoever may not call it.

The list comes from the compiled contract: an RPC that is added tomorrow is in it. What
cannot be derived, a body that a new RPC needs or whose thing an id names, fails here
until it is said.
"""

import asyncio
import re
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any
from uuid import uuid4

import grpc
import httpx
import jwt
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives import serialization
from google.protobuf import json_format
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from auth_svc.tokens import SigningKey, load_key
from mesh.ids import new_id
from mesh.rpc.client import credentials, server_name
from mesh.rpc.policy import Access, HttpBinding, MethodPolicy
from mesh.settings import SERVICES
from testing.network import contract_services, reason_of
from testing.running_mesh import Api, RunningMesh, items
from testing.tokens import TokenKey, a_payload, signed_by_hmac, unsigned
from tests.architecture.contract import policies

ALL = list(policies().values())
SIGNED_IN = [one for one in ALL if one.needs_token]
REST = [(one, binding) for one in SIGNED_IN for binding in one.bindings]

_AT_ONCE = 16
_SERVED_BY = {"auth": 0, "catalogue": 1, "bookings": 1, "stock": 2, "payments": 3}

Outcome = tuple[int | str, str]
"""HTTP status or gRPC code, and the reason."""

Attempt = Callable[[], Awaitable[Outcome]]


@dataclass
class Ways:
    """The ways in: REST and gRPC at the gateway, and gRPC at each service itself."""

    rest: httpx.AsyncClient
    gateway: grpc.aio.Channel
    services: dict[str, grpc.aio.Channel]

    async def over_rest(
        self, binding: HttpBinding, token: str | None, ids: dict[str, str], body: Any
    ) -> Outcome:
        path = re.sub(r"\{(\w+)\}", lambda name: ids.get(name[1], str(uuid4())), binding.path)
        headers = {"idempotency-key": str(new_id())}
        if token is not None:
            headers["authorization"] = f"Bearer {token}"
        answer = await self.rest.request(
            binding.verb, path, json=body if binding.body else None, headers=headers
        )
        details = answer.json().get("details", []) if answer.content else []
        reasons = [detail["reason"] for detail in details if "reason" in detail]
        return answer.status_code, reasons[0] if reasons else ""

    async def over_grpc(
        self,
        channel: grpc.aio.Channel,
        one: MethodPolicy,
        token: str | None,
        request: bytes = b"",
    ) -> Outcome:
        metadata = [("idempotency-key", str(new_id()))]
        if token is not None:
            metadata.append(("authorization", f"Bearer {token}"))
        streaming: Any = channel.unary_stream(one.path)
        unary: Any = channel.unary_unary(one.path)
        try:
            if one.server_streaming:
                await anext(aiter(streaming(request, metadata=metadata, timeout=10)), None)
            else:
                await unary(request, metadata=metadata, timeout=10)
        except grpc.aio.AioRpcError as error:
            return error.code().name, reason_of(error)
        return "OK", ""

    def service_of(self, one: MethodPolicy) -> grpc.aio.Channel:
        """The service that serves a method, called with an operator's certificate."""
        return self.services[one.path.split(".")[1]]


@pytest_asyncio.fixture
async def ways(mesh: RunningMesh) -> AsyncIterator[Ways]:
    async with AsyncExitStack() as stack:
        rest = await stack.enter_async_context(
            httpx.AsyncClient(
                base_url=mesh.url, timeout=20, limits=httpx.Limits(max_connections=_AT_ONCE)
            )
        )
        gateway = await stack.enter_async_context(
            grpc.aio.insecure_channel(mesh.url.removeprefix("http://"))
        )
        services = {}
        for area, number in {**_SERVED_BY, **_served_besides()}.items():
            service = SERVICES[number]
            services[area] = await stack.enter_async_context(
                grpc.aio.secure_channel(
                    f"127.0.0.1:{mesh.port(service)}",
                    credentials(mesh.home / "certificates", "operator"),
                    options=[("grpc.ssl_target_name_override", server_name(service))],
                )
            )
        yield Ways(rest, gateway, services)


def _served_besides() -> dict[str, int]:
    """Areas that this file does not know, by the gateway's own table."""
    from gateway.clusters import SERVED_BY

    return {
        package.split(".")[1]: SERVICES.index(service)
        for package, service in SERVED_BY.items()
        if service in SERVICES
    }


async def outcomes(
    calls: Iterable[tuple[str, Attempt]],
) -> dict[str, Outcome]:
    """What all calls ended with, by their names; so many at once."""
    places = asyncio.Semaphore(_AT_ONCE)

    async def one(call: Attempt) -> Outcome:
        async with places:
            return await call()

    named = list(calls)
    results = await asyncio.gather(*(one(call) for _, call in named))
    return dict(zip([name for name, _ in named], results, strict=True))


def by_every_way(
    ways: Ways, methods: Iterable[MethodPolicy], token: str | None
) -> dict[str, list[tuple[str, Attempt]]]:
    found = list(methods)
    return {
        "rest": [
            (f"{b.verb} {b.path}", partial(ways.over_rest, b, token, {}, {}))
            for one in found
            for b in one.bindings
        ],
        "gateway": [(one.path, partial(ways.over_grpc, ways.gateway, one, token)) for one in found],
        "service": [
            (one.path, partial(ways.over_grpc, ways.service_of(one), one, token)) for one in found
        ],
    }


def wrong(found: dict[str, Outcome], *expected: Outcome) -> dict[str, Outcome]:
    return {name: outcome for name, outcome in found.items() if outcome not in expected}


@pytest.fixture(scope="module")
def signing(mesh: RunningMesh) -> SigningKey:
    return load_key(mesh.home / "keys" / "access_token.pem")


def signed(key: SigningKey, *, typ: str = "at+jwt", **claims: Any) -> str:
    """A token signed by the mesh's own key; its session is nobody's."""
    return jwt.encode(
        a_payload(**claims),
        key.private,
        algorithm="RS256",
        headers={"typ": typ, "kid": key.public.kid},
    )


def public_pem(key: SigningKey) -> bytes:
    return key.private.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def stolen_kid(key: SigningKey) -> str:
    return TokenKey.new().sign(kid=key.public.kid)


BAD_TOKENS: dict[str, tuple[Callable[[SigningKey], str | None], str]] = {
    "none": (lambda key: None, "TOKEN_INVALID"),
    "expired": (lambda key: signed(key, exp=int(time.time()) - 60), "TOKEN_EXPIRED"),
    "not yet valid": (lambda key: signed(key, nbf=int(time.time()) + 600), "TOKEN_INVALID"),
    "wrong issuer": (lambda key: signed(key, iss="somebody"), "TOKEN_INVALID"),
    "wrong audience": (lambda key: signed(key, aud="something"), "TOKEN_INVALID"),
    "alg none": (lambda key: unsigned(a_payload()), "TOKEN_INVALID"),
    "HS256 with the public key": (
        lambda key: signed_by_hmac(public_pem(key), a_payload()),
        "TOKEN_INVALID",
    ),
    "a stranger's signature": (stolen_kid, "TOKEN_INVALID"),
    "no token at all": (lambda key: "nonsense", "TOKEN_INVALID"),
}


@pytest.mark.parametrize("kind", BAD_TOKENS)
async def test_a_bad_token_opens_nothing(ways: Ways, signing: SigningKey, kind: str) -> None:
    make, expected = BAD_TOKENS[kind]
    calls = by_every_way(ways, SIGNED_IN, make(signing))
    assert len(calls["rest"]) > 25
    assert wrong(await outcomes(calls["rest"]), (401, expected)) == {}
    assert wrong(await outcomes(calls["gateway"]), ("UNAUTHENTICATED", expected)) == {}
    assert wrong(await outcomes(calls["service"]), ("UNAUTHENTICATED", expected)) == {}


async def test_a_refresh_token_is_no_access_token(ways: Ways, customer: Api) -> None:
    calls = by_every_way(ways, SIGNED_IN, customer.session["refreshToken"])
    assert wrong(await outcomes(calls["rest"]), (401, "TOKEN_WRONG_TYPE")) == {}
    for way in ("gateway", "service"):
        assert wrong(await outcomes(calls[way]), ("UNAUTHENTICATED", "TOKEN_WRONG_TYPE")) == {}


@pytest.mark.parametrize(
    ("role", "access", "reason"),
    [
        ("CUSTOMER", Access.STAFF, "STAFF_REQUIRED"),
        ("CUSTOMER", Access.ADMIN, "ADMIN_REQUIRED"),
        ("STAFF", Access.ADMIN, "ADMIN_REQUIRED"),
    ],
)
async def test_a_lower_role_opens_nothing(
    ways: Ways, signing: SigningKey, role: str, access: Access, reason: str
) -> None:
    methods = [one for one in ALL if one.access is access]
    assert methods
    calls = by_every_way(ways, methods, signed(signing, role=role))
    assert wrong(await outcomes(calls["rest"]), (403, reason)) == {}
    for way in ("gateway", "service"):
        assert wrong(await outcomes(calls[way]), ("PERMISSION_DENIED", reason)) == {}


@pytest.mark.parametrize("role", ["OWNER", "", None, 3, ["ADMIN"]])
async def test_a_role_that_is_none_opens_nothing(
    ways: Ways, signing: SigningKey, role: Any
) -> None:
    calls = by_every_way(ways, SIGNED_IN, signed(signing, role=role))
    assert wrong(await outcomes(calls["rest"]), (401, "TOKEN_INVALID")) == {}
    assert wrong(await outcomes(calls["service"]), ("UNAUTHENTICATED", "TOKEN_INVALID")) == {}


async def test_what_is_internal_is_for_services_only(ways: Ways, signing: SigningKey) -> None:
    """Not even an admin: the gateway does not know the way, the service not the caller."""
    methods = [one for one in ALL if one.access is Access.INTERNAL]
    calls = by_every_way(ways, methods, signed(signing, role="ADMIN"))
    assert calls["rest"] == []
    for refused in (await outcomes(calls["gateway"])).values():
        assert refused[0] in ("UNIMPLEMENTED", "UNAUTHENTICATED"), refused
    found = await outcomes(calls["service"])
    assert wrong(found, ("PERMISSION_DENIED", "CALLER_NOT_ALLOWED")) == {}


# Whose thing an id in a path names: the customer's who made it, or everybody's.
OWNED = {"booking_id", "payment_id", "refund_id", "session_id"}
EVERYBODYS = {"event_id", "venue_id", "auditorium_id", "production_id"}

# What a method needs besides its ids to be looked at at all, so that the owner decides.
BODIES: dict[str, Any] = {
    "RescheduleBooking": {"eventId": str(uuid4())},
    "CheckoutBooking": {"provider": "sandbox"},
    "UpdateBooking": {"note": "by the door"},
}


def variables(one: MethodPolicy) -> set[str]:
    return {name for binding in one.bindings for name in re.findall(r"\{(\w+)\}", binding.path)}


OF_CUSTOMERS = [one for one in ALL if one.access is Access.CUSTOMER]
WITH_OWNER = [one for one in OF_CUSTOMERS if variables(one) & OWNED]


def test_of_every_id_it_is_known_whose_it_is() -> None:
    """A new id in a customer's path: say here whether it has an owner."""
    assert {name for one in OF_CUSTOMERS for name in variables(one)} <= OWNED | EVERYBODYS


@pytest.fixture
def things(admin: Api, customer: Api) -> dict[str, str]:
    """One thing of each kind that the customer owns."""
    event = admin.create_event(offers=[{**_OFFER, "capacity": 100}])
    placed = customer.book({**items(event, 2), "checkout": {"provider": "sandbox"}}).json()
    payment_id = placed["payment"]["paymentId"]
    customer.post(f"/sandbox/pay/{payment_id}", {"outcome": "SUCCEEDED"})
    customer.wait_for_status(placed["bookingId"], "CONFIRMED")
    refund = admin.post(
        f"/api/v1/payments/{payment_id}/refund",
        {"amount": {"currencyCode": "INR", "amountMinor": "100"}, "reason": "test"},
        idempotency_key=str(new_id()),
    )
    assert refund.status_code == 201, refund.text
    [session] = customer.get("/api/v1/auth/sessions").json()["sessions"]
    return {
        "booking_id": placed["bookingId"],
        "payment_id": payment_id,
        "refund_id": refund.json()["refundId"],
        "session_id": session["sessionId"],
        "event_id": event["eventId"],
    }


_OFFER = {"name": "Floor", "price": {"currencyCode": "INR", "amountMinor": "150000"}}


async def test_another_customers_things_do_not_exist(
    ways: Ways, api: Api, customer: Api, things: dict[str, str]
) -> None:
    stranger = api.sign_up()
    assert len(WITH_OWNER) >= 6
    over_rest = await outcomes(
        (
            f"{b.verb} {b.path}",
            partial(ways.over_rest, b, stranger.token, things, BODIES.get(_name(one), {})),
        )
        for one in WITH_OWNER
        for b in one.bindings
    )
    assert {n: o for n, o in over_rest.items() if not _is_not_found(o, 404)} == {}
    for channel in ("gateway", "service"):
        over_grpc = await outcomes(
            (
                one.path,
                partial(
                    ways.over_grpc,
                    ways.gateway if channel == "gateway" else ways.service_of(one),
                    one,
                    stranger.token,
                    a_request(one, things).SerializeToString(),
                ),
            )
            for one in WITH_OWNER
        )
        assert {n: o for n, o in over_grpc.items() if not _is_not_found(o, "NOT_FOUND")} == {}
    # Theirs all along, and unharmed.
    for path in ("bookings/{booking_id}", "payments/{payment_id}", "refunds/{refund_id}"):
        assert customer.get(f"/api/v1/{path.format(**things)}").status_code == 200, path


def a_request(one: MethodPolicy, things: dict[str, str]) -> Message:
    service, method = one.path.removeprefix("/").split("/")
    message = GetMessageClass(contract_services()[service].methods_by_name[method].input_type)()
    ids = {name: things[name] for name in variables(one) if name in things}
    json_format.ParseDict({**BODIES.get(_name(one), {}), **ids}, message)
    return message


def _name(one: MethodPolicy) -> str:
    return one.path.rpartition("/")[2]


def _is_not_found(outcome: Outcome, status: int | str) -> bool:
    return outcome[0] == status and outcome[1].endswith("_NOT_FOUND")
