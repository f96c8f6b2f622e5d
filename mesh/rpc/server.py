"""Starts, serves and stops a service. Its __main__ defines servicers, loops and resources."""

import argparse
import asyncio
import gc
import logging
import signal
import socket
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

import grpc
import uvloop
from google.protobuf.descriptor import ServiceDescriptor
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from boxoffice.health.v1 import health_service_pb2, health_service_pb2_grpc
from mesh import paging, tasks
from mesh.observability import logs, reporting, tracing
from mesh.observability.metrics import Listener
from mesh.observability.probes import Heartbeat, Readiness
from mesh.rpc import certificates, freshness, policy
from mesh.rpc.health import DATABASE, HealthServicer, open_health
from mesh.rpc.identity import Jwks
from mesh.rpc.interceptor import Interceptor
from mesh.rpc.revocations import Revocations
from mesh.settings import LIMIT_SERVICE, SERVICES, MeshSettings

_log = logging.getLogger(__name__)

_SettingsT = TypeVar("_SettingsT", bound=MeshSettings)

_HEALTH_INTERVAL_SECONDS = 3.0
# After a failed check: three make the process not ready, two good ones make it ready again.
_FAILED_HEALTH_INTERVAL_SECONDS = 1.0
_HEALTH_TIMEOUT_SECONDS = 1.0

