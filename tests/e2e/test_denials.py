"""Every method of every service refuses callers without permission, over REST and gRPC.

The methods come from the compiled contract, so new RPCs are included. A new RPC that needs a body,
or has a new kind of id, fails here until it is added below.
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
SIGNED_IN = [method for method in ALL if method.needs_token]
REST = [(method, binding) for method in SIGNED_IN for binding in method.bindings]

_MAX_CONCURRENT = 16
_SERVED_BY = {"auth": 0, "catalogue": 1, "bookings": 1, "stock": 2, "payments": 3}

Outcome = tuple[int | str, str]
"""HTTP status or gRPC code, and the reason."""

Attempt = Callable[[], Awaitable[Outcome]]


@dataclass
class Clients:
    """Clients of the gateway over REST and gRPC, and of each service over gRPC."""

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
        method: MethodPolicy,
        token: str | None,
        request: bytes = b"",
    ) -> Outcome:
        metadata = [("idempotency-key", str(new_id()))]
        if token is not None:
            metadata.append(("authorization", f"Bearer {token}"))
        streaming: Any = channel.unary_stream(method.path)
        unary: Any = channel.unary_unary(method.path)
        try:
            if method.server_streaming:
                await anext(aiter(streaming(request, metadata=metadata, timeout=60)), None)
            else:
                await unary(request, metadata=metadata, timeout=60)
        except grpc.aio.AioRpcError as error:
            return error.code().name, reason_of(error)
        return "OK", ""

    def service_of(self, method: MethodPolicy) -> grpc.aio.Channel:
        """The service that serves a method, called with an operator's certificate."""
        return self.services[method.path.split(".")[1]]


@pytest_asyncio.fixture
async def clients(mesh: RunningMesh) -> AsyncIterator[Clients]:
    async with AsyncExitStack() as stack:
        rest = await stack.enter_async_context(
            httpx.AsyncClient(
                base_url=mesh.url, timeout=60, limits=httpx.Limits(max_connections=_MAX_CONCURRENT)
            )
        )
        gateway = await stack.enter_async_context(
            grpc.aio.insecure_channel(mesh.url.removeprefix("http://"))
        )
        services = {}
        for area, number in {**_SERVED_BY, **_other_areas()}.items():
            service = SERVICES[number]
            services[area] = await stack.enter_async_context(
                grpc.aio.secure_channel(
                    f"127.0.0.1:{mesh.port(service)}",
                    credentials(mesh.home / "certificates", "operator"),
                    options=[("grpc.ssl_target_name_override", server_name(service))],
                )
            )
        yield Clients(rest, gateway, services)


def _other_areas() -> dict[str, int]:
    """Areas that are not in _SERVED_BY, from the gateway's table."""
    from gateway.clusters import SERVED_BY

    return {
        package.split(".")[1]: SERVICES.index(service)
        for package, service in SERVED_BY.items()
        if service in SERVICES
    }


async def outcomes(
    calls: Iterable[tuple[str, Attempt]],
) -> dict[str, Outcome]:
    """The outcomes of all calls by name, at most _MAX_CONCURRENT at a time."""
    slots = asyncio.Semaphore(_MAX_CONCURRENT)

    async def limited(call: Attempt) -> Outcome:
        async with slots:
            return await call()

    named = list(calls)
    results = await asyncio.gather(*(limited(call) for _, call in named))
    return dict(zip([name for name, _ in named], results, strict=True))


def calls_of(
    clients: Clients, methods: Iterable[MethodPolicy], token: str | None
) -> dict[str, list[tuple[str, Attempt]]]:
    listed = list(methods)
    return {
        "rest": [
            (f"{b.verb} {b.path}", partial(clients.over_rest, b, token, {}, {}))
            for method in listed
            for b in method.bindings
        ],
        "gateway": [
            (method.path, partial(clients.over_grpc, clients.gateway, method, token))
            for method in listed
        ],
        "service": [
            (method.path, partial(clients.over_grpc, clients.service_of(method), method, token))
            for method in listed
        ],
    }


