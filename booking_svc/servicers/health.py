"""HealthService: calls the standard health service of every service and combines the states."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from redis.exceptions import RedisError

from boxoffice.health.v1 import health_service_pb2, health_service_pb2_grpc
from mesh.errors import DomainError, Reason
from mesh.rpc.server import DATABASE

_TIMEOUT_SECONDS = 2.0
_SERVING = "SERVING"
_UNREACHABLE = "UNREACHABLE"


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
        except (OSError, TimeoutError, RedisError):
            state = _UNREACHABLE
        return _health({"redis": state})

    async def _states(self, part: str) -> dict[str, str]:
        states = await asyncio.gather(*(_state(stub, part) for stub in self._services.values()))
        return dict(zip(self._services, states, strict=True))


async def _state(stub: health_pb2_grpc.HealthStub, part: str) -> str:
    try:
        response = await stub.Check(  # type: ignore[attr-defined]
            health_pb2.HealthCheckRequest(service=part), timeout=_TIMEOUT_SECONDS
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
