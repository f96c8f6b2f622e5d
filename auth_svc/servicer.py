"""Translates between the contract and the domain, and nothing else."""

from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import grpc
from google.protobuf.empty_pb2 import Empty
from google.protobuf.timestamp_pb2 import Timestamp

from auth_svc import password_reset, profile, sessions
from auth_svc.accounts import Role, User, get_user
from auth_svc.password_change import PasswordChange
from auth_svc.password_reset import PasswordReset
from auth_svc.repeats import Keep, Repeats
from auth_svc.sign_in import SignIn
from auth_svc.sign_up import SignUp
from auth_svc.tokens import PublicKey
from boxoffice.auth.v1 import (
    auth_service_pb2,
    auth_service_pb2_grpc,
    session_pb2,
    user_pb2,
)
from mesh import paging
from mesh.call import caller
from mesh.clock import Clock
from mesh.database import Database
from mesh.identity import ALGORITHM
from mesh.ids import new_id

_Context = grpc.aio.ServicerContext[Any, Any]

_TOKEN_TYPE = "bearer"

ROLES = {
    Role.CUSTOMER: user_pb2.User.CUSTOMER,
    Role.STAFF: user_pb2.User.STAFF,
    Role.ADMIN: user_pb2.User.ADMIN,
}


class AuthServicer(auth_service_pb2_grpc.AuthServiceServicer):
    """Getting an account and a token."""

    def __init__(
        self,
        database: Database,
        sign_up: SignUp,
        sign_in: SignIn,
        reset: PasswordReset,
        repeats: Repeats,
        *,
        reset_requested: Callable[[], None],
        published: Callable[[], tuple[PublicKey, ...]],
        clock: Clock,
    ) -> None:
        self._database = database
        self._sign_up = sign_up
        self._sign_in = sign_in
        self._reset = reset
        self._repeats = repeats
        self._reset_requested = reset_requested
        self._published = published
        self._clock = clock

    async def Register(
        self, request: auth_service_pb2.RegisterRequest, context: _Context
    ) -> user_pb2.User:
        async def register(keep: Keep) -> user_pb2.User:
            user = await self._sign_up.register(
                email=request.email,
                password=request.password,
                full_name=request.full_name,
                phone=request.phone,
                now=self._clock(),
                besides=lambda connection, made: keep(connection, made.user_id, to_proto(made)),
            )
            return to_proto(user)

        return await self._repeats.once(request.email, request, user_pb2.User, register)

    async def RegisterAdmin(
        self, request: auth_service_pb2.RegisterAdminRequest, context: _Context
    ) -> user_pb2.User:
        async def register(keep: Keep) -> user_pb2.User:
            user = await self._sign_up.register_admin(
                email=request.email,
                password=request.password,
                full_name=request.full_name,
                phone=request.phone,
                admin_secret=request.admin_secret,
                now=self._clock(),
                besides=lambda connection, made: keep(connection, made.user_id, to_proto(made)),
            )
            return to_proto(user)

        return await self._repeats.once(request.email, request, user_pb2.User, register)

    async def Login(
        self, request: auth_service_pb2.LoginRequest, context: _Context
    ) -> auth_service_pb2.LoginResponse:
        signed_in = await self._sign_in.login(
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
        signed_in = await self._sign_in.refresh(
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

    async def RequestPasswordReset(
        self, request: auth_service_pb2.RequestPasswordResetRequest, context: _Context
    ) -> auth_service_pb2.RequestPasswordResetResponse:
        answer = auth_service_pb2.RequestPasswordResetResponse(
            message="if the address has an account, a mail is on its way"
        )

        async def ask(keep: Keep) -> auth_service_pb2.RequestPasswordResetResponse:
            async with self._database.transaction() as connection:
                await password_reset.request(connection, email=request.email, now=self._clock())
                # About nobody: whether the address has an account is not looked up.
                await keep(connection, new_id(), answer)
            self._reset_requested()
            return answer

        return await self._repeats.once(request.email, request, type(answer), ask)

    async def ResetPassword(
        self, request: auth_service_pb2.ResetPasswordRequest, context: _Context
    ) -> auth_service_pb2.ResetPasswordResponse:
        now = self._clock()
        answer = auth_service_pb2.ResetPasswordResponse(
            message="password changed; sign in with it", change_time=timestamp(now)
        )

        async def reset(keep: Keep) -> auth_service_pb2.ResetPasswordResponse:
            await self._reset.reset(
                token=request.token,
                new_password=request.new_password,
                now=now,
                besides=lambda connection, user: keep(connection, user.user_id, answer),
            )
            return answer

        return await self._repeats.once(request.token, request, type(answer), reset)

    async def GetJwks(
        self, request: auth_service_pb2.GetJwksRequest, context: _Context
    ) -> auth_service_pb2.JsonWebKeySet:
        return auth_service_pb2.JsonWebKeySet(
            keys=[
                auth_service_pb2.JsonWebKey(
                    kty="RSA", use="sig", alg=ALGORITHM, kid=key.kid, n=key.n, e=key.e
                )
                for key in self._published()
            ]
        )


class AccountServicer(auth_service_pb2_grpc.AccountServiceServicer):
    """Reading and changing one's own account."""

    def __init__(
        self,
        password_change: PasswordChange,
        repeats: Repeats,
        database: Database,
        clock: Clock,
        *,
        access_lifetime: timedelta,
    ) -> None:
        self._password_change = password_change
        self._repeats = repeats
        self._database = database
        self._clock = clock
        self._access_lifetime = access_lifetime

    async def GetMe(
        self, request: auth_service_pb2.GetMeRequest, context: _Context
    ) -> user_pb2.User:
        async with self._database.reading() as connection:
            return to_proto(await get_user(connection, user_id=caller().user()))

    async def UpdateProfile(
        self, request: auth_service_pb2.UpdateProfileRequest, context: _Context
    ) -> user_pb2.User:
        async def update(keep: Keep) -> user_pb2.User:
            async with self._database.transaction() as connection:
                user = await profile.update_profile(
                    connection,
                    user_id=caller().user(),
                    full_name=request.full_name if request.HasField("full_name") else None,
                    phone=request.phone if request.HasField("phone") else None,
                    address=request.address if request.HasField("address") else None,
                    now=self._clock(),
                )
                answer = to_proto(user)
                await keep(connection, user.user_id, answer)
            return answer

        return await self._repeats.once(caller().user(), request, user_pb2.User, update)

    async def ChangePassword(
        self, request: auth_service_pb2.ChangePasswordRequest, context: _Context
    ) -> auth_service_pb2.ChangePasswordResponse:
        now = self._clock()
        answer = auth_service_pb2.ChangePasswordResponse(
            message="password changed; other sessions are signed out", change_time=timestamp(now)
        )

        async def change(keep: Keep) -> auth_service_pb2.ChangePasswordResponse:
            await self._password_change.change(
                user_id=caller().user(),
                session_id=caller().session(),
                current_password=request.current_password,
                new_password=request.new_password,
                now=now,
                besides=lambda connection, user: keep(connection, user.user_id, answer),
            )
            return answer

        return await self._repeats.once(caller().user(), request, type(answer), change)

    async def Logout(
        self, request: auth_service_pb2.LogoutRequest, context: _Context
    ) -> auth_service_pb2.LogoutResponse:
        user_id, session_id = caller().user(), caller().session()
        is_here = request.scope == auth_service_pb2.LogoutRequest.CURRENT_SESSION

        async def log_out(keep: Keep) -> auth_service_pb2.LogoutResponse:
            lifetime, now = self._access_lifetime, self._clock()
            async with self._database.transaction() as connection:
                if is_here:
                    ended = await sessions.end_one(
                        connection,
                        user_id=user_id,
                        session_id=session_id,
                        access_lifetime=lifetime,
                        now=now,
                    )
                else:
                    ended = await sessions.end_all(
                        connection, user_id=user_id, access_lifetime=lifetime, now=now
                    )
                answer = auth_service_pb2.LogoutResponse(
                    message="signed out", tokens_invalidated=ended
                )
                await keep(connection, user_id, answer)
            return answer

        # "Here" means another thing in another session: its key is its own.
        owner = session_id if is_here else user_id
        return await self._repeats.once(owner, request, auth_service_pb2.LogoutResponse, log_out)

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
        async def revoke(keep: Keep) -> Empty:
            async with self._database.transaction() as connection:
                await sessions.revoke(
                    connection,
                    user_id=caller().user(),
                    session_id=UUID(request.session_id),
                    access_lifetime=self._access_lifetime,
                    now=self._clock(),
                )
                await keep(connection, caller().user(), Empty())
            return Empty()

        return await self._repeats.once(caller().user(), request, Empty, revoke)


def to_proto(user: User) -> user_pb2.User:
    return user_pb2.User(
        user_id=str(user.user_id),
        email=user.email,
        full_name=user.full_name,
        phone=user.phone,
        address=user.address,
        role=ROLES[user.role],
        is_active=user.is_active,
        create_time=timestamp(user.create_time),
        update_time=timestamp(user.update_time),
    )


def _session_to(session: sessions.Session) -> session_pb2.Session:
    return session_pb2.Session(
        session_id=str(session.session_id),
        is_current=session.session_id == caller().session_id,
        create_time=timestamp(session.create_time),
        refresh_time=timestamp(session.refresh_time),
        expire_time=timestamp(session.expire_time),
    )


def _seconds(lifetime: timedelta) -> int:
    return int(lifetime.total_seconds())


def timestamp(time: datetime) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromDatetime(time)
    return timestamp
