"""Health checks of services (grpc.health.v1) and of HTTP endpoints."""

import ssl
from pathlib import Path

import grpc
import httpx
from grpc_health.v1 import health_pb2, health_pb2_grpc

from launcher.certificates import OPERATOR

_SECONDS = 1.5


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
        credentials = grpc.ssl_channel_credentials(
            root_certificates=(self._certificates / "ca.pem").read_bytes(),
            private_key=(self._certificates / f"{OPERATOR}.key").read_bytes(),
            certificate_chain=(self._certificates / f"{OPERATOR}.pem").read_bytes(),
        )
        return grpc.aio.secure_channel(
            self._address,
            credentials,
            options=[
                ("grpc.ssl_target_name_override", self._service.replace("_", "-")),
                # Reconnects quickly to a starting service.
                ("grpc.initial_reconnect_backoff_ms", 100),
                ("grpc.min_reconnect_backoff_ms", 100),
                ("grpc.max_reconnect_backoff_ms", 500),
            ],
        )


async def answers_ok(url: str, trust: ssl.SSLContext | bool = True) -> bool:
    """Whether GET returns 200. Raises httpx.HTTPError when nothing answers."""
    # A new connection each time: an open one would delay the gateway's drain.
    async with httpx.AsyncClient(timeout=_SECONDS, trust_env=False, verify=trust) as client:
        return (await client.get(url)).status_code == httpx.codes.OK
