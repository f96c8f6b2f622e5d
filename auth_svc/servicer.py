"""Translates between the contract and the domain, and nothing else."""

from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import grpc
from google.protobuf.empty_pb2 import Empty
from google.protobuf.timestamp_pb2 import Timestamp

from auth_svc import profile, sessions, users
from auth_svc.accounts import Accounts, Role, User, get_user
from auth_svc.tokens import PublicKey
from boxoffice.auth.v1 import (
    auth_service_pb2,
    auth_service_pb2_grpc,
    session_pb2,
    user_pb2,
    user_service_pb2,
    user_service_pb2_grpc,
)
from mesh import paging
from mesh.call import caller
from mesh.clock import Clock
from mesh.database import Database
from mesh.identity import ALGORITHM

_Context = grpc.aio.ServicerContext[Any, Any]

_TOKEN_TYPE = "bearer"

_ROLES = {
    Role.CUSTOMER: user_pb2.User.CUSTOMER,
    Role.STAFF: user_pb2.User.STAFF,
    Role.ADMIN: user_pb2.User.ADMIN,
}
# Without UNSPECIFIED: what is left out is None.
_ROLES_FROM = {number: role for role, number in _ROLES.items()}


class AuthServicer(auth_service_pb2_grpc.AuthServiceServicer):
    """Getting an account and a token."""

    def __init__(self, accounts: Accounts, keys: tuple[PublicKey, ...], clock: Clock) -> None:
        self._accounts = accounts
        self._keys = keys
        self._clock = clock

    async def Register(
        self, request: auth_service_pb2.RegisterRequest, context: _Context
    ) -> user_pb2.User:
        user = await self._accounts.register(
            email=request.email,
            password=request.password,
            full_name=request.full_name,
            phone=request.phone,
            now=self._clock(),
        )
        return to_proto(user)

    async def RegisterAdmin(
        self, request: auth_service_pb2.RegisterAdminRequest, context: _Context
    ) -> user_pb2.User:
        user = await self._accounts.register_admin(
            email=request.email,
            password=request.password,
            full_name=request.full_name,
            phone=request.phone,
            admin_secret=request.admin_secret,
            now=self._clock(),
        )
        return to_proto(user)

    async def Login(
        self, request: auth_service_pb2.LoginRequest, context: _Context
    ) -> auth_service_pb2.LoginResponse:
        signed_in = await self._accounts.login(
            email=request.email, password=request.password, now=self._clock()
        )
        return auth_service_pb2.LoginResponse(
            access_token=signed_in.access_token,
            token_type=_TOKEN_TYPE,
            expires_in=_seconds(signed_in.access_lifetime),
            refresh_token=signed_in.refresh_token,
            refresh_expires_in=_seconds(signed_in.refresh_lifetime),
            user=to_proto(signed_in.user),
        )

    async def RefreshToken(
        self, request: auth_service_pb2.RefreshTokenRequest, context: _Context
    ) -> auth_service_pb2.RefreshTokenResponse:
        signed_in = await self._accounts.refresh(
            refresh_token=request.refresh_token, now=self._clock()
        )
        return auth_service_pb2.RefreshTokenResponse(
            access_token=signed_in.access_token,
            token_type=_TOKEN_TYPE,
            expires_in=_seconds(signed_in.access_lifetime),
            refresh_token=signed_in.refresh_token,
            refresh_expires_in=_seconds(signed_in.refresh_lifetime),
            user=to_proto(signed_in.user),
        )

    async def GetJwks(
        self, request: auth_service_pb2.GetJwksRequest, context: _Context
    ) -> auth_service_pb2.JsonWebKeySet:
        return auth_service_pb2.JsonWebKeySet(
            keys=[
                auth_service_pb2.JsonWebKey(
                    kty="RSA", use="sig", alg=ALGORITHM, kid=key.kid, n=key.n, e=key.e
                )
                for key in self._keys
            ]
        )


