"""Whom a service believes: certificates, the gateway's header, tokens and roles."""

import base64
import dataclasses
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import grpc
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
INTERNAL = [path for path, one in POLICIES.items() if one.access is Access.INTERNAL]
NAMED = [path for path, one in POLICIES.items() if one.callers]

GET_STOCK = "/boxoffice.stock.v1.StockService/GetStock"
GET_ME = "/boxoffice.auth.v1.AccountService/GetMe"
LIST_MOVEMENTS = "/boxoffice.stock.v1.StockService/ListMovements"


@asynccontextmanager
async def everything(network: Network, key: TokenKey) -> AsyncIterator[int]:
    """One server with every service of the contract, that answers emptily."""
    service = a_service(*(standing_in(name) for name in contract_services()), jwks=key.jwks)
    async with network.serve("stock_svc", service) as port:
        yield port


async def ask(channel: grpc.aio.Channel, path: str, **options: Any) -> None:
    """Calls a method with an empty request and reads its answer to the end."""
    if not POLICIES[path].server_streaming:
        await call(channel, path, empty_request(path), **options)
        return
    stub: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(path)
    async for _ in stub(b"", **options):
        pass


async def outcome(channel: grpc.aio.Channel, path: str, **options: Any) -> str:
    """`let in`, or the reason of the refusal. An empty request breaks rules only once inside."""
    try:
        await ask(channel, path, **options)
    except grpc.aio.AioRpcError as error:
        if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
            return "let in"
        return reason_of(error) or error.code().name
    return "let in"


def test_the_contract_has_internal_methods() -> None:
    """The two tests below run over these lists: they must not be empty by mistake."""
    assert GET_STOCK in INTERNAL
    assert len(INTERNAL) >= 8
    assert set(NAMED) > set(INTERNAL)


@pytest.mark.parametrize("path", INTERNAL)
async def test_an_internal_method_is_for_the_named_services_only(
    network: Network, key: TokenKey, path: str
) -> None:
    async with everything(network, key) as port:
        for process in certificates.NAMES:
            async with network.plain_channel(process, "stock_svc", port) as channel:
                found = await outcome(channel, path)
                # A user's token, even an admin's, opens no internal method.
                token = key.sign(a_payload(role="ADMIN"))
                as_admin = await outcome(
                    channel, path, metadata=[("authorization", f"Bearer {token}")]
                )
            is_named = process in POLICIES[path].callers
            expected = "let in" if is_named else "CALLER_NOT_ALLOWED"
            assert (process, found, as_admin) == (process, expected, expected)


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


async def test_a_service_that_a_users_method_names_needs_no_user(
    network: Network, key: TokenKey
) -> None:
    path = "/boxoffice.payments.v1.PaymentService/RefundPayment"
    async with everything(network, key) as port:
        for process, expected in [("booking_svc", "let in"), ("stock_svc", "TOKEN_INVALID")]:
            async with network.plain_channel(process, "stock_svc", port) as channel:
                assert await outcome(channel, path) == expected


