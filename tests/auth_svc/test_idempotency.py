"""Writes with an Idempotency-Key: the same answer, one effect, and nothing told to others."""

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
        open_service(settings) as one,
        open_service(settings) as two,
        network.serve("auth_svc", one) as first,
        network.serve("auth_svc", two) as second,
        network.plain_channel("operator", "auth_svc", first) as here,
        network.plain_channel("operator", "auth_svc", second) as there,
    ):
        yield [here, there]


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


async def test_the_same_sign_up_has_one_account(
    channels: list[grpc.aio.Channel], database: Database
) -> None:
    first = await AuthServiceStub(channels[0]).Register(a_request(), metadata=[KEY])
    # Another process, the other spelling of the header.
    again = await AuthServiceStub(channels[1]).Register(
        a_request(), metadata=[("x-idempotency-key", KEY[1])]
    )
    assert again == first
    assert len(await rows(database, users)) == 1
    without = await refusal(AuthServiceStub(channels[0]).Register(a_request()))
    assert reason_of(without) == "EMAIL_ALREADY_REGISTERED"


async def test_many_at_once_have_one_account(
    channels: list[grpc.aio.Channel], database: Database
) -> None:
    stubs = [AuthServiceStub(channel) for channel in channels] * 3
    outcomes = await asyncio.gather(
        *(_outcome(stub.Register(a_request(), metadata=[KEY])) for stub in stubs)
    )
    made = {one.user_id for one in outcomes if isinstance(one, user_pb2.User)}
    refused = {one for one in outcomes if isinstance(one, str)}
    assert len(made) == 1
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
    # Somebody else's key of the same text is another key.
    await auth.Register(a_request(email="noor@example.com"), metadata=[KEY])


async def test_a_refused_write_is_tried_again(channels: list[grpc.aio.Channel]) -> None:
    auth = AuthServiceStub(channels[0])
    weak = await refusal(auth.Register(a_request(password="weak"), metadata=[KEY]))
    assert reason_of(weak) == "PASSWORD_TOO_WEAK"
    await auth.Register(a_request(), metadata=[KEY])


async def test_a_changed_password_and_profile(channels: list[grpc.aio.Channel]) -> None:
    await AuthServiceStub(channels[0]).Register(a_request())
    bearer = await signed_in(channels[0])
    here, there = (AccountServiceStub(channel) for channel in channels)
    change = auth_service_pb2.ChangePasswordRequest(
        current_password=GOOD_PASSWORD, new_password=NEW_PASSWORD
    )
    first = await here.ChangePassword(change, metadata=[*bearer, KEY])
    assert await there.ChangePassword(change, metadata=[*bearer, KEY]) == first
    named = auth_service_pb2.UpdateProfileRequest(full_name="Mira R.")
    once = await here.UpdateProfile(named, metadata=[*bearer, KEY])
    await here.UpdateProfile(
        auth_service_pb2.UpdateProfileRequest(full_name="Mira S."), metadata=bearer
    )
    # The answer of then, and the name of now stays.
    assert await there.UpdateProfile(named, metadata=[*bearer, KEY]) == once
    me = await here.GetMe(auth_service_pb2.GetMeRequest(), metadata=bearer)
    assert me.full_name == "Mira S."


async def test_admins_writes(channels: list[grpc.aio.Channel], database: Database) -> None:
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
    here, there = (UserServiceStub(channel) for channel in channels)
    promote = user_service_pb2.UpdateUserRequest(user_id=user.user_id, role=user_pb2.User.STAFF)
    first = await here.UpdateUser(promote, metadata=[*bearer, KEY])
    assert await there.UpdateUser(promote, metadata=[*bearer, KEY]) == first
    erase = user_service_pb2.EraseUserRequest(user_id=user.user_id)
    erased = await here.EraseUser(erase, metadata=[*bearer, KEY])
    assert await there.EraseUser(erase, metadata=[*bearer, KEY]) == erased
    # Answers about the erased user are gone with the rest.
    kept = [row.response for row in await rows(database, idempotency_records)]
    assert not any(b"mira@example.com" in response for response in kept)


async def test_signing_out_again_has_the_answer_of_then(
    channels: list[grpc.aio.Channel],
) -> None:
    await AuthServiceStub(channels[0]).Register(a_request())
    tab, _ = [await signed_in(channels[0]) for _ in range(2)]
    here, there = (AccountServiceStub(channel) for channel in channels)
    everywhere = auth_service_pb2.LogoutRequest()
    first = await here.Logout(everywhere, metadata=[*tab, KEY])
    assert first.tokens_invalidated == 2
    fresh = await signed_in(channels[0])
    assert await there.Logout(everywhere, metadata=[*fresh, KEY]) == first
    # The new session goes on: the call was not made a second time.
    assert await live_sessions(there, fresh) == 1


