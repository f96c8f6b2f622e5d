"""Authentication and authorisation: certificates, the gateway's header, tokens and roles."""

import base64
import dataclasses
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import grpc
import jwt
import pytest
from google.protobuf import descriptor_pb2

from launcher import certificates
from mesh.errors import DomainError, Reason
from mesh.paths import CONTRACT
from mesh.rpc import client, identity, policy
from mesh.rpc.call import Caller, caller
from mesh.rpc.policy import Access
from testing.network import (
    Context,
    Network,
    a_service,
    call,
    contract_services,
    empty_request,
    reason_of,
    refusal,
    standing_in,
)
from testing.tokens import KEY_ID, TokenKey, a_payload, encoded, signed_by_hmac, unsigned

POLICIES = policy.of_contract(descriptor_pb2.FileDescriptorSet.FromString(CONTRACT.read_bytes()))
INTERNAL = [path for path, rpc in POLICIES.items() if rpc.access is Access.INTERNAL]
WITH_CALLERS = [path for path, rpc in POLICIES.items() if rpc.callers]

GET_STOCK = "/boxoffice.stock.v1.StockService/GetStock"
GET_ME = "/boxoffice.auth.v1.AccountService/GetMe"
LIST_MOVEMENTS = "/boxoffice.stock.v1.StockService/ListMovements"


@asynccontextmanager
async def everything(network: Network, key: TokenKey) -> AsyncIterator[int]:
    """A server with all services of the contract, which return empty messages."""
    service = a_service(*(standing_in(name) for name in contract_services()), jwks=key.jwks)
    async with network.serve("stock_svc", service) as port:
        yield port


async def ask(channel: grpc.aio.Channel, path: str, **options: Any) -> None:
    """Calls a method with an empty request and reads its response to the end."""
    if not POLICIES[path].server_streaming:
        await call(channel, path, empty_request(path), **options)
        return
    stub: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(path)
    async for _ in stub(b"", **options):
        pass


async def outcome(channel: grpc.aio.Channel, path: str, **options: Any) -> str:
    """`allowed`, or the reason of the refusal. Validation of the request comes after both."""
    try:
        await ask(channel, path, **options)
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
            return "allowed"
        return reason_of(error) or error.code().name
    return "allowed"


def test_the_contract_has_internal_methods() -> None:
    """Tests below use these lists, which must not be empty by mistake."""
    assert GET_STOCK in INTERNAL
    assert len(INTERNAL) >= 8
    assert set(WITH_CALLERS) > set(INTERNAL)


@pytest.mark.parametrize("path", INTERNAL)
async def test_only_the_named_callers_may_call_an_internal_method(
    network: Network, key: TokenKey, path: str
) -> None:
    async with everything(network, key) as port:
        for process in certificates.NAMES:
            async with network.plain_channel(process, "stock_svc", port) as channel:
                without_token = await outcome(channel, path)
                # A user's token, even an admin's, does not help.
                token = key.sign(a_payload(role="ADMIN"))
                as_admin = await outcome(
                    channel, path, metadata=[("authorization", f"Bearer {token}")]
                )
            is_named = process in POLICIES[path].callers
            expected = "allowed" if is_named else "CALLER_NOT_ALLOWED"
            assert (process, without_token, as_admin) == (process, expected, expected)


async def test_a_refused_certificate_gets_permission_denied(
    network: Network, key: TokenKey
) -> None:
    async with (
        everything(network, key) as port,
        network.plain_channel("payment_svc", "stock_svc", port) as channel,
    ):
        error = await refusal(ask(channel, GET_STOCK))
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    assert reason_of(error) == "CALLER_NOT_ALLOWED"


async def test_a_named_caller_of_a_users_method_needs_no_user(
    network: Network, key: TokenKey
) -> None:
    path = "/boxoffice.payments.v1.PaymentService/RefundPayment"
    async with everything(network, key) as port:
        for process, expected in [("booking_svc", "allowed"), ("stock_svc", "TOKEN_INVALID")]:
            async with network.plain_channel(process, "stock_svc", port) as channel:
                assert await outcome(channel, path) == expected