_OPTIONS: list[tuple[str, Any]] = [
    # For the servers of one process. `Servers` refuses a port that another process has.
    ("grpc.so_reuseport", 1),
    ("grpc.max_concurrent_streams", 1024),
    # Thousands of watching clients reconnect at once when a process restarts. Beyond the default
    # of 1,000 pending calls, the runtime cancels calls at random.
    ("grpc.server.max_pending_requests", 20_000),
    ("grpc.server.max_pending_requests_hard_limit", 40_000),
    ("grpc.max_receive_message_length", 16 * 1024 * 1024),
    # The gateway accepts headers of 32 KiB and sends the path twice. Above the first limit calls
    # fail at random, with a message that lists all headers; above the second always.
    ("grpc.max_metadata_size", 80 * 1024),
    ("grpc.absolute_max_metadata_size", 96 * 1024),
    ("grpc.max_connection_age_ms", 300_000),
    ("grpc.max_connection_age_grace_ms", 30_000),
    ("grpc.keepalive_time_ms", 60_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_ping_interval_without_data_ms", 20_000),
]


# The defaults collect once per 5 calls: a call leaves some hundred objects until it ends.
_GC_THRESHOLDS = (10_000, 20, 20)

# A grpc.aio server accepts one call every few turns of the event loop. With several of them a process
# accepts as many side by side; the kernel divides the connections among them.
_SERVERS = 4


@dataclass(frozen=True, slots=True)
class Servicer:
    """A servicer with the generated function that registers it and its service's descriptor."""

    implementation: Any
    register: Callable[[Any, Any], None]
    descriptor: ServiceDescriptor
    development_only: bool = False


@dataclass(frozen=True, slots=True)
class Service:
    """What a service's process runs when its resources are open.

    `loops` run until the process stops. `ping_database` raises when the database is unavailable.
    Without `revocations` tokens are valid until they expire.
    """

    servicers: Sequence[Servicer]
    jwks: Jwks
    ping_database: Callable[[], Awaitable[None]]
    loops: Sequence[Callable[[], Awaitable[None]]] = field(default=())
    revocations: Revocations | None = None


def run(
    name: str,
    settings_type: type[_SettingsT],
    open_service: Callable[[_SettingsT], AbstractAsyncContextManager[Service]],
) -> None:
    """Runs a service's process until SIGTERM or SIGINT."""
    try:
        freshness.check()
        settings = settings_type()
        for field_name in (*settings.needs(), *_shared_secrets(name, settings)):
            settings.required(field_name)
    except (ValueError, freshness.StaleError) as error:
        raise SystemExit(f"{name} cannot start: {error}") from None
    arguments = argparse.ArgumentParser(prog=name, description=f"Runs {name}.")
    arguments.add_argument("--replica", type=int, default=0, help="number of this process, from 0")
    replica: int = arguments.parse_args().replica
    logs.configure(name, settings.log_level, replica=replica)
    reporting.configure(name, settings)
    if settings.page_token_secret is not None:
        paging.sign_with(settings.page_token_secret.get_secret_value())
    tracing.configure(name, settings, replica=replica)
    try:
        uvloop.run(_serve(name, settings, replica, partial(open_service, settings)))
    finally:
        tracing.shutdown()
        reporting.shutdown()


def _shared_secrets(name: str, settings: MeshSettings) -> tuple[str, ...]:
    """Secrets required outside of development: replicas with random ones would reject each other's
    page tokens."""
    return () if settings.is_development or name == LIMIT_SERVICE else ("page_token_secret",)


async def _serve(
    name: str,
    settings: MeshSettings,
    replica: int,
    open_service: Callable[[], AbstractAsyncContextManager[Service]],
) -> None:
    stopping = asyncio.Event()
    for signum in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(signum, stopping.set)
    heartbeat, readiness = Heartbeat(), Readiness()
    async with AsyncExitStack() as stack:
        service = await stack.enter_async_context(open_service())
        if name in SERVICES:
            overview = await stack.enter_async_context(open_health(settings, name))
            service = replace(service, servicers=[*service.servicers, _health_service(overview)])
        healthy = health.aio.HealthServicer()
        interceptor = build_interceptor(settings, service)
        server = build_server(settings, service, healthy, interceptor)
        port = settings.port(name, replica)
        _listen(server, settings.host, port, _credentials(name, settings))
        # Measured while the object lives.
        certificate = certificates.watch(settings.certificates, name)
        probes = _probes(settings, settings.metrics_port(name, replica), heartbeat, readiness)
        await server.start()
        watching = [
            asyncio.create_task(heartbeat.run()),
            asyncio.create_task(_watch_database(service, healthy, readiness)),
        ]
        loops = [asyncio.create_task(_run(loop)) for loop in service.loops]
        if service.revocations is not None:
            follow = service.revocations.follow
            loops.append(asyncio.create_task(tasks.forever("revocations", follow)))
        # What exists now lives as long as the process: the garbage collector need not visit it.
        gc.collect()
        gc.freeze()
        gc.set_threshold(*_GC_THRESHOLDS)
        with probes:
            _log.info("serving", extra={"port": port, "environment": settings.environment})
            await stopping.wait()
            _log.info("stopping")
            readiness.stop()
            await healthy.enter_graceful_shutdown()
            # Calls still arrive until gateways and channels have seen NOT_SERVING.
            await asyncio.sleep(settings.drain_pause_seconds)
            await _end(loops)
            interceptor.end_streams()
            end = time.monotonic() + settings.shutdown_grace_seconds
            await server.stop(settings.shutdown_grace_seconds)
            # Both share one grace: the supervisor kills the process soon after it.
            await tasks.drain(max(end - time.monotonic(), 0))
            _log.info("stopped")
            await _end(watching)
            del certificate


def _health_service(overview: HealthServicer) -> Servicer:
    return Servicer(
        overview,
        health_service_pb2_grpc.add_HealthServiceServicer_to_server,
        health_service_pb2.DESCRIPTOR.services_by_name["HealthService"],
    )


def _probes(
    settings: MeshSettings, port: int, heartbeat: Heartbeat, readiness: Readiness
) -> Listener:
    try:
        return Listener(
            settings.metrics_host,
            port,
            is_live=heartbeat.is_beating,
            is_ready=lambda: readiness.is_ready,
        )
    except OSError as error:
        raise SystemExit(
            f"cannot listen on port {port} for metrics ({error.strerror}); "
            "change BOXOFFICE_METRICS_PORT_BASE"
        ) from None


def build_interceptor(settings: MeshSettings, service: Service) -> Interceptor:
    """The interceptor for all calls. Raises PolicyError for a method without a policy."""
    policies = {
        path: method
        for servicer in _servicers(settings, service)
        for path, method in policy.of_service(servicer.descriptor).items()
    }
    return Interceptor(policies, service.jwks, service.revocations)


def build_server(
    settings: MeshSettings,
    service: Service,
    healthy: health.aio.HealthServicer,
    interceptor: Interceptor,
) -> "Servers":
    """Servers with all servicers, health and, in development, reflection; not yet listening."""
    servicers = _servicers(settings, service)
    # A stand-in for a server, which the type stubs do not know.
    registered: Any = _Registered()
    for servicer in servicers:
        servicer.register(servicer.implementation, registered)
    health_pb2_grpc.add_HealthServicer_to_server(healthy, registered)
    if settings.is_development:
        names = [servicer.descriptor.full_name for servicer in servicers]
        reflection.enable_server_reflection(
            [*names, health.SERVICE_NAME, reflection.SERVICE_NAME], registered
        )
    return Servers(interceptor.wrap(registered.methods))


class Servers:
    """Several grpc.aio servers of one process, with the same methods on the same port."""

    def __init__(self, methods: grpc.GenericRpcHandler) -> None:
        self._servers = [grpc.aio.server(options=_OPTIONS) for _ in range(_SERVERS)]
        for server in self._servers:
            server.add_generic_rpc_handlers((methods,))

    def add_secure_port(self, host: str, port: int, credentials: grpc.ServerCredentials) -> int:
        """Listens on a port, or on a free one for 0. Returns the port.

        Raises OSError for a port that another process has: `so_reuseport` would share it.
        """
        if port:
            _require_free(host, port)
        for server in self._servers:
            port = server.add_secure_port(f"{host}:{port}", credentials)
        return port

    async def start(self) -> None:
        for server in self._servers:
            await server.start()

    async def stop(self, grace_seconds: float) -> None:
        """Refuses new calls and waits up to `grace_seconds` for those that are being served."""
        await asyncio.gather(*(server.stop(grace_seconds) for server in self._servers))


def _require_free(host: str, port: int) -> None:
    """Raises OSError for a port on which a process listens."""
    [address, *_] = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
    with socket.socket(address[0]) as attempt:
        # Connections that have ended do not count.
        attempt.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        attempt.bind(address[4])


def _listen(server: Servers, host: str, port: int, credentials: grpc.ServerCredentials) -> None:
    try:
        server.add_secure_port(host, port, credentials)
    except OSError as error:
        raise SystemExit(
            f"cannot listen on port {port} ({error.strerror}); change BOXOFFICE_PORT_BASE"
        ) from None


class _Registered:
    """Collects the methods that generated functions register with a server, by gRPC path."""

    def __init__(self) -> None:
        self.methods: dict[str, Any] = {}

    def add_generic_rpc_handlers(self, handlers: object) -> None:
        """Does nothing: the same methods follow."""

    def add_registered_method_handlers(self, service: str, methods: Mapping[str, Any]) -> None:
        self.methods.update({f"/{service}/{name}": method for name, method in methods.items()})


def _servicers(settings: MeshSettings, service: Service) -> list[Servicer]:
    return [
        servicer
        for servicer in service.servicers
        if settings.is_development or not servicer.development_only
    ]


def _credentials(name: str, settings: MeshSettings) -> grpc.ServerCredentials:
    folder = settings.certificates
    return grpc.ssl_server_credentials(
        [((folder / f"{name}.key").read_bytes(), (folder / f"{name}.pem").read_bytes())],
        root_certificates=(folder / "ca.pem").read_bytes(),
        require_client_auth=True,
    )


async def _run(loop: Callable[[], Awaitable[None]]) -> None:
    await loop()


async def _watch_database(
    service: Service, healthy: health.aio.HealthServicer, readiness: Readiness
) -> None:
    """Updates readiness and the health service every 3 s, and every second after a failure."""
    states = health_pb2.HealthCheckResponse
    while True:
        try:
            async with asyncio.timeout(_HEALTH_TIMEOUT_SECONDS):
                await service.ping_database()
            good = True
        except Exception as error:  # noqa: BLE001 - any error means an unusable database
            _log.warning("the database is unavailable", extra={"error": type(error).__name__})
            good = False
        await healthy.set(DATABASE, states.SERVING if good else states.NOT_SERVING)
        ready = readiness.record(good=good)
        await healthy.set("", states.SERVING if ready else states.NOT_SERVING)
        is_steady = good and ready
        await asyncio.sleep(
            _HEALTH_INTERVAL_SECONDS if is_steady else _FAILED_HEALTH_INTERVAL_SECONDS
        )


async def _end(running: list[asyncio.Task[None]]) -> None:
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
