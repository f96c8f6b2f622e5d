"""Envoy's Authorization service: exchanges the API key of a request for an access token."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import grpc

from auth_svc import api_keys, tokens
from auth_svc.api_keys import ApiKey
from auth_svc.tokens import SigningKey
from boxoffice.authorization.v1 import authorization_service_pb2 as pb
from boxoffice.authorization.v1.authorization_service_pb2_grpc import AuthorizationServicer
from mesh.clock import Clock
from mesh.db.database import Database
from mesh.errors import DomainError, Reason

# The key is looked up at each call, so a token need not outlive one. Signing costs a millisecond:
# the calls of a key share a token for half of its lifetime.
_LIFETIME = timedelta(seconds=60)
_REUSE = timedelta(seconds=30)

_HEADER = "authorization"
_SCHEME = "Bearer "
# The gateway turns both into 401, with the reason (envoy/gateway/errors.py).
_DENIED = {Reason.TOKEN_INVALID: 401, Reason.TOKEN_EXPIRED: 410}

_Context = grpc.aio.ServicerContext[Any, Any]


@dataclass(frozen=True, kw_only=True)
class ApiKeyExchange(AuthorizationServicer):
    database: Database
    clock: Clock
    signing_key: Callable[[], SigningKey]
    _issued: dict[UUID, tuple[datetime, str]] = field(default_factory=dict)

    async def Check(self, request: pb.CheckRequest, context: _Context) -> pb.CheckResponse:
        text = request.attributes.request.http.headers.get(_HEADER, "").removeprefix(_SCHEME)
        now = self.clock()
        try:
            key = await api_keys.authenticate(self.database, text=text, now=now)
        except DomainError as error:
            if error.reason not in _DENIED:
                raise
            return _denied(_DENIED[error.reason])
        return _allowed(_SCHEME + self._token(key, now=now))

    def _token(self, key: ApiKey, *, now: datetime) -> str:
        issue_time, token = self._issued.get(key.api_key_id, (None, ""))
        if issue_time is not None and issue_time <= now < issue_time + _REUSE:
            return token
        token = tokens.issue_for_key(
            self.signing_key(),
            api_key_id=key.api_key_id,
            role=key.role,
            lifetime=_LIFETIME,
            now=now,
        )
        self._issued[key.api_key_id] = (now, token)
        return token


def _allowed(authorization: str) -> pb.CheckResponse:
    answer = pb.CheckResponse(status=pb.Status())
    header = answer.ok_response.headers.add()
    header.header.key, header.header.value = _HEADER, authorization
    header.append.value = False
    return answer


def _denied(status: int) -> pb.CheckResponse:
    code: int = grpc.StatusCode.UNAUTHENTICATED.value[0]
    return pb.CheckResponse(
        status=pb.Status(code=code),
        denied_response=pb.DeniedHttpResponse(status=pb.HttpStatus(code=status)),
    )
