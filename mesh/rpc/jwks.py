"""Public keys for verifying bearer tokens, fetched from auth_svc when first needed.

Only calls with a token that bypass the gateway need them, mostly an operator's.
"""

import json
import time

import jwt
from google.protobuf import json_format

from boxoffice.auth.v1 import auth_service_pb2
from boxoffice.auth.v1.auth_service_pb2_grpc import AuthServiceStub

_LIFE_SECONDS = 60.0


class RemoteJwks:
    """A `Jwks` that returns auth_svc's keys, cached for 60 s."""

    def __init__(self, auth: AuthServiceStub) -> None:
        self._auth = auth
        self._keys: jwt.PyJWKSet | None = None
        self._fetched_at = 0.0

    async def __call__(self) -> jwt.PyJWKSet:
        now = time.monotonic()
        if self._keys is None or now - self._fetched_at > _LIFE_SECONDS:
            answer = await self._auth.GetJwks(auth_service_pb2.GetJwksRequest())
            self._keys = jwt.PyJWKSet.from_json(json.dumps(json_format.MessageToDict(answer)))
            self._fetched_at = now
        return self._keys