async def test_signing_out_here_is_about_one_session(channels: list[grpc.aio.Channel]) -> None:
    """The same key and request in another session is another sign-out."""
    await AuthServiceStub(channels[0]).Register(a_request())
    tab, phone, watch = [await signed_in(channels[0]) for _ in range(3)]
    here, there = (AccountServiceStub(channel) for channel in channels)
    onsite = auth_service_pb2.LogoutRequest(scope=auth_service_pb2.LogoutRequest.CURRENT_SESSION)
    for bearer in (tab, tab, phone):
        ended = await here.Logout(onsite, metadata=[*bearer, KEY])
        assert ended.tokens_invalidated == 1
    assert await live_sessions(there, watch) == 1


async def test_a_session_ended_twice(channels: list[grpc.aio.Channel]) -> None:
    await AuthServiceStub(channels[0]).Register(a_request())
    mine, others = await signed_in(channels[0]), [await signed_in(channels[0]) for _ in range(2)]
    here, there = (AccountServiceStub(channel) for channel in channels)
    assert await live_sessions(here, mine) == 1 + len(others)
    listed = await here.ListSessions(auth_service_pb2.ListSessionsRequest(), metadata=mine)
    newest, second, _ = [one.session_id for one in listed.sessions]
    revoke = auth_service_pb2.RevokeSessionRequest(session_id=newest)
    await here.RevokeSession(revoke, metadata=[*mine, KEY])
    await there.RevokeSession(revoke, metadata=[*mine, KEY])
    another = auth_service_pb2.RevokeSessionRequest(session_id=second)
    refused = await refusal(there.RevokeSession(another, metadata=[*mine, KEY]))
    assert reason_of(refused) == "IDEMPOTENCY_KEY_REUSED"
    assert await live_sessions(here, mine) == 2


async def live_sessions(stub: AccountServiceStub, bearer: list[tuple[str, str]]) -> int:
    listed = await stub.ListSessions(auth_service_pb2.ListSessionsRequest(), metadata=bearer)
    return listed.total_size


async def test_a_new_password_is_asked_for_once(
    channels: list[grpc.aio.Channel], database: Database
) -> None:
    here, there = (AuthServiceStub(channel) for channel in channels)
    await here.Register(a_request())
    for email in ("mira@example.com", "nobody@example.com"):
        ask = auth_service_pb2.RequestPasswordResetRequest(email=email)
        first = await here.RequestPasswordReset(ask, metadata=[KEY])
        # The loop takes the request; the call's repetition must not leave another.
        async with database.transaction() as connection:
            await connection.execute(sa.delete(password_reset_requests))
        assert await there.RequestPasswordReset(ask, metadata=[KEY]) == first
        assert await rows(database, password_reset_requests) == []
        await there.RequestPasswordReset(ask)
        assert len(await rows(database, password_reset_requests)) == 1
        async with database.transaction() as connection:
            await connection.execute(sa.delete(password_reset_requests))


# Their answers are tokens, which are stored nowhere. A refresh has its own way of being
# repeated; a sign-in that is repeated is one session more.
WITHOUT_A_KEY = {"AuthService/Login", "AuthService/RefreshToken"}


def test_every_other_write_takes_a_key() -> None:
    files = contract()
    reads = descriptor_pb2.MethodOptions.NO_SIDE_EFFECTS
    writes = {
        path
        for path, method in methods(files)
        if path.startswith("/boxoffice.auth.v1.") and method.options.idempotency_level != reads
    }
    ignored = {path for path in writes if policies()[path].idempotency is Idempotency.IGNORED}
    assert len(writes) == 12
    assert {path.removeprefix("/boxoffice.auth.v1.") for path in ignored} == WITHOUT_A_KEY


async def test_no_password_can_be_guessed_from_a_record(
    channels: list[grpc.aio.Channel], database: Database
) -> None:
    await AuthServiceStub(channels[0]).Register(a_request(), metadata=[KEY])
    async with database.transaction() as connection:
        [fingerprint] = await connection.scalars(sa.select(idempotency_records.c.fingerprint))
    content = a_request().SerializeToString(deterministic=True)
    assert fingerprint != hashlib.sha256(content).digest()
