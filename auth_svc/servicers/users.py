"""UserService: accounts as admins see and change them."""

from datetime import timedelta
from typing import Any
from uuid import UUID

import grpc
from sqlalchemy.ext.asyncio import AsyncConnection

from auth_svc import erasure, users
from auth_svc.accounts import get_user
from auth_svc.idempotency import IdempotentCalls
from auth_svc.proto import ROLES, user_to_proto
from boxoffice.auth.v1 import user_pb2, user_service_pb2, user_service_pb2_grpc
from mesh import paging
from mesh.clock import Clock
from mesh.db.database import Database
from mesh.rpc.call import caller

_Context = grpc.aio.ServicerContext[Any, Any]

# ROLE_UNSPECIFIED has no entry: an omitted role is None.
_ROLES_FROM = {number: role for role, number in ROLES.items()}


class UserServicer(user_service_pb2_grpc.UserServiceServicer):
    def __init__(
        self,
        idempotent: IdempotentCalls,
        database: Database,
        clock: Clock,
        *,
        unusable_hash: str,
        access_lifetime: timedelta,
    ) -> None:
        self._idempotent = idempotent
        self._database = database
        self._clock = clock
        self._unusable_hash = unusable_hash
        self._access_lifetime = access_lifetime

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
            users=[user_to_proto(user) for user in page.users],
            next_page_token=page.next_page_token,
            total_size=page.total_size,
        )

    async def GetUser(
        self, request: user_service_pb2.GetUserRequest, context: _Context
    ) -> user_pb2.User:
        async with self._database.transaction() as connection:
            return user_to_proto(await get_user(connection, user_id=UUID(request.user_id)))

    async def UpdateUser(
        self, request: user_service_pb2.UpdateUserRequest, context: _Context
    ) -> user_pb2.User:
        async def update(connection: AsyncConnection) -> tuple[UUID, user_pb2.User]:
            user = await users.update_user(
                connection,
                user_id=UUID(request.user_id),
                role=_ROLES_FROM.get(request.role),
                is_active=request.is_active if request.HasField("is_active") else None,
                access_lifetime=self._access_lifetime,
                now=self._clock(),
            )
            return user.user_id, user_to_proto(user)

        return await self._idempotent.run_once(caller().user(), request, user_pb2.User, update)

    async def EraseUser(
        self, request: user_service_pb2.EraseUserRequest, context: _Context
    ) -> user_pb2.User:
        async def erase(connection: AsyncConnection) -> tuple[UUID, user_pb2.User]:
            user = await erasure.erase(
                connection,
                user_id=UUID(request.user_id),
                unusable_hash=self._unusable_hash,
                access_lifetime=self._access_lifetime,
                now=self._clock(),
            )
            return user.user_id, user_to_proto(user)

        return await self._idempotent.run_once(caller().user(), request, user_pb2.User, erase)