async def test_a_handshake_requires_a_certificate_of_the_mesh(
    network: Network, key: TokenKey, tmp_path: Path
) -> None:
    strangers = Network(tmp_path).home / "certificates"
    authority = (network.home / "certificates" / "ca.pem").read_bytes()
    without = grpc.ssl_channel_credentials(root_certificates=authority)
    foreign = grpc.ssl_channel_credentials(
        root_certificates=authority,
        private_key=(strangers / "booking_svc.key").read_bytes(),
        certificate_chain=(strangers / "booking_svc.pem").read_bytes(),
    )
    options = [("grpc.ssl_target_name_override", client.server_name("stock_svc"))]
    async with everything(network, key) as port:
        for credentials in (without, foreign):
            target = f"127.0.0.1:{port}"
            async with grpc.aio.secure_channel(target, credentials, options=options) as channel:
                error = await refusal(ask(channel, GET_STOCK, timeout=60))
                assert error.code() is grpc.StatusCode.UNAVAILABLE
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            error = await refusal(ask(channel, GET_STOCK, timeout=60))
            assert error.code() is grpc.StatusCode.UNAVAILABLE
        async with network.plain_channel("booking_svc", "stock_svc", port) as channel:
            assert await outcome(channel, GET_STOCK) == "allowed"


async def test_a_client_refuses_a_server_of_another_name(network: Network, key: TokenKey) -> None:
    async with (
        everything(network, key) as port,
        network.plain_channel("booking_svc", "gateway", port) as channel,
    ):
        error = await refusal(ask(channel, GET_STOCK, timeout=60))
    assert error.code() is grpc.StatusCode.UNAVAILABLE


def test_a_certificate_without_a_spiffe_name_of_the_mesh_is_refused() -> None:
    names = "x509_subject_alternative_name"
    for key, values in (
        (None, ()),
        (names, (b"localhost", b"127.0.0.1")),
        (names, (b"spiffe://elsewhere/booking_svc",)),
        ("x509_common_name", (b"spiffe://boxoffice/booking_svc",)),
    ):
        with pytest.raises(DomainError) as refused:
            identity.process_of(key, values)
        assert refused.value.reason is Reason.CALLER_NOT_ALLOWED


class WhoAmI:
    """Implements GetMe and records the callers."""

    def __init__(self, network: Network, key: TokenKey) -> None:
        self._network = network
        self._key = key
        self.seen: list[Caller] = []

    async def ask(self, process: str, **metadata: str) -> str:
        """The outcome of a call by a process with these headers, with `_` instead of `-`."""
        headers = [(name.replace("_", "-"), value) for name, value in metadata.items()]
        service = a_service(
            standing_in("boxoffice.auth.v1.AccountService", GetMe=self._get_me),
            jwks=self._key.jwks,
        )
        async with (
            self._network.serve("auth_svc", service) as port,
            self._network.plain_channel(process, "auth_svc", port) as channel,
        ):
            return await outcome(channel, GET_ME, metadata=headers)

    async def _get_me(self, request: Any, context: Context) -> Any:
        self.seen.append(caller())
        raise DomainError(Reason.VALIDATION_FAILED, "seen")


@pytest.fixture
def who_am_i(network: Network, key: TokenKey) -> WhoAmI:
    return WhoAmI(network, key)


async def test_the_payload_header_of_the_gateway_is_trusted(who_am_i: WhoAmI) -> None:
    user, session = uuid4(), uuid4()
    payload = encoded(a_payload(sub=str(user), sid=str(session), role="STAFF"))
    assert await who_am_i.ask("gateway", x_jwt_payload=payload) == "allowed"
    assert who_am_i.seen == [Caller("gateway", user, Access.STAFF, session)]


@pytest.mark.parametrize("process", [name for name in certificates.NAMES if name != "gateway"])
async def test_the_payload_header_of_another_process_is_ignored(
    who_am_i: WhoAmI, process: str
) -> None:
    payload = encoded(a_payload(role="ADMIN"))
    assert await who_am_i.ask(process, x_jwt_payload=payload) == "TOKEN_INVALID"
    assert who_am_i.seen == []


async def test_a_forged_payload_in_addition_to_a_valid_token_is_ignored(
    who_am_i: WhoAmI, key: TokenKey
) -> None:
    user, session = uuid4(), uuid4()
    token = key.sign(a_payload(sub=str(user), sid=str(session), role="CUSTOMER"))
    payload = encoded(a_payload(role="ADMIN"))
    assert (
        await who_am_i.ask("operator", authorization=f"Bearer {token}", x_jwt_payload=payload)
        == "allowed"
    )
    assert who_am_i.seen == [Caller("operator", user, Access.CUSTOMER, session)]


