"""A mesh with a proxy on every edge: clients, gateways, services, PostgreSQL and Redis.

The callers get the proxies' addresses from settings. PostgreSQL and Redis belong to the harness, so
that the mesh reaches them as external servers, through a proxy.
"""

import asyncio
import random
import secrets
import shutil
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from chaos.faults.processes import POSTGRES, REDIS
from chaos.faults.proxy import Proxy
from launcher import leftovers, postgres_server, preflight, redis_server, sockets
from launcher.health import answers_ok
from launcher.postgres_server import PostgresServer
from launcher.provided import database
from launcher.redis_server import RedisServer
from launcher.settings_listing import load
from launcher.supervisor import Supervisor, wait_healthy
from mesh.settings import LIMIT_SERVICE, SERVICES, MeshSettings

# Callers reach a port through an address of their own; Linux has all of 127.0.0.0/8.
_DIRECT = "127.0.0.1"
_FOR_GATEWAYS, _FOR_SERVICES, _FOR_CLIENTS = "127.0.0.2", "127.0.0.3", "127.0.0.4"

_SERVERS_SECONDS = 60.0
_LEFTOVER_SECONDS = 20.0
_RATE_LIMIT_SCALE = 100_000.0
_VARIABLES = {
    "BOXOFFICE_PASSWORD_COST": "4",
    # Those after which all bookings still end within minutes.
    "BOXOFFICE_SANDBOX_FAULTS": "DELAY=0.05,REORDER=0.05,DUPLICATE=0.1,DROP=0.05,"
    "WRONG_SIGNATURE=0.03,ERROR_AFTER=0.05,TIMEOUT_AFTER=0.02,THROTTLE=0.03,PAY_TWICE=0.03",
    # Tokens outlast the longest run.
    "BOXOFFICE_ACCESS_TOKEN_TTL_SECONDS": "86400",
}

Say = Callable[[str], None]


@dataclass
class ProxiedMesh:
    """`urls` of the gateways lead through proxies, `direct_urls` do not.

    `home` and `servers` are the state folders of the mesh and of PostgreSQL and Redis.
    """

    settings: MeshSettings
    home: Path
    servers: Path
    admin_secret: str
    edges: dict[str, Proxy] = field(default_factory=dict)

    @property
    def urls(self) -> list[str]:
        return [self._url(_FOR_CLIENTS, number) for number in range(self.settings.gateways)]

    @property
    def direct_urls(self) -> list[str]:
        return [self._url(_DIRECT, number) for number in range(self.settings.gateways)]

    def _url(self, host: str, number: int) -> str:
        return f"http://{host}:{self.settings.gateway_port + number}"

    @property
    def processes(self) -> list[str]:
        """All processes by name: services, gateways, PostgreSQL, Redis."""
        return [*self._probes(), POSTGRES, REDIS]

    def home_of(self, process: str) -> Path:
        """The state folder with the process's pid file."""
        return self.servers if process in {POSTGRES, REDIS} else self.home

    def metrics_urls(self) -> dict[str, str]:
        """URL of /metrics of each process of a service."""
        return {
            _numbered(service, number): self._listener(service, number) + "/metrics"
            for service, number in preflight.service_processes(self.settings)
        }

    async def is_ready(self, process: str) -> bool:
        """Whether a process is ready: all services for PostgreSQL, their cache for Redis."""
        probes = self._probes()
        if process == POSTGRES:
            names = [name for name in probes if name.rpartition("_svc")[1]]
        elif process == REDIS:
            return await _answers_ok(f"{self.direct_urls[0]}/health/cache")
        else:
            names = [process]
        return all(await asyncio.gather(*(_answers_ok(probes[name]) for name in names)))

    def _probes(self) -> dict[str, str]:
        """URL of the readiness of each service's process and each gateway."""
        return {
            **{
                _numbered(service, number): self._listener(service, number) + "/ready"
                for service, number in preflight.service_processes(self.settings)
            },
            **{
                _numbered("gateway", number): "http://127.0.0.1:"
                f"{preflight.admin_port(self.settings, number)}/ready"
                for number in range(self.settings.gateways)
            },
        }

    def _listener(self, service: str, number: int) -> str:
        return f"http://{_DIRECT}:{self.settings.metrics_port(service, number)}"


