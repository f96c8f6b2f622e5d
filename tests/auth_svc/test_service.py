"""auth_svc through its own server, with mutual TLS and the contract's rules."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import grpc
import jwt
import pytest
from google.protobuf import json_format
from google.rpc import error_details_pb2

from auth_svc.__main__ import open_service
from auth_svc.settings import Settings
from boxoffice.auth.v1 import auth_service_pb2, user_pb2
from boxoffice.auth.v1.auth_service_pb2_grpc import AccountServiceStub, AuthServiceStub
from testing.network import Network, details_of, reason_of, refusal
from tests.auth_svc.conftest import ADMIN_SECRET, GOOD_PASSWORD, PEPPER


@pytest.fixture
async def channel(
    tmp_path: Path, new_database: Callable[[str], str]
) -> AsyncIterator[grpc.aio.Channel]:
    settings = Settings(
        home=tmp_path,
        auth_database_url=new_database("auth_svc"),
        password_cost=4,
        password_pepper=PEPPER.decode(),
        admin_registration_secret=ADMIN_SECRET,
    )
    network = Network(tmp_path)
    async with (
        open_service(settings) as service,
        network.serve("auth_svc", service) as port,
        network.plain_channel("operator", "auth_svc", port) as channel,
    ):
        yield channel


def a_request() -> auth_service_pb2.RegisterRequest:
    return auth_service_pb2.RegisterRequest(
        email="Mira@Example.com", password=GOOD_PASSWORD, full_name="Mira Rao"
    )


async def test_sign_up_sign_in_and_reading_the_own_account(channel: grpc.aio.Channel) -> None:
    auth, account = AuthServiceStub(channel), AccountServiceStub(channel)
    user = await auth.Register(a_request())
    assert (user.email, user.full_name, user.phone) == ("Mira@Example.com", "Mira Rao", "")
    assert user.role == user_pb2.User.CUSTOMER
    assert user.create_time.seconds > 0

    login = auth_service_pb2.LoginRequest(email="mira@example.com", password=GOOD_PASSWORD)
    answer = await auth.Login(login)
    assert answer.user == user
    assert (answer.token_type, answer.expires_in, answer.refresh_expires_in) == (
        "bearer",
        900,
        604_800,
    )
    metadata = [("authorization", f"Bearer {answer.access_token}")]
    assert await account.GetMe(auth_service_pb2.GetMeRequest(), metadata=metadata) == user


async def test_concurrent_callers_read_their_own_accounts(channel: grpc.aio.Channel) -> None:
    auth, account = AuthServiceStub(channel), AccountServiceStub(channel)
    tokens = {}
    for name in ("ada", "bea", "cid"):
        address = f"{name}@example.com"
        await auth.Register(
            auth_service_pb2.RegisterRequest(
                email=address, password=GOOD_PASSWORD, full_name=name.title()
            )
        )
        login = auth_service_pb2.LoginRequest(email=address, password=GOOD_PASSWORD)
        tokens[address] = (await auth.Login(login)).access_token

    async def read(address: str) -> bool:
        metadata = [("authorization", f"Bearer {tokens[address]}")]
        user = await account.GetMe(auth_service_pb2.GetMeRequest(), metadata=metadata)
        return bool(user.email == address)

    assert all(await asyncio.gather(*(read(address) for address in [*tokens] * 20)))


async def test_the_published_keys_verify_a_token(channel: grpc.aio.Channel) -> None:
    auth = AuthServiceStub(channel)
    await auth.Register(a_request())
    answer = await auth.Login(
        auth_service_pb2.LoginRequest(email="mira@example.com", password=GOOD_PASSWORD)
    )
    published = await auth.GetJwks(auth_service_pb2.GetJwksRequest())
    keys = jwt.PyJWKSet.from_json(json.dumps(json_format.MessageToDict(published)))
    kid = jwt.get_unverified_header(answer.access_token)["kid"]
    claims = jwt.decode(
        answer.access_token, keys[kid], algorithms=["RS256"], audience="boxoffice-api"
    )
    assert claims["sub"] == answer.user.user_id
    assert {"d", "p", "q", "dp", "dq", "qi"}.isdisjoint(json_format.MessageToDict(published))


async def test_admin_sign_up_needs_the_right_secret(channel: grpc.aio.Channel) -> None:
    auth = AuthServiceStub(channel)
    request = auth_service_pb2.RegisterAdminRequest(
        email="root@example.com",
        password=GOOD_PASSWORD,
        full_name="Root",
        admin_secret=ADMIN_SECRET + "?",
    )
    error = await refusal(auth.RegisterAdmin(request))
    assert error.code() is grpc.StatusCode.PERMISSION_DENIED
    assert reason_of(error) == "INVALID_ADMIN_SECRET"
    request.admin_secret = ADMIN_SECRET
    assert (await auth.RegisterAdmin(request)).role == user_pb2.User.ADMIN


async def test_every_unmet_password_rule_reaches_the_client(channel: grpc.aio.Channel) -> None:
    request = a_request()
    request.password = "mango"
    error = await refusal(AuthServiceStub(channel).Register(request))
    assert error.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert reason_of(error) == "PASSWORD_TOO_WEAK"
    violations = details_of(error, error_details_pb2.BadRequest).field_violations
    assert [violation.field for violation in violations] == ["password"] * 5


async def test_a_weak_password_is_named_with_the_other_faults(channel: grpc.aio.Channel) -> None:
    request = a_request()
    request.password, request.email = "mango", "mira@localhost"
    error = await refusal(AuthServiceStub(channel).Register(request))
    assert reason_of(error) == "VALIDATION_FAILED"
    violations = details_of(error, error_details_pb2.BadRequest).field_violations
    assert {(violation.field, violation.reason) for violation in violations} >= {
        ("email", "TEXT_EMAIL"),
        ("password", "PASSWORD_LENGTH"),
        ("password", "PASSWORD_DIGIT"),
    }


async def test_all_invalid_fields_are_named_together(channel: grpc.aio.Channel) -> None:
    request = auth_service_pb2.RegisterRequest(
        email="mira\x00@example.com", password="", full_name="M\x00ra", phone="0123"
    )
    error = await refusal(AuthServiceStub(channel).Register(request))
    assert reason_of(error) == "VALIDATION_FAILED"
    violations = details_of(error, error_details_pb2.BadRequest).field_violations
    assert {violation.field for violation in violations} == {
        "email",
        "password",
        "full_name",
        "phone",
    }


async def test_without_a_token_the_own_account_is_not_readable(channel: grpc.aio.Channel) -> None:
    error = await refusal(AccountServiceStub(channel).GetMe(auth_service_pb2.GetMeRequest()))
    assert error.code() is grpc.StatusCode.UNAUTHENTICATED
    assert reason_of(error) == "TOKEN_INVALID"


async def test_an_unknown_address_and_a_wrong_password_get_the_same_status(
    channel: grpc.aio.Channel,
) -> None:
    auth = AuthServiceStub(channel)
    await auth.Register(a_request())
    answers = []
    for email in ("mira@example.com", "nobody@example.com"):
        request = auth_service_pb2.LoginRequest(email=email, password="wrong")
        error = await refusal(auth.Login(request))
        answers.append((error.code(), error.details(), tuple(error.trailing_metadata() or ())))
    assert answers[0] == answers[1]
    assert answers[0][0] is grpc.StatusCode.UNAUTHENTICATED