async def test_the_gateway_must_forward_the_payload_itself(who_am_i: WhoAmI, key: TokenKey) -> None:
    """A forwarded token without a payload means that the gateway did not verify it."""
    assert await who_am_i.ask("gateway", authorization=f"Bearer {key.sign()}") == "TOKEN_INVALID"


@pytest.mark.parametrize(
    "payload",
    [
        "",
        "%%%",
        encoded("text"),
        encoded([]),
        encoded({}),
        encoded(a_payload(sub=7)),
        encoded(a_payload(sub="mira")),
        encoded(a_payload(sid=None)),
        encoded(a_payload(sid="session")),
        encoded(a_payload(role="OWNER")),
        encoded(a_payload(role=["ADMIN"])),
        base64.urlsafe_b64encode(b"\xff\xfe").decode(),
    ],
)
async def test_a_malformed_payload_is_refused(who_am_i: WhoAmI, payload: str) -> None:
    assert await who_am_i.ask("gateway", x_jwt_payload=payload) == "TOKEN_INVALID"


async def test_a_token_from_a_process_is_verified(who_am_i: WhoAmI, key: TokenKey) -> None:
    user, session = uuid4(), uuid4()
    token = key.sign(a_payload(sub=str(user), sid=str(session), role="ADMIN"))
    assert await who_am_i.ask("operator", authorization=f"bearer {token}") == "allowed"
    assert who_am_i.seen == [Caller("operator", user, Access.ADMIN, session)]


async def test_an_expired_token_has_its_own_reason(who_am_i: WhoAmI, key: TokenKey) -> None:
    token = key.sign(a_payload(exp=int(time.time()) - 60))
    assert await who_am_i.ask("operator", authorization=f"Bearer {token}") == "TOKEN_EXPIRED"
    assert who_am_i.seen == []


def bad_tokens(key: TokenKey) -> dict[str, str]:
    stranger = TokenKey.new()
    hour = int(time.time()) + 3600
    good = key.sign()
    head, body, signature = good.split(".")
    return {
        "algorithm none": unsigned(a_payload()),
        "HMAC with the public key in PEM": signed_by_hmac(key.public_pem, a_payload()),
        "HMAC with the public key's modulus": signed_by_hmac(key.jwk["n"].encode(), a_payload()),
        "another key": stranger.sign(),
        "another key, carried along": stranger.sign(jwk=stranger.jwk),
        "another key by its own id": stranger.sign(kid="strangers"),
        "no key id": key.sign(kid=None),
        "another algorithm of the same key": key.sign(algorithm="PS256"),
        "another audience": key.sign(a_payload(aud="other-api")),
        "several audiences": key.sign(a_payload(aud=["boxoffice-api", "other-api"])),
        "another issuer": key.sign(a_payload(iss="other")),
        "no type": key.sign(typ=None),
        "another type": key.sign(typ="JWT"),
        "a refresh token's type": key.sign(typ="rt+jwt"),
        "issued in an hour": key.sign(a_payload(iat=hour)),
        "valid in an hour": key.sign(a_payload(nbf=hour)),
        **{
            f"no {claim}": key.sign(a_payload(**{claim: None}))
            for claim in ("exp", "iat", "sub", "aud", "iss", "jti", "role", "sid")
        },
        "a subject that is no user": key.sign(a_payload(sub="mira")),
        "a session that is none": key.sign(a_payload(sid="session")),
        "another role": key.sign(a_payload(role="OWNER")),
        "other claims under the signature": f"{head}.{encoded(a_payload(role='ADMIN'))}.{signature}",
        "no signature": f"{head}.{body}.",
        "two parts": f"{head}.{body}",
        "no token": "opaque",
        "a refresh token": "rx2AkaSrYOR3yOxq42OYZbdXJ65DaXKsQ8_JsrzZJ8w",
        "nothing": "",
    }


OF_ANOTHER_TYPE = {"no type", "another type", "a refresh token's type", "a refresh token"}


@pytest.mark.parametrize("kind", bad_tokens(TokenKey.new()))
async def test_an_invalid_token_is_refused(who_am_i: WhoAmI, key: TokenKey, kind: str) -> None:
    token = bad_tokens(key)[kind]
    expected = "TOKEN_WRONG_TYPE" if kind in OF_ANOTHER_TYPE else "TOKEN_INVALID"
    assert await who_am_i.ask("operator", authorization=f"Bearer {token}") == expected
    assert who_am_i.seen == []