class AccountServicer(auth_service_pb2_grpc.AccountServiceServicer):
    """Reading and changing one's own account."""

    def __init__(self, accounts: Accounts, database: Database, clock: Clock) -> None:
        self._accounts = accounts
        self._database = database
        self._clock = clock

    async def GetMe(
        self, request: auth_service_pb2.GetMeRequest, context: _Context
    ) -> user_pb2.User:
        return to_proto(await self._accounts.get(caller().user()))

    async def UpdateProfile(
        self, request: auth_service_pb2.UpdateProfileRequest, context: _Context
    ) -> user_pb2.User:
        async with self._database.transaction() as connection:
            user = await profile.update_profile(
                connection,
                user_id=caller().user(),
                full_name=request.full_name if request.HasField("full_name") else None,
                phone=request.phone if request.HasField("phone") else None,
                address=request.address if request.HasField("address") else None,
                now=self._clock(),
            )
        return to_proto(user)

    async def ChangePassword(
        self, request: auth_service_pb2.ChangePasswordRequest, context: _Context
    ) -> auth_service_pb2.ChangePasswordResponse:
        change_time = await self._accounts.change_password(
            user_id=caller().user(),
            session_id=caller().session(),
            current_password=request.current_password,
            new_password=request.new_password,
            now=self._clock(),
        )
        return auth_service_pb2.ChangePasswordResponse(
            message="password changed; other sessions are signed out",
            change_time=_timestamp(change_time),
        )

    async def Logout(
        self, request: auth_service_pb2.LogoutRequest, context: _Context
    ) -> auth_service_pb2.LogoutResponse:
        user_id, now = caller().user(), self._clock()
        async with self._database.transaction() as connection:
            if request.scope == auth_service_pb2.LogoutRequest.CURRENT_SESSION:
                ended = await sessions.end_one(
                    connection, user_id=user_id, session_id=caller().session(), now=now
                )
            else:
                ended = await sessions.end_all(connection, user_id=user_id, now=now)
        return auth_service_pb2.LogoutResponse(message="signed out", tokens_invalidated=ended)

    async def ListSessions(
        self, request: auth_service_pb2.ListSessionsRequest, context: _Context
    ) -> auth_service_pb2.ListSessionsResponse:
        async with self._database.snapshot() as connection:
            page = await sessions.list_page(
                connection,
                user_id=caller().user(),
                page_size=paging.page_size(request.page_size),
                page_token=request.page_token,
                now=self._clock(),
            )
        return auth_service_pb2.ListSessionsResponse(
            sessions=[_session_to(session) for session in page.sessions],
            next_page_token=page.next_page_token,
            total_size=page.total_size,
        )

    async def RevokeSession(
        self, request: auth_service_pb2.RevokeSessionRequest, context: _Context
    ) -> Empty:
        async with self._database.transaction() as connection:
            await sessions.revoke(
                connection,
                user_id=caller().user(),
                session_id=UUID(request.session_id),
                now=self._clock(),
            )
        return Empty()


class UserServicer(user_service_pb2_grpc.UserServiceServicer):
    """Looking after accounts, for admins."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def ListUsers(
        self, request: user_service_pb2.ListUsersRequest, context: _Context
    ) -> user_service_pb2.ListUsersResponse:
        async with self._database.snapshot() as connection:
            page = await users.list_page(
                connection,
                role=_ROLES_FROM.get(request.role),
                is_active=request.is_active if request.HasField("is_active") else None,
                page_size=paging.page_size(request.page_size),
                page_token=request.page_token,
            )
        return user_service_pb2.ListUsersResponse(
            users=[to_proto(user) for user in page.users],
            next_page_token=page.next_page_token,
            total_size=page.total_size,
        )

    async def GetUser(
        self, request: user_service_pb2.GetUserRequest, context: _Context
    ) -> user_pb2.User:
        async with self._database.transaction() as connection:
            return to_proto(await get_user(connection, user_id=UUID(request.user_id)))

    async def UpdateUser(
        self, request: user_service_pb2.UpdateUserRequest, context: _Context
    ) -> user_pb2.User:
        async with self._database.transaction() as connection:
            user = await users.update_user(
                connection,
                user_id=UUID(request.user_id),
                role=_ROLES_FROM.get(request.role),
                is_active=request.is_active if request.HasField("is_active") else None,
                now=self._clock(),
            )
        return to_proto(user)


def to_proto(user: User) -> user_pb2.User:
    return user_pb2.User(
        user_id=str(user.user_id),
        email=user.email,
        full_name=user.full_name,
        phone=user.phone,
        address=user.address,
        role=_ROLES[user.role],
        is_active=user.is_active,
        create_time=_timestamp(user.create_time),
        update_time=_timestamp(user.update_time),
    )


def _session_to(session: sessions.Session) -> session_pb2.Session:
    return session_pb2.Session(
        session_id=str(session.session_id),
        is_current=session.session_id == caller().session_id,
        create_time=_timestamp(session.create_time),
        refresh_time=_timestamp(session.refresh_time),
        expire_time=_timestamp(session.expire_time),
    )


def _seconds(lifetime: timedelta) -> int:
    return int(lifetime.total_seconds())


def _timestamp(time: datetime) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromDatetime(time)
    return timestamp
