"""AccountService: the caller's own account and sessions."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

import grpc
from google.protobuf.empty_pb2 import Empty
from sqlalchemy.ext.asyncio import AsyncConnection

from auth_svc import profile, sessions
from auth_svc.accounts import User, find_users, no_such_user
from auth_svc.idempotency import IdempotentCalls, StoreAnswer
from auth_svc.password_change import PasswordChange
from auth_svc.passwords import check_confirmation
from auth_svc.phone import to_e164
from auth_svc.proto import session_to_proto, user_to_proto
from boxoffice.auth.v1 import (
    auth_service_pb2,
    auth_service_pb2_grpc,
    user_pb2,
)
from mesh import coalescing, paging
from mesh.clock import Clock
from mesh.conversions import given, time_to_proto
from mesh.db.database import Database
from mesh.rpc.call import caller

_Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(kw_only=True)
class AccountServicer(auth_service_pb2_grpc.AccountServiceServicer):
    password_change: PasswordChange
    idempotent: IdempotentCalls
    database: Database
    clock: Clock
    access_lifetime: timedelta
    phone_region: str

    def __post_init__(self) -> None:
        self._users = coalescing.reads("users", self._read_users)

    async def GetMe(
        self, request: auth_service_pb2.GetMeRequest, context: _Context
    ) -> user_pb2.User:
        return user_to_proto(await self._users.submit(caller().user()))

    async def _read_users(self, user_ids: Sequence[UUID]) -> Sequence[User | Exception]:
        async with self.database.reading() as connection:
            users = await find_users(connection, user_ids=set(user_ids))
        return [users.get(user_id) or no_such_user() for user_id in user_ids]

    async def UpdateProfile(
        self, request: auth_service_pb2.UpdateProfileRequest, context: _Context
    ) -> user_pb2.User:
        phone = given(request, "phone")

        async def update(connection: AsyncConnection) -> tuple[UUID, user_pb2.User]:
            user = await profile.update_profile(
                connection,
                user_id=caller().user(),
                full_name=given(request, "full_name"),
                phone=None if phone is None else to_e164(phone, region=self.phone_region),
                address=given(request, "address"),
                now=self.clock(),
            )
            return user.user_id, user_to_proto(user)

        return await self.idempotent.run_once(caller().user(), request, user_pb2.User, update)

    async def ChangePassword(
        self, request: auth_service_pb2.ChangePasswordRequest, context: _Context
    ) -> auth_service_pb2.ChangePasswordResponse:
        check_confirmation(request.new_password, given(request, "confirm_password"))
        now = self.clock()
        answer = auth_service_pb2.ChangePasswordResponse(
            message="password changed; other sessions are signed out",
            change_time=time_to_proto(now),
        )

        async def change(store: StoreAnswer) -> auth_service_pb2.ChangePasswordResponse:
            await self.password_change.change(
                user_id=caller().user(),
                session_id=caller().session(),
                current_password=request.current_password,
                new_password=request.new_password,
                now=now,
                in_transaction=lambda connection, user: store(connection, user.user_id, answer),
            )
            return answer

        return await self.idempotent.run_steps_once(caller().user(), request, type(answer), change)

    async def Logout(
        self, request: auth_service_pb2.LogoutRequest, context: _Context
    ) -> auth_service_pb2.LogoutResponse:
        user_id, session_id = caller().user(), caller().session()
        is_current_only = request.scope == auth_service_pb2.LogoutRequest.CURRENT_SESSION

        async def log_out(
            connection: AsyncConnection,
        ) -> tuple[UUID, auth_service_pb2.LogoutResponse]:
            lifetime, now = self.access_lifetime, self.clock()
            if is_current_only:
                ended = await sessions.end_one(
                    connection,
                    user_id=user_id,
                    session_id=session_id,
                    access_lifetime=lifetime,
                    now=now,
                )
            else:
                ended = await sessions.end_all_from(
                    connection,
                    user_id=user_id,
                    session_id=session_id,
                    access_lifetime=lifetime,
                    now=now,
                )
            return user_id, auth_service_pb2.LogoutResponse(
                message="signed out", tokens_invalidated=ended
            )

        # The same request in another session ends another session: the key belongs to the session.
        owner = session_id if is_current_only else user_id
        return await self.idempotent.run_once(
            owner, request, auth_service_pb2.LogoutResponse, log_out
        )

    async def ListSessions(
        self, request: auth_service_pb2.ListSessionsRequest, context: _Context
    ) -> auth_service_pb2.ListSessionsResponse:
        async with self.database.snapshot() as connection:
            page = await sessions.list_page(
                connection,
                user_id=caller().user(),
                page_size=paging.page_size(request.page_size),
                page_token=request.page_token,
                now=self.clock(),
            )
        return auth_service_pb2.ListSessionsResponse(
            sessions=[session_to_proto(session) for session in page.sessions],
            next_page_token=page.next_page_token,
            total_size=page.total_size,
        )

    async def RevokeSession(
        self, request: auth_service_pb2.RevokeSessionRequest, context: _Context
    ) -> Empty:
        async def revoke(connection: AsyncConnection) -> tuple[UUID, Empty]:
            await sessions.revoke(
                connection,
                user_id=caller().user(),
                session_id=UUID(request.session_id),
                access_lifetime=self.access_lifetime,
                now=self.clock(),
            )
            return caller().user(), Empty()

        return await self.idempotent.run_once(caller().user(), request, Empty, revoke)