@pytest.mark.parametrize(
    "authorization", ["Basic bWlyYTptaXJh", "Bearer", "Bearer ", "", "Token x"]
)
async def test_only_bearer_tokens_are_accepted(who_am_i: WhoAmI, authorization: str) -> None:
    assert await who_am_i.ask("operator", authorization=authorization) == "TOKEN_INVALID"


@pytest.mark.parametrize("get", [Caller.user, Caller.session])
def test_a_caller_without_a_user_has_neither_user_nor_session(
    get: Callable[[Caller], UUID],
) -> None:
    with pytest.raises(DomainError) as refused:
        get(Caller("booking_svc"))
    assert refused.value.reason is Reason.TOKEN_INVALID


def test_the_key_id_of_the_tests_is_published(key: TokenKey) -> None:
    """Control: the invalid tokens above are not refused because of an unknown key."""
    assert key.jwks[KEY_ID].algorithm_name == "RS256"


@pytest.mark.parametrize(
    ("role", "expected"),
    [("CUSTOMER", "STAFF_REQUIRED"), ("STAFF", "allowed"), ("ADMIN", "allowed")],
)
async def test_a_staff_method_is_for_staff(
    network: Network, key: TokenKey, role: str, expected: str
) -> None:
    assert POLICIES[LIST_MOVEMENTS].access is Access.STAFF
    payload = [("x-jwt-payload", encoded(a_payload(role=role)))]
    async with (
        everything(network, key) as port,
        network.plain_channel("gateway", "stock_svc", port) as channel,
    ):
        assert await outcome(channel, LIST_MOVEMENTS, metadata=payload) == expected


@pytest.mark.parametrize("access", [Access.CUSTOMER, Access.STAFF, Access.ADMIN])
@pytest.mark.parametrize("role", [None, Access.CUSTOMER, Access.STAFF, Access.ADMIN])
def test_each_role_includes_those_before_it(access: Access, role: Access | None) -> None:
    rank = [None, Access.CUSTOMER, Access.STAFF, Access.ADMIN]
    method = dataclasses.replace(POLICIES[LIST_MOVEMENTS], access=access)
    user = Caller("gateway", None if role is None else UUID(int=7), role)
    if rank.index(role) >= rank.index(access):
        identity.authorise(user, method)
        return
    with pytest.raises(DomainError) as refused:
        identity.authorise(user, method)
    expected = Reason.ADMIN_REQUIRED if access is Access.ADMIN else Reason.STAFF_REQUIRED
    assert refused.value.reason is (Reason.TOKEN_INVALID if role is None else expected)


def test_users_cannot_call_an_internal_method_through_the_gateway() -> None:
    """Also if the policy names the gateway among the callers."""
    method = dataclasses.replace(POLICIES[GET_STOCK], callers=frozenset({"gateway"}))
    with pytest.raises(DomainError) as refused:
        identity.authorise(Caller("gateway", UUID(int=7), Access.ADMIN), method)
    assert refused.value.reason is Reason.CALLER_NOT_ALLOWED
    # Without a user, as it calls limit_svc.
    identity.authorise(Caller("gateway"), method)


async def test_an_api_key_has_an_id_and_no_session(who_am_i: WhoAmI, key: TokenKey) -> None:
    claims = a_payload(sid=None, api_key=True, role="ADMIN")

    async def jwks() -> jwt.PyJWKSet:
        return key.jwks

    machine = await identity.identify("gateway", {"x-jwt-payload": encoded(claims)}, jwks)
    assert machine == Caller("gateway", UUID(claims["sub"]), Access.ADMIN)
    # GetMe is about the caller's own account.
    asked = await who_am_i.ask("gateway", x_jwt_payload=encoded(claims))
    assert asked == "CALLER_NOT_ALLOWED"
    assert who_am_i.seen == []


async def test_a_method_of_another_service_is_unimplemented(
    network: Network,
) -> None:
    service = a_service(standing_in("boxoffice.stock.v1.StockService"))
    async with (
        network.serve("stock_svc", service) as port,
        network.plain_channel("booking_svc", "stock_svc", port) as channel,
    ):
        error = await refusal(ask(channel, GET_ME))
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_missing_token_returns_a_challenge(network: Network, key: TokenKey) -> None:
    async with (
        everything(network, key) as port,
        network.plain_channel("operator", "stock_svc", port) as channel,
    ):
        error = await refusal(call(channel, GET_ME, empty_request(GET_ME)))
    challenges = [
        value for name, value in error.trailing_metadata() or () if name == "www-authenticate"
    ]
    assert challenges == ['Bearer realm="boxoffice", error="invalid_token"']
