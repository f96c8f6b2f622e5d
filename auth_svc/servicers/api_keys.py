"""ApiKeyService: the keys of machines."""

from dataclasses import dataclass
from typing import Any
from uuid import UUID

import grpc
from google.protobuf.empty_pb2 import Empty

from auth_svc import api_keys
from auth_svc.proto import ROLES_FROM, api_key_to_proto
from boxoffice.auth.v1 import api_key_pb2, api_key_service_pb2, api_key_service_pb2_grpc
from mesh import paging
from mesh.clock import Clock
from mesh.conversions import time_from_proto
from mesh.db.database import Database
from mesh.rpc.call import caller

_Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True, kw_only=True)
class ApiKeyServicer(api_key_service_pb2_grpc.ApiKeyServiceServicer):
    database: Database
    clock: Clock

    async def CreateApiKey(
        self, request: api_key_service_pb2.CreateApiKeyRequest, context: _Context
    ) -> api_key_pb2.ApiKey:
        async with self.database.transaction() as connection:
            key, text = await api_keys.create(
                connection,
                name=request.name,
                role=ROLES_FROM[request.role],
                expire_time=time_from_proto(request.expire_time, "expire_time"),
                creator_id=caller().user(),
                now=self.clock(),
            )
        return api_key_to_proto(key, text)

    async def ListApiKeys(
        self, request: api_key_service_pb2.ListApiKeysRequest, context: _Context
    ) -> api_key_service_pb2.ListApiKeysResponse:
        async with self.database.snapshot() as connection:
            page = await api_keys.list_page(
                connection,
                page_size=paging.page_size(request.page_size),
                page_token=request.page_token,
            )
        return api_key_service_pb2.ListApiKeysResponse(
            api_keys=[api_key_to_proto(key) for key in page.api_keys],
            next_page_token=page.next_page_token,
            total_size=page.total_size,
        )

    async def RevokeApiKey(
        self, request: api_key_service_pb2.RevokeApiKeyRequest, context: _Context
    ) -> Empty:
        async with self.database.transaction() as connection:
            await api_keys.revoke(connection, api_key_id=UUID(request.api_key_id), now=self.clock())
        return Empty()
