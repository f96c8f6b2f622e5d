"""AuthService: sign-up, sign-in, password reset and the published keys."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Protocol, TypeVar
from uuid import UUID

import grpc
from google.protobuf.message import Message
from sqlalchemy.ext.asyncio import AsyncConnection

from auth_svc import email_confirmation, password_reset, passwords
from auth_svc.accounts import InTransaction
from auth_svc.email_change import EmailChange
from auth_svc.idempotency import IdempotentCalls, StoreAnswer
from auth_svc.password_reset import PasswordReset
from auth_svc.passwords import check_confirmation
from auth_svc.phone import to_e164
from auth_svc.proto import LINK_SENT, user_to_proto
from auth_svc.sign_in import SignedIn, SignIn
from auth_svc.sign_in_guard import Source
from auth_svc.sign_up import SignUp
from auth_svc.tokens import PublicKey
from boxoffice.auth.v1 import (
    auth_service_pb2,
    auth_service_pb2_grpc,
    user_pb2,
)
from mesh.clock import Clock
from mesh.conversions import given, time_to_proto
from mesh.db.database import Database
from mesh.errors import FieldViolation
from mesh.ids import new_id
from mesh.rpc import validation
from mesh.rpc.call import caller
from mesh.rpc.identity import ALGORITHM

_Context = grpc.aio.ServicerContext[Any, Any]

_AnswerT = TypeVar("_AnswerT", bound=Message)

_TOKEN_TYPE = "bearer"


class _RequestMail(Protocol):
    async def __call__(self, connection: AsyncConnection, *, email: str, now: datetime) -> None: ...


@dataclass(frozen=True, kw_only=True)
class AuthServicer(auth_service_pb2_grpc.AuthServiceServicer):
    database: Database
    sign_up: SignUp
    sign_in: SignIn
    reset: PasswordReset
    email_change: EmailChange
    idempotent: IdempotentCalls
    reset_requested: Callable[[], None]
    verification_requested: Callable[[], None]
    published: Callable[[], tuple[PublicKey, ...]]
    clock: Clock
    phone_region: str

    async def Register(
        self, request: auth_service_pb2.RegisterRequest, context: _Context
    ) -> user_pb2.User:
        async def register(store: StoreAnswer) -> user_pb2.User:
            user = await self.sign_up.register(
                email=request.email,
                password=request.password,
                full_name=request.full_name,
                phone=to_e164(request.phone, region=self.phone_region),
                now=self.clock(),
                address=caller().address,
                in_transaction=_store_user(store),
            )
            return user_to_proto(user)

        return await self.idempotent.run_steps_once(request.email, request, user_pb2.User, register)

    async def RegisterAdmin(
        self, request: auth_service_pb2.RegisterAdminRequest, context: _Context
    ) -> user_pb2.User:
        async def register(store: StoreAnswer) -> user_pb2.User:
            user = await self.sign_up.register_admin(
                email=request.email,
                password=request.password,
                full_name=request.full_name,
                phone=to_e164(request.phone, region=self.phone_region),
                admin_secret=request.admin_secret,
                now=self.clock(),
                address=caller().address,
                in_transaction=_store_user(store),
            )
            return user_to_proto(user)

        return await self.idempotent.run_steps_once(request.email, request, user_pb2.User, register)

    async def Login(
        self, request: auth_service_pb2.LoginRequest, context: _Context
    ) -> auth_service_pb2.LoginResponse:
        signed_in = await self.sign_in.login(
            email=request.email,
            password=request.password,
            now=self.clock(),
            source=Source(caller().address, request.device_token),
        )
        return auth_service_pb2.LoginResponse(
            **_tokens(signed_in), device_token=signed_in.device_token
        )

    async def RefreshToken(
        self, request: auth_service_pb2.RefreshTokenRequest, context: _Context
    ) -> auth_service_pb2.RefreshTokenResponse:
        signed_in = await self.sign_in.refresh(
            refresh_token=request.refresh_token, now=self.clock()
        )
        return auth_service_pb2.RefreshTokenResponse(**_tokens(signed_in))

    async def RequestPasswordReset(
        self, request: auth_service_pb2.RequestPasswordResetRequest, context: _Context
    ) -> auth_service_pb2.RequestPasswordResetResponse:
        answer = auth_service_pb2.RequestPasswordResetResponse(
            message="if the address has an account, a mail is on its way"
        )
        answer = await self._record(password_reset.request, request.email, request, answer)
        self.reset_requested()
        return answer

    async def ResetPassword(
        self, request: auth_service_pb2.ResetPasswordRequest, context: _Context
    ) -> auth_service_pb2.ResetPasswordResponse:
        check_confirmation(request.new_password, given(request, "confirm_password"))
        now = self.clock()
        answer = auth_service_pb2.ResetPasswordResponse(
            message="password changed; sign in with it", change_time=time_to_proto(now)
        )

        async def reset(store: StoreAnswer) -> auth_service_pb2.ResetPasswordResponse:
            await self.reset.reset(
                token=request.token,
                new_password=request.new_password,
                now=now,
                address=caller().address,
                in_transaction=lambda connection, user: store(connection, user.user_id, answer),
            )
            return answer

        return await self.idempotent.run_steps_once(request.token, request, type(answer), reset)

    async def ChangeEmail(
        self, request: auth_service_pb2.ChangeEmailRequest, context: _Context
    ) -> auth_service_pb2.ChangeEmailResponse:
        now, user_id = self.clock(), caller().user()
        answer = auth_service_pb2.ChangeEmailResponse(
            message=LINK_SENT, expire_time=time_to_proto(now + email_confirmation.LIFETIME)
        )

        async def change(store: StoreAnswer) -> auth_service_pb2.ChangeEmailResponse:
            await self.email_change.start(
                user_id=user_id,
                new_email=request.new_email,
                current_password=request.current_password,
                now=now,
                in_transaction=lambda connection, user: store(connection, user.user_id, answer),
            )
            return answer

        return await self.idempotent.run_steps_once(user_id, request, type(answer), change)

    async def ConfirmEmail(
        self, request: auth_service_pb2.ConfirmEmailRequest, context: _Context
    ) -> auth_service_pb2.ConfirmEmailResponse:
        async def confirm(
            connection: AsyncConnection,
        ) -> tuple[UUID, auth_service_pb2.ConfirmEmailResponse]:
            user = await self.email_change.confirm(
                connection, token=request.token, now=self.clock()
            )
            return user.user_id, auth_service_pb2.ConfirmEmailResponse(
                message="the e-mail address is confirmed",
                email=user.email,
                confirm_time=time_to_proto(user.email_verify_time),
            )

        answer = await self.idempotent.run_once(
            request.token, request, auth_service_pb2.ConfirmEmailResponse, confirm
        )
        self.email_change.mailing.wake()
        return answer

    async def ResendVerification(
        self, request: auth_service_pb2.ResendVerificationRequest, context: _Context
    ) -> auth_service_pb2.ResendVerificationResponse:
        answer = auth_service_pb2.ResendVerificationResponse(
            message="if the address needs verification, a mail is on its way"
        )
        answer = await self._record(
            email_confirmation.request_again, request.email, request, answer
        )
        self.verification_requested()
        return answer

    async def _record(
        self, request_mail: _RequestMail, email: str, request: Message, answer: _AnswerT
    ) -> _AnswerT:
        async def record(connection: AsyncConnection) -> tuple[UUID, _AnswerT]:
            await request_mail(connection, email=email, now=self.clock())
            # A random id: whether the address has an account is not looked up here.
            return new_id(), answer

        return await self.idempotent.run_once(email, request, type(answer), record)

    async def GetJwks(
        self, request: auth_service_pb2.GetJwksRequest, context: _Context
    ) -> auth_service_pb2.JsonWebKeySet:
        return auth_service_pb2.JsonWebKeySet(
            keys=[
                auth_service_pb2.JsonWebKey(
                    kty="RSA", use="sig", alg=ALGORITHM, kid=key.kid, n=key.n, e=key.e
                )
                for key in self.published()
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


def _of_password(
    request: auth_service_pb2.RegisterRequest | auth_service_pb2.RegisterAdminRequest,
) -> tuple[FieldViolation, ...]:
    return passwords.violations(request.password, email=request.email, full_name=request.full_name)


# So that one answer has all faults of a sign-up; sign_up.py refuses a weak password alone.
validation.name_also(auth_service_pb2.RegisterRequest, _of_password)
validation.name_also(auth_service_pb2.RegisterAdminRequest, _of_password)
