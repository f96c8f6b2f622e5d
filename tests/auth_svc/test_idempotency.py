"""Writes with an Idempotency-Key have one effect and one answer, and leak nothing to others."""

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import grpc
import pytest
import sqlalchemy as sa
from google.protobuf import descriptor_pb2

from auth_svc.__main__ import open_service
from auth_svc.settings import Settings
from auth_svc.tables import idempotency_records, password_reset_requests, users
from boxoffice.auth.v1 import auth_service_pb2, user_pb2, user_service_pb2
from boxoffice.auth.v1.auth_service_pb2_grpc import AccountServiceStub, AuthServiceStub
from boxoffice.auth.v1.user_service_pb2_grpc import UserServiceStub
from mesh.db.database import Database
from mesh.rpc.policy import Idempotency
from testing.databases import open_patiently
from testing.network import Network, reason_of, refusal
from tests.architecture.contract import contract, methods, policies
from tests.auth_svc.conftest import ADMIN_SECRET, GOOD_PASSWORD, PEPPER, rows

KEY = ("idempotency-key", "key-1")
NEW_PASSWORD = "Quiet-Harbour-58"


@pytest.fixture
def url(new_database: Callable[[str], str]) -> str:
    return new_database("auth_svc")


@pytest.fixture
async def channels(tmp_path: Path, url: str) -> AsyncIterator[list[grpc.aio.Channel]]:
    """Two processes of auth_svc on one database."""
    settings = Settings(
        home=tmp_path,
        auth_database_url=url,
        password_cost=4,
        password_pepper=PEPPER.decode(),
        admin_registration_secret=ADMIN_SECRET,
    )
    network = Network(tmp_path)
    async with (
        open_service(settings) as first,
        open_service(settings) as second,
        network.serve("auth_svc", first) as first_port,
        network.serve("auth_svc", second) as second_port,
        network.plain_channel("operator", "auth_svc", first_port) as first_channel,
        network.plain_channel("operator", "auth_svc", second_port) as second_channel,
    ):
        yield [first_channel, second_channel]


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    async with open_patiently(url) as opened:
        yield opened


def a_request(**changes: Any) -> auth_service_pb2.RegisterRequest:
    fields = {"email": "mira@example.com", "password": GOOD_PASSWORD, "full_name": "Mira Rao"}
    return auth_service_pb2.RegisterRequest(**(fields | changes))


async def signed_in(
    channel: grpc.aio.Channel, email: str = "mira@example.com"
) -> list[tuple[str, str]]:
    login = auth_service_pb2.LoginRequest(email=email, password=GOOD_PASSWORD)
    answer = await AuthServiceStub(channel).Login(login)
    return [("authorization", f"Bearer {answer.access_token}")]


async def test_a_repeated_sign_up_creates_one_account(
    channels: list[grpc.aio.Channel], database: Database
) -> None:
    first = await AuthServiceStub(channels[0]).Register(a_request(), metadata=[KEY])
    # Another process, and the other spelling of the header.
    repeated = await AuthServiceStub(channels[1]).Register(
        a_request(), metadata=[("x-idempotency-key", KEY[1])]
    )
    assert repeated == first
    assert len(await rows(database, users)) == 1
    without = await refusal(AuthServiceStub(channels[0]).Register(a_request()))
    assert reason_of(without) == "EMAIL_ALREADY_REGISTERED"


async def test_concurrent_sign_ups_with_one_key_create_one_account(
    channels: list[grpc.aio.Channel], database: Database
) -> None:
    stubs = [AuthServiceStub(channel) for channel in channels] * 3
    outcomes = await asyncio.gather(
        *(_outcome(stub.Register(a_request(), metadata=[KEY])) for stub in stubs)
    )
    user_ids = {outcome.user_id for outcome in outcomes if isinstance(outcome, user_pb2.User)}
    refused = {outcome for outcome in outcomes if isinstance(outcome, str)}
    assert len(user_ids) == 1
    assert refused <= {"IDEMPOTENCY_IN_PROGRESS"}
    assert len(await rows(database, users)) == 1


async def _outcome(call: Any) -> Any:
    try:
        return await call
    except grpc.aio.AioRpcError as error:
        return reason_of(error)


