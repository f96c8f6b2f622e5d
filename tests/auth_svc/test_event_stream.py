"""The event stream of accounts and sessions, through auth_svc's own server."""

import asyncio
from collections.abc import AsyncIterator, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from auth_svc.__main__ import open_service
from auth_svc.servicers import auth_events
from auth_svc.settings import Settings
from boxoffice.auth.v1 import auth_event_service_pb2 as stream_pb2
from boxoffice.auth.v1 import auth_service_pb2, user_pb2, user_service_pb2
from boxoffice.auth.v1.auth_event_service_pb2_grpc import AuthEventServiceStub
from boxoffice.auth.v1.auth_service_pb2_grpc import AccountServiceStub, AuthServiceStub
from boxoffice.auth.v1.user_service_pb2_grpc import UserServiceStub
from testing.network import Network, reason_of, refusal
from tests.auth_svc.conftest import ADMIN_SECRET, GOOD_PASSWORD, PEPPER


class Mesh:
    """Stubs of auth_svc for an outside client and for another service."""

    def __init__(self, outside: grpc.aio.Channel, service: grpc.aio.Channel) -> None:
        self.auth = AuthServiceStub(outside)
        self.account = AccountServiceStub(outside)
        self.users = UserServiceStub(outside)
        self.events = AuthEventServiceStub(service)
        self.outside_events = AuthEventServiceStub(outside)

    async def sign_in(self, email: str = "mira@example.com") -> Any:
        request = auth_service_pb2.LoginRequest(email=email, password=GOOD_PASSWORD)
        return await self.auth.Login(request)

    async def read(self, count: int, *, after: str = "") -> list[stream_pb2.AuthEvent]:
        events: list[stream_pb2.AuthEvent] = []
        request = stream_pb2.StreamEventsRequest(after_position=after)
        async with asyncio.timeout(60):
            async for batch in self.events.StreamEvents(request):
                events += batch.events
                if len(events) >= count:
                    return events
        raise AssertionError("the stream ended")

    async def is_refused(self, login: Any) -> bool:
        try:
            await self.account.GetMe(auth_service_pb2.GetMeRequest(), metadata=bearer(login))
        except grpc.aio.AioRpcError as error:
            return reason_of(error) == "TOKEN_INVALID"
        return False

    async def wait_refused(self, login: Any) -> None:
        async with asyncio.timeout(60):
            while not await self.is_refused(login):
                await asyncio.sleep(0.01)


@pytest.fixture
async def mesh(tmp_path: Path, new_database: Callable[[str], str]) -> AsyncIterator[Mesh]:
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
        network.plain_channel("operator", "auth_svc", port) as outside,
        network.plain_channel("booking_svc", "auth_svc", port) as inside,
    ):
        assert service.revocations is not None
        loops = [asyncio.ensure_future(loop()) for loop in service.loops]
        loops.append(asyncio.ensure_future(service.revocations.follow()))
        yield Mesh(outside, inside)
        for loop in loops:
            loop.cancel()
        await asyncio.gather(*loops, return_exceptions=True)


def bearer(login: Any) -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {login.access_token}")]


async def register(mesh: Mesh, email: str = "mira@example.com") -> user_pb2.User:
    request = auth_service_pb2.RegisterRequest(
        email=email, password=GOOD_PASSWORD, full_name="Mira Rao"
    )
    return await mesh.auth.Register(request)


async def an_admin(mesh: Mesh) -> Any:
    request = auth_service_pb2.RegisterAdminRequest(
        email="root@example.com",
        password=GOOD_PASSWORD,
        full_name="Root",
        admin_secret=ADMIN_SECRET,
    )
    await mesh.auth.RegisterAdmin(request)
    return await mesh.sign_in("root@example.com")


async def test_new_and_changed_accounts_are_published(mesh: Mesh) -> None:
    user = await register(mesh)
    login = await mesh.sign_in()
    name = auth_service_pb2.UpdateProfileRequest(full_name="Mira R.")
    await mesh.account.UpdateProfile(name, metadata=bearer(login))
    phone = auth_service_pb2.UpdateProfileRequest(phone="+919876543210")
    await mesh.account.UpdateProfile(phone, metadata=bearer(login))
    await register(mesh, "noor@example.com")
    events = await mesh.read(4)
    assert [event.WhichOneof("event") for event in events] == ["user_changed"] * 4
    changes = [event.user_changed for event in events]
    assert [(change.email, change.full_name, change.phone) for change in changes] == [
        ("mira@example.com", "Mira Rao", ""),
        ("mira@example.com", "Mira R.", ""),
        ("mira@example.com", "Mira R.", "+919876543210"),
        ("noor@example.com", "Mira Rao", ""),
    ]
    assert {events[0].user_id, events[0].user_changed.user_id} == {user.user_id}
    resumed = await mesh.read(1, after=events[1].position)
    assert resumed[0].user_id == events[2].user_id