def unexpected(actual: dict[str, Outcome], *expected: Outcome) -> dict[str, Outcome]:
    return {name: outcome for name, outcome in actual.items() if outcome not in expected}


@pytest.fixture(scope="module")
def signing(mesh: RunningMesh) -> SigningKey:
    return load_key(mesh.home / "keys" / "access_token.pem")


def signed(key: SigningKey, *, typ: str = "at+jwt", **claims: Any) -> str:
    """A token signed by the mesh's key, of a session that does not exist."""
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
    "signature of another key": (stolen_kid, "TOKEN_INVALID"),
    "no token at all": (lambda key: "nonsense", "TOKEN_INVALID"),
}


@pytest.mark.parametrize("kind", BAD_TOKENS)
async def test_an_invalid_token_is_refused_by_all_methods(
    clients: Clients, signing: SigningKey, kind: str
) -> None:
    make, expected = BAD_TOKENS[kind]
    is_about_time = kind in ("expired", "not yet valid")
    methods = [method for method in SIGNED_IN if not (is_about_time and method.accepts_ended_token)]
    calls = calls_of(clients, methods, make(signing))
    assert len(calls["rest"]) > 25
    assert unexpected(await outcomes(calls["rest"]), (401, expected)) == {}
    assert unexpected(await outcomes(calls["gateway"]), ("UNAUTHENTICATED", expected)) == {}
    assert unexpected(await outcomes(calls["service"]), ("UNAUTHENTICATED", expected)) == {}


async def test_a_refresh_token_is_refused_as_access_token(clients: Clients, customer: Api) -> None:
    calls = calls_of(clients, SIGNED_IN, customer.session["refreshToken"])
    assert unexpected(await outcomes(calls["rest"]), (401, "TOKEN_WRONG_TYPE")) == {}
    for way in ("gateway", "service"):
        assert unexpected(await outcomes(calls[way]), ("UNAUTHENTICATED", "TOKEN_WRONG_TYPE")) == {}


@pytest.mark.parametrize(
    ("role", "access", "reason"),
    [
        ("CUSTOMER", Access.STAFF, "STAFF_REQUIRED"),
        ("CUSTOMER", Access.ADMIN, "ADMIN_REQUIRED"),
        ("STAFF", Access.ADMIN, "ADMIN_REQUIRED"),
    ],
)
async def test_a_lower_role_is_refused(
    clients: Clients, signing: SigningKey, role: str, access: Access, reason: str
) -> None:
    methods = [method for method in ALL if method.access is access]
    assert methods
    calls = calls_of(clients, methods, signed(signing, role=role))
    assert unexpected(await outcomes(calls["rest"]), (403, reason)) == {}
    for way in ("gateway", "service"):
        assert unexpected(await outcomes(calls[way]), ("PERMISSION_DENIED", reason)) == {}


@pytest.mark.parametrize("role", ["OWNER", "", None, 3, ["ADMIN"]])
async def test_an_unknown_role_is_refused(clients: Clients, signing: SigningKey, role: Any) -> None:
    calls = calls_of(clients, SIGNED_IN, signed(signing, role=role))
    assert unexpected(await outcomes(calls["rest"]), (401, "TOKEN_INVALID")) == {}
    assert unexpected(await outcomes(calls["service"]), ("UNAUTHENTICATED", "TOKEN_INVALID")) == {}


async def test_internal_methods_are_for_services_only(
    clients: Clients, signing: SigningKey
) -> None:
    """Also admins are refused: the gateway has no route, and the service does not allow the caller."""
    methods = [method for method in ALL if method.access is Access.INTERNAL]
    calls = calls_of(clients, methods, signed(signing, role="ADMIN"))
    assert calls["rest"] == []
    for refused in (await outcomes(calls["gateway"])).values():
        assert refused[0] in ("UNIMPLEMENTED", "UNAUTHENTICATED"), refused
    direct = await outcomes(calls["service"])
    assert unexpected(direct, ("PERMISSION_DENIED", "CALLER_NOT_ALLOWED")) == {}