async def test_another_request_under_the_key_is_refused(channels: list[grpc.aio.Channel]) -> None:
    auth = AuthServiceStub(channels[0])
    await auth.Register(a_request(), metadata=[KEY])
    error = await refusal(auth.Register(a_request(password=NEW_PASSWORD), metadata=[KEY]))
    assert reason_of(error) == "IDEMPOTENCY_KEY_REUSED"
    # The same key of another owner is a different key.
    await auth.Register(a_request(email="noor@example.com"), metadata=[KEY])


async def test_a_refused_write_can_be_repeated_with_its_key(
    channels: list[grpc.aio.Channel],
) -> None:
    auth = AuthServiceStub(channels[0])
    weak = await refusal(auth.Register(a_request(password="weak"), metadata=[KEY]))
    assert reason_of(weak) == "PASSWORD_TOO_WEAK"
    await auth.Register(a_request(), metadata=[KEY])


async def test_a_password_change_and_a_profile_update_are_idempotent(
    channels: list[grpc.aio.Channel],
) -> None:
    await AuthServiceStub(channels[0]).Register(a_request())
    bearer = await signed_in(channels[0])
    first_stub, second_stub = (AccountServiceStub(channel) for channel in channels)
    change = auth_service_pb2.ChangePasswordRequest(
        current_password=GOOD_PASSWORD, new_password=NEW_PASSWORD
    )
    first = await first_stub.ChangePassword(change, metadata=[*bearer, KEY])
    assert await second_stub.ChangePassword(change, metadata=[*bearer, KEY]) == first
    named = auth_service_pb2.UpdateProfileRequest(full_name="Mira R.")
    once = await first_stub.UpdateProfile(named, metadata=[*bearer, KEY])
    await first_stub.UpdateProfile(
        auth_service_pb2.UpdateProfileRequest(full_name="Mira S."), metadata=bearer
    )
    # The repeated call returns the stored answer and does not change the name again.
    assert await second_stub.UpdateProfile(named, metadata=[*bearer, KEY]) == once
    me = await first_stub.GetMe(auth_service_pb2.GetMeRequest(), metadata=bearer)
    assert me.full_name == "Mira S."


async def test_writes_of_admins_are_idempotent(
    channels: list[grpc.aio.Channel], database: Database
) -> None:
    auth = AuthServiceStub(channels[0])
    user = await auth.Register(a_request(), metadata=[KEY])
    root = auth_service_pb2.RegisterAdminRequest(
        email="root@example.com",
        password=GOOD_PASSWORD,
        full_name="Root",
        admin_secret=ADMIN_SECRET,
    )
    assert await auth.RegisterAdmin(root, metadata=[KEY]) == await auth.RegisterAdmin(
        root, metadata=[KEY]
    )
    bearer = await signed_in(channels[0], "root@example.com")
    first_stub, second_stub = (UserServiceStub(channel) for channel in channels)
    promote = user_service_pb2.UpdateUserRequest(user_id=user.user_id, role=user_pb2.User.STAFF)
    first = await first_stub.UpdateUser(promote, metadata=[*bearer, KEY])
    assert await second_stub.UpdateUser(promote, metadata=[*bearer, KEY]) == first
    erase = user_service_pb2.EraseUserRequest(user_id=user.user_id)
    erased = await first_stub.EraseUser(erase, metadata=[*bearer, KEY])
    assert await second_stub.EraseUser(erase, metadata=[*bearer, KEY]) == erased
    # Stored answers about the erased user are deleted.
    responses = [row.response for row in await rows(database, idempotency_records)]
    assert not any(b"mira@example.com" in response for response in responses)


async def test_a_repeated_sign_out_returns_the_stored_answer(
    channels: list[grpc.aio.Channel],
) -> None:
    await AuthServiceStub(channels[0]).Register(a_request())
    tab, _ = [await signed_in(channels[0]) for _ in range(2)]
    first_stub, second_stub = (AccountServiceStub(channel) for channel in channels)
    everywhere = auth_service_pb2.LogoutRequest()
    first = await first_stub.Logout(everywhere, metadata=[*tab, KEY])
    assert first.tokens_invalidated == 2
    fresh = await signed_in(channels[0])
    assert await second_stub.Logout(everywhere, metadata=[*fresh, KEY]) == first
    # The new session is alive: the repeated call had no effect.
    assert await live_sessions(second_stub, fresh) == 1