async def test_the_end_of_a_session_ends_its_access_tokens(mesh: Mesh) -> None:
    await register(mesh)
    tab, phone = await mesh.sign_in(), await mesh.sign_in()
    current = auth_service_pb2.LogoutRequest(scope=auth_service_pb2.LogoutRequest.CURRENT_SESSION)
    await mesh.account.Logout(current, metadata=bearer(tab))
    await mesh.wait_refused(tab)
    assert not await mesh.is_refused(phone)
    listed = await mesh.account.ListSessions(
        auth_service_pb2.ListSessionsRequest(), metadata=bearer(phone)
    )
    third = await mesh.sign_in()
    revoke = auth_service_pb2.RevokeSessionRequest(session_id=listed.sessions[0].session_id)
    await mesh.account.RevokeSession(revoke, metadata=bearer(third))
    await mesh.wait_refused(phone)
    assert not await mesh.is_refused(third)


async def test_signing_out_everywhere_does_not_revoke_the_next_token(mesh: Mesh) -> None:
    await register(mesh)
    logins = [await mesh.sign_in() for _ in range(3)]
    await mesh.account.Logout(auth_service_pb2.LogoutRequest(), metadata=bearer(logins[0]))
    # Issued within the same second: its version differs from that of the revoked ones.
    fresh = await mesh.sign_in()
    for login in logins:
        await mesh.wait_refused(login)
    assert not await mesh.is_refused(fresh)


async def test_a_new_password_keeps_the_session_that_changed_it(mesh: Mesh) -> None:
    await register(mesh)
    tab, phone = await mesh.sign_in(), await mesh.sign_in()
    request = auth_service_pb2.ChangePasswordRequest(
        current_password=GOOD_PASSWORD, new_password="Another-Tram-48"
    )
    await mesh.account.ChangePassword(request, metadata=bearer(tab))
    await mesh.wait_refused(phone)
    assert not await mesh.is_refused(tab)


async def test_a_new_role_and_deactivation_revoke_tokens_at_once(mesh: Mesh) -> None:
    user = await register(mesh)
    root, login = await an_admin(mesh), await mesh.sign_in()
    promote = user_service_pb2.UpdateUserRequest(user_id=user.user_id, role=user_pb2.User.STAFF)
    await mesh.users.UpdateUser(promote, metadata=bearer(root))
    await mesh.wait_refused(login)
    renewed = await mesh.auth.RefreshToken(
        auth_service_pb2.RefreshTokenRequest(refresh_token=login.refresh_token)
    )
    assert renewed.user.role == user_pb2.User.STAFF
    assert not await mesh.is_refused(renewed)
    deactivate = user_service_pb2.UpdateUserRequest(user_id=user.user_id, is_active=False)
    await mesh.users.UpdateUser(deactivate, metadata=bearer(root))
    await mesh.wait_refused(renewed)


async def test_revocations_are_streamed_from_the_past_and_as_they_happen(
    mesh: Mesh, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auth_events, "_PULSE", timedelta(0))
    await register(mesh)
    tab, phone = await mesh.sign_in(), await mesh.sign_in()
    current = auth_service_pb2.LogoutRequest(scope=auth_service_pb2.LogoutRequest.CURRENT_SESSION)
    await mesh.account.Logout(current, metadata=bearer(tab))
    stream = mesh.events.StreamRevocations(stream_pb2.StreamRevocationsRequest())
    revocations: list[stream_pb2.Revocation] = []
    pulses = 0
    async with asyncio.timeout(60):
        async for message in stream:
            revocations += message.revocations
            pulses += message.HasField("as_of")
            if pulses == 1 and len(revocations) == 1:
                await mesh.account.Logout(auth_service_pb2.LogoutRequest(), metadata=bearer(phone))
            if pulses and len(revocations) >= 3:
                break
    stream.cancel()
    assert [revocation.WhichOneof("revocation") for revocation in revocations] == [
        "session_revoked",
        # Signing out everywhere ends the session of the token first.
        "session_revoked",
        "access_revoked",
    ]
    assert revocations[2].access_revoked.min_version == 1


async def test_outside_clients_may_not_read_the_streams(mesh: Mesh) -> None:
    for call in (
        mesh.outside_events.StreamEvents(stream_pb2.StreamEventsRequest()),
        mesh.outside_events.StreamRevocations(stream_pb2.StreamRevocationsRequest()),
    ):
        assert reason_of(await refusal(anext(aiter(call)))) == "CALLER_NOT_ALLOWED"