# Ids in paths, of resources that belong to a customer, and of public ones.
OWNED = {"booking_id", "payment_id", "refund_id", "session_id", "entry_id"}
PUBLIC = {"event_id", "venue_id", "auditorium_id", "production_id"}

# Bodies that make a request valid, so that ownership decides.
BODIES: dict[str, Any] = {
    "RescheduleBooking": {"eventId": str(uuid4())},
    "CheckoutBooking": {"provider": "sandbox"},
    "UpdateBooking": {"note": "by the door"},
}


def variables(method: MethodPolicy) -> set[str]:
    return {name for binding in method.bindings for name in re.findall(r"\{(\w+)\}", binding.path)}


OF_CUSTOMERS = [method for method in ALL if method.access is Access.CUSTOMER]
WITH_OWNER = [method for method in OF_CUSTOMERS if variables(method) & OWNED]


def test_every_id_is_known_as_owned_or_public() -> None:
    """Add a new id in a customer's path to OWNED or PUBLIC."""
    assert {name for method in OF_CUSTOMERS for name in variables(method)} <= OWNED | PUBLIC


@pytest.fixture
def resources(admin: Api, customer: Api) -> dict[str, str]:
    """One resource of each kind that the customer owns."""
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
    sold_out = admin.create_event(offers=[{**_OFFER, "capacity": 1}])
    assert admin.book(items(sold_out, 1)).status_code == 201
    [offer] = sold_out["offers"]
    joined = customer.post(
        f"/api/v1/events/{sold_out['eventId']}/waiting-list",
        {"items": [{"offerId": offer["offerId"], "quantity": 1}]},
    )
    assert joined.status_code == 201, joined.text
    return {
        "entry_id": joined.json()["entryId"],
        "booking_id": placed["bookingId"],
        "payment_id": payment_id,
        "refund_id": refund.json()["refundId"],
        "session_id": session["sessionId"],
        "event_id": event["eventId"],
    }


_OFFER = {"name": "Floor", "price": {"currencyCode": "INR", "amountMinor": "150000"}}


async def test_resources_of_another_customer_are_not_found(
    clients: Clients, api: Api, customer: Api, resources: dict[str, str]
) -> None:
    stranger = api.sign_up()
    assert len(WITH_OWNER) >= 6
    over_rest = await outcomes(
        (
            f"{b.verb} {b.path}",
            partial(clients.over_rest, b, stranger.token, resources, BODIES.get(_name(method), {})),
        )
        for method in WITH_OWNER
        for b in method.bindings
    )
    assert {n: o for n, o in over_rest.items() if not _is_not_found(o, 404)} == {}
    for channel in ("gateway", "service"):
        over_grpc = await outcomes(
            (
                method.path,
                partial(
                    clients.over_grpc,
                    clients.gateway if channel == "gateway" else clients.service_of(method),
                    method,
                    stranger.token,
                    a_request(method, resources).SerializeToString(),
                ),
            )
            for method in WITH_OWNER
        )
        assert {n: o for n, o in over_grpc.items() if not _is_not_found(o, "NOT_FOUND")} == {}
    # The owner still has access.
    for path in ("bookings/{booking_id}", "payments/{payment_id}", "refunds/{refund_id}"):
        assert customer.get(f"/api/v1/{path.format(**resources)}").status_code == 200, path


def a_request(method: MethodPolicy, resources: dict[str, str]) -> Message:
    service, name = method.path.removeprefix("/").split("/")
    message = GetMessageClass(contract_services()[service].methods_by_name[name].input_type)()
    ids = {name: resources[name] for name in variables(method) if name in resources}
    json_format.ParseDict({**BODIES.get(_name(method), {}), **ids}, message)
    return message


def _name(method: MethodPolicy) -> str:
    return method.path.rpartition("/")[2]


def _is_not_found(outcome: Outcome, status: int | str) -> bool:
    return outcome[0] == status and outcome[1].endswith("_NOT_FOUND")
