"""Public keys that verify bearer tokens, fetched from auth_svc when first needed.

Only calls that come around the gateway with a token need them: an operator's, mostly.
"""

import json
import time

import jwt
from google.protobuf import json_format

from boxoffice.auth.v1 import auth_service_pb2
from boxoffice.auth.v1.auth_service_pb2_grpc import AuthServiceStub

_LIFE_SECONDS = 60.0


class RemoteJwks:
    """Callable that returns auth_svc's keys, at most a minute old."""

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
