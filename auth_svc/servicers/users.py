"""UserService: accounts as admins see and change them."""

from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import UUID

import grpc
from google.protobuf.empty_pb2 import Empty
from sqlalchemy.ext.asyncio import AsyncConnection

from auth_svc import email_confirmation, erasure, users
from auth_svc.accounts import get_user
from auth_svc.idempotency import IdempotentCalls
from auth_svc.mailing import Mailing
from auth_svc.proto import LINK_SENT, ROLES_FROM, user_to_proto
from boxoffice.auth.v1 import user_pb2, user_service_pb2, user_service_pb2_grpc
from mesh import paging
from mesh.clock import Clock
from mesh.conversions import given, time_to_proto
from mesh.db.database import Database
from mesh.rpc.call import caller

_Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True, kw_only=True)
class UserServicer(user_service_pb2_grpc.UserServiceServicer):
    idempotent: IdempotentCalls
    database: Database
    clock: Clock
    mailing: Mailing
    unusable_hash: str
    access_lifetime: timedelta

    async def ListUsers(
        self, request: user_service_pb2.ListUsersRequest, context: _Context
    ) -> user_service_pb2.ListUsersResponse:
        async with self.database.snapshot() as connection:
            page = await users.list_page(
                connection,
                role=ROLES_FROM.get(request.role),
                is_active=given(request, "is_active"),
                show_deleted=request.show_deleted,
                page_size=paging.page_size(request.page_size),
                page_token=request.page_token,
            )
        return user_service_pb2.ListUsersResponse(
            users=[user_to_proto(user) for user in page.users],
            next_page_token=page.next_page_token,
            total_size=page.total_size,
        )

    async def GetUser(
        self, request: user_service_pb2.GetUserRequest, context: _Context
    ) -> user_pb2.User:
        async with self.database.transaction() as connection:
            return user_to_proto(await get_user(connection, user_id=UUID(request.user_id)))

    async def UpdateUser(
        self, request: user_service_pb2.UpdateUserRequest, context: _Context
    ) -> user_pb2.User:
        async def update(connection: AsyncConnection) -> tuple[UUID, user_pb2.User]:
            user = await users.update_user(
                connection,
                user_id=UUID(request.user_id),
                role=ROLES_FROM.get(request.role),
                is_active=given(request, "is_active"),
                access_lifetime=self.access_lifetime,
                now=self.clock(),
            )
            return user.user_id, user_to_proto(user)

        return await self.idempotent.run_once(caller().user(), request, user_pb2.User, update)

    async def ChangeUserEmail(
        self, request: user_service_pb2.ChangeUserEmailRequest, context: _Context
    ) -> user_service_pb2.ChangeUserEmailResponse:
        async def change(
            connection: AsyncConnection,
        ) -> tuple[UUID, user_service_pb2.ChangeUserEmailResponse]:
            expire_time = await email_confirmation.start_change(
                connection,
                self.mailing,
                user_id=UUID(request.user_id),
                new_email=request.new_email,
                now=self.clock(),
            )
            return UUID(request.user_id), user_service_pb2.ChangeUserEmailResponse(
                message=LINK_SENT, expire_time=time_to_proto(expire_time)
            )

        answer = await self.idempotent.run_once(
            caller().user(), request, user_service_pb2.ChangeUserEmailResponse, change
        )
        self.mailing.wake()
        return answer

    async def DeleteUser(
        self, request: user_service_pb2.DeleteUserRequest, context: _Context
    ) -> Empty:
        async def delete(connection: AsyncConnection) -> tuple[UUID, Empty]:
            user_id = UUID(request.user_id)
            await users.delete_user(
                connection,
                user_id=user_id,
                access_lifetime=self.access_lifetime,
                now=self.clock(),
            )
            return user_id, Empty()

        return await self.idempotent.run_once(caller().user(), request, Empty, delete)

    async def EraseUser(
        self, request: user_service_pb2.EraseUserRequest, context: _Context
    ) -> user_pb2.User:
        async def erase(connection: AsyncConnection) -> tuple[UUID, user_pb2.User]:
            user = await erasure.erase(
                connection,
                user_id=UUID(request.user_id),
                unusable_hash=self.unusable_hash,
                access_lifetime=self.access_lifetime,
                now=self.clock(),
            )
            return user.user_id, user_to_proto(user)

        return await self.idempotent.run_once(caller().user(), request, user_pb2.User, erase)