async def test_no_handshake_without_a_certificate_of_the_mesh(
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
                error = await refusal(ask(channel, GET_STOCK, timeout=10))
                assert error.code() is grpc.StatusCode.UNAVAILABLE
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            error = await refusal(ask(channel, GET_STOCK, timeout=10))
            assert error.code() is grpc.StatusCode.UNAVAILABLE
        async with network.plain_channel("booking_svc", "stock_svc", port) as channel:
            assert await outcome(channel, GET_STOCK) == "let in"


async def test_a_client_refuses_a_server_of_another_name(network: Network, key: TokenKey) -> None:
    async with (
        everything(network, key) as port,
        network.plain_channel("booking_svc", "gateway", port) as channel,
    ):
        error = await refusal(ask(channel, GET_STOCK, timeout=10))
    assert error.code() is grpc.StatusCode.UNAVAILABLE


def test_a_certificate_without_a_name_of_the_mesh_is_nobody() -> None:
    for names in ([], [b"localhost", b"127.0.0.1"], [b"spiffe://elsewhere/booking_svc"]):
        with pytest.raises(DomainError) as refused:
            identity.process_of({"x509_subject_alternative_name": names})
        assert refused.value.reason is Reason.CALLER_NOT_ALLOWED


class WhoAmI:
    """Stands in for GetMe and notes who called."""

    def __init__(self, network: Network, key: TokenKey) -> None:
        self._network = network
        self._key = key
        self.seen: list[Caller] = []

    async def ask(self, process: str, **metadata: str) -> str:
        """The outcome of a call by a process with these headers, `_` for `-`."""
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


async def test_the_gateways_word_on_the_user_is_believed(who_am_i: WhoAmI) -> None:
    user, session = uuid4(), uuid4()
    payload = encoded(a_payload(sub=str(user), sid=str(session), role="STAFF"))
    assert await who_am_i.ask("gateway", x_jwt_payload=payload) == "let in"
    assert who_am_i.seen == [Caller("gateway", user, Access.STAFF, session)]


@pytest.mark.parametrize("process", [name for name in certificates.NAMES if name != "gateway"])
async def test_nobody_elses_word_is(who_am_i: WhoAmI, process: str) -> None:
    payload = encoded(a_payload(role="ADMIN"))
    assert await who_am_i.ask(process, x_jwt_payload=payload) == "TOKEN_INVALID"
    assert who_am_i.seen == []


async def test_a_forged_payload_beside_a_real_token_changes_nothing(
    who_am_i: WhoAmI, key: TokenKey
) -> None:
    user, session = uuid4(), uuid4()
    token = key.sign(a_payload(sub=str(user), sid=str(session), role="CUSTOMER"))
    payload = encoded(a_payload(role="ADMIN"))
    assert (
        await who_am_i.ask("operator", authorization=f"Bearer {token}", x_jwt_payload=payload)
        == "let in"
    )
    assert who_am_i.seen == [Caller("operator", user, Access.CUSTOMER, session)]


async def test_the_gateway_must_forward_the_payload_itself(who_am_i: WhoAmI, key: TokenKey) -> None:
    """It verified nothing if it forwards only the token: its JWT rule for the route is missing."""
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
async def test_a_malformed_payload_is_no_user(who_am_i: WhoAmI, payload: str) -> None:
    assert await who_am_i.ask("gateway", x_jwt_payload=payload) == "TOKEN_INVALID"


async def test_a_token_from_a_process_is_verified(who_am_i: WhoAmI, key: TokenKey) -> None:
    user, session = uuid4(), uuid4()
    token = key.sign(a_payload(sub=str(user), sid=str(session), role="ADMIN"))
    assert await who_am_i.ask("operator", authorization=f"bearer {token}") == "let in"
    assert who_am_i.seen == [Caller("operator", user, Access.ADMIN, session)]


async def test_an_expired_token_says_so(who_am_i: WhoAmI, key: TokenKey) -> None:
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
async def test_a_token_that_does_not_hold(who_am_i: WhoAmI, key: TokenKey, kind: str) -> None:
    token = bad_tokens(key)[kind]
    expected = "TOKEN_WRONG_TYPE" if kind in OF_ANOTHER_TYPE else "TOKEN_INVALID"
    assert await who_am_i.ask("operator", authorization=f"Bearer {token}") == expected
    assert who_am_i.seen == []


@pytest.mark.parametrize(
    "authorization", ["Basic bWlyYTptaXJh", "Bearer", "Bearer ", "", "Token x"]
)
async def test_only_bearer_tokens_are_read(who_am_i: WhoAmI, authorization: str) -> None:
    assert await who_am_i.ask("operator", authorization=authorization) == "TOKEN_INVALID"


@pytest.mark.parametrize("ask", [Caller.user, Caller.session])
def test_who_needs_a_user_says_so_to_a_service(ask: Callable[[Caller], UUID]) -> None:
    with pytest.raises(DomainError) as refused:
        ask(Caller("booking_svc"))
    assert refused.value.reason is Reason.TOKEN_INVALID


def test_the_key_id_of_the_tests_is_published(key: TokenKey) -> None:
    """Control: the bad tokens above fail for their own reason, not for an unknown key."""
    assert key.jwks[KEY_ID].algorithm_name == "RS256"


@pytest.mark.parametrize(
    ("role", "expected"),
    [("CUSTOMER", "STAFF_REQUIRED"), ("STAFF", "let in"), ("ADMIN", "let in")],
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
    someone = Caller("gateway", None if role is None else UUID(int=7), role)
    if rank.index(role) >= rank.index(access):
        identity.authorise(someone, method)
        return
    with pytest.raises(DomainError) as refused:
        identity.authorise(someone, method)
    wanted = Reason.ADMIN_REQUIRED if access is Access.ADMIN else Reason.STAFF_REQUIRED
    assert refused.value.reason is (Reason.TOKEN_INVALID if role is None else wanted)


def test_the_gateway_gets_no_further_than_its_user() -> None:
    """Also when a policy names it among the callers, as GetJwks does."""
    named = dataclasses.replace(POLICIES[GET_STOCK], callers=frozenset({"gateway"}))
    with pytest.raises(DomainError) as refused:
        identity.authorise(Caller("gateway", UUID(int=7), Access.ADMIN), named)
    assert refused.value.reason is Reason.CALLER_NOT_ALLOWED
    # For itself, as it asks limit_svc.
    identity.authorise(Caller("gateway"), named)


async def test_a_method_that_the_process_does_not_serve_is_unimplemented(
    network: Network,
) -> None:
    service = a_service(standing_in("boxoffice.stock.v1.StockService"))
    async with (
        network.serve("stock_svc", service) as port,
        network.plain_channel("booking_svc", "stock_svc", port) as channel,
    ):
        error = await refusal(ask(channel, GET_ME))
    assert error.code() is grpc.StatusCode.UNIMPLEMENTED


async def test_a_refusal_says_how_to_sign_in(network: Network, key: TokenKey) -> None:
    async with (
        everything(network, key) as port,
        network.plain_channel("operator", "stock_svc", port) as channel,
    ):
        error = await refusal(call(channel, GET_ME, empty_request(GET_ME)))
    challenges = [
        value for name, value in error.trailing_metadata() or () if name == "www-authenticate"
    ]
    assert challenges == ['Bearer realm="boxoffice", error="invalid_token"']
