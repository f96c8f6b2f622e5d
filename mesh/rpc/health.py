"""HealthService: calls the standard health service of every service and combines the states.

Every service serves it, so that the gateway gets an answer while any of them runs.
"""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from boxoffice.health.v1 import health_service_pb2, health_service_pb2_grpc
from mesh.errors import DomainError, Reason
from mesh.rpc.client import open_channel
from mesh.settings import SERVICES, MeshSettings

DATABASE = "database"
"""The name under which grpc.health.v1 reports whether the service reaches its database."""

# Below the methods' deadline, so that the states of the others are still answered.
_TIMEOUT_SECONDS = 2.0
_REDIS_TIMEOUT_SECONDS = 0.5
_SERVING = "SERVING"
_UNREACHABLE = "UNREACHABLE"


@asynccontextmanager
async def open_health(settings: MeshSettings, process: str) -> AsyncIterator["HealthServicer"]:
    """The HealthServicer of `process`, with channels to all services and its own client of Redis."""
    async with AsyncExitStack() as stack:
        services: dict[str, health_pb2_grpc.HealthStub] = {}
        for service in SERVICES:
            channel = open_channel(settings, process=process, service=service, services=())
            services[service] = health_pb2_grpc.HealthStub(await stack.enter_async_context(channel))
        if settings.redis_url is None:
            yield HealthServicer(services, _no_redis)
            return
        # Here, because it imports packages for traces.
        from redis.asyncio import from_url
        from redis.exceptions import RedisError

        client = from_url(
            settings.redis_url.get_secret_value(),
            socket_timeout=_REDIS_TIMEOUT_SECONDS,
            socket_connect_timeout=_REDIS_TIMEOUT_SECONDS,
        )
        stack.push_async_callback(client.aclose)

        async def ping() -> None:
            try:
                await client.ping()
            except RedisError as error:
                raise ConnectionError(str(error)) from error

        yield HealthServicer(services, ping)


class HealthServicer(health_service_pb2_grpc.HealthServiceServicer):
    """`services`: health stubs by service name. `ping_cache` raises if Redis does not answer."""

    def __init__(
        self,
        services: Mapping[str, health_pb2_grpc.HealthStub],
        ping_cache: Callable[[], Awaitable[None]],
    ) -> None:
        self._services = services
        self._ping_cache = ping_cache

    async def GetHealth(
        self, request: health_service_pb2.GetHealthRequest, context: Any
    ) -> health_service_pb2.Health:
        return _health(await self._states(""))

    async def GetDatabaseHealth(
        self, request: health_service_pb2.GetDatabaseHealthRequest, context: Any
    ) -> health_service_pb2.Health:
        return _health(await self._states(DATABASE))

    async def GetCacheHealth(
        self, request: health_service_pb2.GetCacheHealthRequest, context: Any
    ) -> health_service_pb2.Health:
        try:
            async with asyncio.timeout(_TIMEOUT_SECONDS):
                await self._ping_cache()
            state = _SERVING
        except (OSError, TimeoutError):
            state = _UNREACHABLE
        return _health({"redis": state})

    async def _states(self, part: str) -> dict[str, str]:
        states = await asyncio.gather(*(_state(stub, part) for stub in self._services.values()))
        return dict(zip(self._services, states, strict=True))


async def _state(stub: health_pb2_grpc.HealthStub, part: str) -> str:
    try:
        # Waits for a connection, which takes longer than the channel's backoff on a busy machine.
        response = await stub.Check(  # type: ignore[attr-defined]
            health_pb2.HealthCheckRequest(service=part),
            timeout=_TIMEOUT_SECONDS,
            wait_for_ready=True,
        )
    except (aio.AioRpcError, DomainError):
        return _UNREACHABLE
    return health_pb2.HealthCheckResponse.ServingStatus.Name(response.status)


def _health(states: dict[str, str]) -> health_service_pb2.Health:
    if any(state != _SERVING for state in states.values()):
        listed = ", ".join(f"{name} is {state}" for name, state in states.items())
        metadata: dict[str, Any] = dict(states)
        raise DomainError(Reason.DEPENDENCY_UNAVAILABLE, f"degraded: {listed}", **metadata)
    return health_service_pb2.Health(status="healthy", services=states)


async def _no_redis() -> None:
    raise OSError("BOXOFFICE_REDIS_URL is not set")
