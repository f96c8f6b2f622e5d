"""AuthService: sign-up, sign-in, password reset and the published keys."""

from collections.abc import Callable
from datetime import timedelta
from typing import Any
from uuid import UUID

import grpc
from sqlalchemy.ext.asyncio import AsyncConnection

from auth_svc import password_reset
from auth_svc.accounts import InTransaction
from auth_svc.idempotency import IdempotentCalls, StoreAnswer
from auth_svc.password_reset import PasswordReset
from auth_svc.proto import user_to_proto
from auth_svc.sign_in import SignedIn, SignIn
from auth_svc.sign_up import SignUp
from auth_svc.tokens import PublicKey
from boxoffice.auth.v1 import (
    auth_service_pb2,
    auth_service_pb2_grpc,
    user_pb2,
)
from mesh.clock import Clock
from mesh.conversions import time_to_proto
from mesh.db.database import Database
from mesh.ids import new_id
from mesh.rpc.identity import ALGORITHM

_Context = grpc.aio.ServicerContext[Any, Any]

_TOKEN_TYPE = "bearer"


class AuthServicer(auth_service_pb2_grpc.AuthServiceServicer):
    def __init__(
        self,
        database: Database,
        sign_up: SignUp,
        sign_in: SignIn,
        reset: PasswordReset,
        idempotent: IdempotentCalls,
        *,
        reset_requested: Callable[[], None],
        published: Callable[[], tuple[PublicKey, ...]],
        clock: Clock,
    ) -> None:
        self._database = database
        self._sign_up = sign_up
        self._sign_in = sign_in
        self._reset = reset
        self._idempotent = idempotent
        self._reset_requested = reset_requested
        self._published = published
        self._clock = clock

    async def Register(
        self, request: auth_service_pb2.RegisterRequest, context: _Context
    ) -> user_pb2.User:
        async def register(store: StoreAnswer) -> user_pb2.User:
            user = await self._sign_up.register(
                email=request.email,
                password=request.password,
                full_name=request.full_name,
                phone=request.phone,
                now=self._clock(),
                in_transaction=_store_user(store),
            )
            return user_to_proto(user)

        return await self._idempotent.run_steps_once(
            request.email, request, user_pb2.User, register
        )

    async def RegisterAdmin(
        self, request: auth_service_pb2.RegisterAdminRequest, context: _Context
    ) -> user_pb2.User:
        async def register(store: StoreAnswer) -> user_pb2.User:
            user = await self._sign_up.register_admin(
                email=request.email,
                password=request.password,
                full_name=request.full_name,
                phone=request.phone,
                admin_secret=request.admin_secret,
                now=self._clock(),
                in_transaction=_store_user(store),
            )
            return user_to_proto(user)

        return await self._idempotent.run_steps_once(
            request.email, request, user_pb2.User, register
        )

    async def Login(
        self, request: auth_service_pb2.LoginRequest, context: _Context
    ) -> auth_service_pb2.LoginResponse:
        signed_in = await self._sign_in.login(
            email=request.email, password=request.password, now=self._clock()
        )
        return auth_service_pb2.LoginResponse(**_tokens(signed_in))

    async def RefreshToken(
        self, request: auth_service_pb2.RefreshTokenRequest, context: _Context
    ) -> auth_service_pb2.RefreshTokenResponse:
        signed_in = await self._sign_in.refresh(
            refresh_token=request.refresh_token, now=self._clock()
        )
        return auth_service_pb2.RefreshTokenResponse(**_tokens(signed_in))

    async def RequestPasswordReset(
        self, request: auth_service_pb2.RequestPasswordResetRequest, context: _Context
    ) -> auth_service_pb2.RequestPasswordResetResponse:
        answer = auth_service_pb2.RequestPasswordResetResponse(
            message="if the address has an account, a mail is on its way"
        )

        async def store_request(
            connection: AsyncConnection,
        ) -> tuple[UUID, auth_service_pb2.RequestPasswordResetResponse]:
            await password_reset.request(connection, email=request.email, now=self._clock())
            # A random id: whether the address has an account is not looked up here.
            return new_id(), answer

        stored = await self._idempotent.run_once(
            request.email, request, type(answer), store_request
        )
        self._reset_requested()
        return stored

    async def ResetPassword(
        self, request: auth_service_pb2.ResetPasswordRequest, context: _Context
    ) -> auth_service_pb2.ResetPasswordResponse:
        now = self._clock()
        answer = auth_service_pb2.ResetPasswordResponse(
            message="password changed; sign in with it", change_time=time_to_proto(now)
        )

        async def reset(store: StoreAnswer) -> auth_service_pb2.ResetPasswordResponse:
            await self._reset.reset(
                token=request.token,
                new_password=request.new_password,
                now=now,
                in_transaction=lambda connection, user: store(connection, user.user_id, answer),
            )
            return answer

        return await self._idempotent.run_steps_once(request.token, request, type(answer), reset)

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


def _store_user(store: StoreAnswer) -> InTransaction:
    return lambda connection, user: store(connection, user.user_id, user_to_proto(user))


def _tokens(signed_in: SignedIn) -> dict[str, Any]:
    """The fields of LoginResponse and RefreshTokenResponse."""
    return {
        "access_token": signed_in.access_token,
        "token_type": _TOKEN_TYPE,
        "expires_in": _seconds(signed_in.access_lifetime),
        "refresh_token": signed_in.refresh_token,
        "refresh_expires_in": _seconds(signed_in.refresh_lifetime),
        "user": user_to_proto(signed_in.user),
    }


def _seconds(lifetime: timedelta) -> int:
    return int(lifetime.total_seconds())
