"""Health checks of services (grpc.health.v1) and of HTTP endpoints."""

import ssl
from functools import cache
from pathlib import Path

import grpc
import httpx
from grpc_health.v1 import health_pb2, health_pb2_grpc

from launcher.certificates import OPERATOR
from mesh.rpc import client

_SECONDS = 3.0


class ServiceHealth:
    """Checks one process of a service over mutual TLS, on a persistent connection."""

    def __init__(self, service: str, address: str, certificates: Path) -> None:
        self._service = service
        self._address = address
        self._certificates = certificates
        self._channel: grpc.aio.Channel | None = None

    async def serves(self) -> bool:
        """Whether its status is SERVING. Raises grpc.aio.AioRpcError when it does not answer."""
        if self._channel is None:
            self._channel = self._open()
        stub = health_pb2_grpc.HealthStub(self._channel)
        # The type stubs lack the stub's methods.
        answer = await stub.Check(  # type: ignore[attr-defined]
            health_pb2.HealthCheckRequest(), timeout=_SECONDS
        )
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    async def close(self) -> None:
        if self._channel is not None:
            await self._channel.close()

    def _open(self) -> grpc.aio.Channel:
        return grpc.aio.secure_channel(
            self._address,
            client.credentials(self._certificates, OPERATOR),
            options=[
                ("grpc.ssl_target_name_override", client.server_name(self._service)),
                # Reconnects quickly to a starting service.
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.min_reconnect_backoff_ms", 100),
                ("grpc.max_reconnect_backoff_ms", 500),
            ],
        )


async def answers_ok(url: str, trust: ssl.SSLContext | bool = True) -> bool:
    """Whether GET returns 200. Raises httpx.HTTPError when nothing answers."""
    # A new connection each time: an open one would delay the gateway's drain.
    verify = _default_trust() if trust is True else trust
    async with httpx.AsyncClient(timeout=_SECONDS, trust_env=False, verify=verify) as http:
        return (await http.get(url)).status_code == httpx.codes.OK


@cache
def _default_trust() -> ssl.SSLContext:
    """Loading the certificates takes longer than a check."""
    return ssl.create_default_context()