async def test_the_key_of_signing_out_one_session_belongs_to_that_session(
    channels: list[grpc.aio.Channel],
) -> None:
    """The same key and request in another session signs out that session."""
    await AuthServiceStub(channels[0]).Register(a_request())
    tab, phone, watch = [await signed_in(channels[0]) for _ in range(3)]
    first_stub, second_stub = (AccountServiceStub(channel) for channel in channels)
    current_only = auth_service_pb2.LogoutRequest(
        scope=auth_service_pb2.LogoutRequest.CURRENT_SESSION
    )
    for bearer in (tab, tab, phone):
        ended = await first_stub.Logout(current_only, metadata=[*bearer, KEY])
        assert ended.tokens_invalidated == 1
    assert await live_sessions(second_stub, watch) == 1


async def test_revoking_a_session_is_idempotent(channels: list[grpc.aio.Channel]) -> None:
    await AuthServiceStub(channels[0]).Register(a_request())
    mine, others = await signed_in(channels[0]), [await signed_in(channels[0]) for _ in range(2)]
    first_stub, second_stub = (AccountServiceStub(channel) for channel in channels)
    assert await live_sessions(first_stub, mine) == 1 + len(others)
    listed = await first_stub.ListSessions(auth_service_pb2.ListSessionsRequest(), metadata=mine)
    newest, second, _ = [session.session_id for session in listed.sessions]
    revoke = auth_service_pb2.RevokeSessionRequest(session_id=newest)
    await first_stub.RevokeSession(revoke, metadata=[*mine, KEY])
    await second_stub.RevokeSession(revoke, metadata=[*mine, KEY])
    another = auth_service_pb2.RevokeSessionRequest(session_id=second)
    refused = await refusal(second_stub.RevokeSession(another, metadata=[*mine, KEY]))
    assert reason_of(refused) == "IDEMPOTENCY_KEY_REUSED"
    assert await live_sessions(first_stub, mine) == 2


async def live_sessions(stub: AccountServiceStub, bearer: list[tuple[str, str]]) -> int:
    listed = await stub.ListSessions(auth_service_pb2.ListSessionsRequest(), metadata=bearer)
    return listed.total_size


async def test_a_password_reset_request_is_idempotent(
    channels: list[grpc.aio.Channel], database: Database
) -> None:
    first_stub, second_stub = (AuthServiceStub(channel) for channel in channels)
    await first_stub.Register(a_request())
    for email in ("mira@example.com", "nobody@example.com"):
        ask = auth_service_pb2.RequestPasswordResetRequest(email=email)
        first = await first_stub.RequestPasswordReset(ask, metadata=[KEY])
        # The background loop deletes the request; the repeated call must not add another one.
        async with database.transaction() as connection:
            await connection.execute(sa.delete(password_reset_requests))
        assert await second_stub.RequestPasswordReset(ask, metadata=[KEY]) == first
        assert await rows(database, password_reset_requests) == []
        await second_stub.RequestPasswordReset(ask)
        assert len(await rows(database, password_reset_requests)) == 1
        async with database.transaction() as connection:
            await connection.execute(sa.delete(password_reset_requests))


# Their answers contain secrets, which are not stored. A repeated refresh returns the same token; a
# repeated sign-in starts another session. Revoking a key again changes nothing.
WITHOUT_A_KEY = {
    "ApiKeyService/CreateApiKey",
    "ApiKeyService/RevokeApiKey",
    "AuthService/Login",
    "AuthService/RefreshToken",
}


def test_every_other_write_supports_a_key() -> None:
    files = contract()
    reads = descriptor_pb2.MethodOptions.NO_SIDE_EFFECTS
    writes = {
        path
        for path, method in methods(files)
        if path.startswith("/boxoffice.auth.v1.") and method.options.idempotency_level != reads
    }
    ignored = {path for path in writes if policies()[path].idempotency is Idempotency.IGNORED}
    assert len(writes) == 19
    assert {path.removeprefix("/boxoffice.auth.v1.") for path in ignored} == WITHOUT_A_KEY


async def test_a_password_cannot_be_guessed_from_a_stored_record(
    channels: list[grpc.aio.Channel], database: Database
) -> None:
    await AuthServiceStub(channels[0]).Register(a_request(), metadata=[KEY])
    async with database.transaction() as connection:
        [fingerprint] = await connection.scalars(sa.select(idempotency_records.c.fingerprint))
    content = a_request().SerializeToString(deterministic=True)
    assert fingerprint != hashlib.sha256(content).digest()