@asynccontextmanager
async def running(
    home: Path,
    *,
    ports: tuple[int, int, int],
    replicas: int,
    gateways: int,
    hold_seconds: int,
    seed: int,
    say: Say,
) -> AsyncIterator[ProxiedMesh]:
    """Starts everything in an empty state folder; stops it at the end of the block.

    `ports` are the gateway's port, Envoy's admin port and the port base. Raises LaunchError.
    """
    from launcher.mesh import Mesh

    gateway_port, admin_port, port_base = ports
    settings = load(
        MeshSettings,
        home=home / "mesh",
        environment="development",
        gateway_port=gateway_port,
        envoy_admin_port=admin_port,
        port_base=port_base,
        peer_host=_FOR_GATEWAYS,
        rate_limit_scale=_RATE_LIMIT_SCALE,
        gateways=gateways,
        replicas=replicas,
        redis_url=None,
    )
    proxied = ProxiedMesh(settings, home / "mesh", home / "servers", secrets.token_urlsafe(32))
    async with AsyncExitStack() as stack:
        stack.callback(shutil.rmtree, sockets.folder(proxied.home), ignore_errors=True)
        await _empty(home, proxied, stack)
        say("Starting PostgreSQL and Redis, and a proxy on every edge.")
        await _start_servers(proxied.servers, stack)
        random_ = random.Random(seed)
        for proxy in _proxies(proxied, random_):
            await stack.enter_async_context(proxy.running())
            proxied.edges[proxy.name] = proxy
        variables = {
            **_VARIABLES,
            # Short, so that holds expire during the run.
            "BOXOFFICE_HOLD_TTL_SECONDS": str(hold_seconds),
            "BOXOFFICE_PAYMENT_WINDOW_SECONDS": str(2 * hold_seconds),
            "BOXOFFICE_ADMIN_REGISTRATION_SECRET": proxied.admin_secret,
            "BOXOFFICE_PEER_HOST": _FOR_SERVICES,
            "BOXOFFICE_REDIS_URL": f"unix://{_redis_socket(proxied)}?db=0",
            **{
                f"BOXOFFICE_{database(service).upper()}_DATABASE_URL": "postgresql+psycopg://"
                f"{postgres_server.ROLE}@/{database(service)}?host={_folder(proxied, service)}"
                for service in SERVICES
            },
        }
        say(f"Starting the mesh: {replicas} of each service, {gateways} gateways.")
        await stack.enter_async_context(Mesh(settings, variables=variables))
        yield proxied
        say("Stopping the mesh.")


async def _empty(home: Path, proxied: ProxiedMesh, stack: AsyncExitStack) -> None:
    """Removes what an earlier run left, its processes included."""
    for folder in (proxied.home, proxied.servers):
        if folder.exists():
            with leftovers.hold(folder):
                await asyncio.to_thread(leftovers.stop_all, folder, _LEFTOVER_SECONDS)
    await asyncio.to_thread(shutil.rmtree, home, ignore_errors=True)
    stack.enter_context(leftovers.hold(proxied.servers))


async def _start_servers(home: Path, stack: AsyncExitStack) -> None:
    server = PostgresServer(home)
    await asyncio.to_thread(server.initialise)
    supervisor = Supervisor(home)
    stack.push_async_callback(supervisor.stop)
    programs = [server.program(), RedisServer(home).program()]
    await wait_healthy(supervisor.start(programs), _SERVERS_SECONDS)
    await server.provision(tuple(database(service) for service in SERVICES))


def _proxies(proxied: ProxiedMesh, random_: random.Random) -> Iterator[Proxy]:
    """The proxies, one for each edge and process behind it."""
    settings = proxied.settings

    def on_port(caller: str, host: str, callee: str, port: int) -> Proxy:
        return Proxy(
            f"{caller}>{callee}", listen=(host, port), target=(_DIRECT, port), random_=random_
        )

    for number in range(settings.gateways):
        port = settings.gateway_port + number
        yield on_port("clients", _FOR_CLIENTS, _numbered("gateway", number), port)
    for service, number in preflight.service_processes(settings):
        name, port = _numbered(service, number), settings.port(service, number)
        yield on_port("gateway", _FOR_GATEWAYS, name, port)
        if service != LIMIT_SERVICE:
            yield on_port("services", _FOR_SERVICES, name, port)
    real = sockets.folder(proxied.servers)
    sockets.create(proxied.home)
    for service in SERVICES:
        folder = _folder(proxied, service)
        folder.mkdir(mode=0o700, exist_ok=True)
        yield Proxy(
            f"{service}>{postgres_server.NAME}",
            listen=folder / ".s.PGSQL.5432",
            target=real / ".s.PGSQL.5432",
            random_=random_,
        )
    yield Proxy(
        f"services>{redis_server.NAME}",
        listen=_redis_socket(proxied),
        target=real / "redis.sock",
        random_=random_,
    )


def _folder(proxied: ProxiedMesh, service: str) -> Path:
    """The folder of the socket through which a service reaches PostgreSQL."""
    return sockets.folder(proxied.home) / service


def _redis_socket(proxied: ProxiedMesh) -> Path:
    return sockets.folder(proxied.home) / "redis.sock"


def _numbered(name: str, number: int) -> str:
    return name if number == 0 else f"{name}-{number}"


async def _answers_ok(url: str) -> bool:
    try:
        return await answers_ok(url)
    except httpx.HTTPError:
        return False
