"""The mesh that the demo uses: a running one, or a mesh of its own beside it.

A running mesh must allow that many sign-ups from one address, and admin sign-up.
"""

import importlib
import re
import secrets
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
from pydantic import Field, SecretStr

from demo.errors import DemoError
from mesh.settings import MeshSettings

OWN_PORT_STEP = 100
OWN_VARIABLES = {
    "BOXOFFICE_PASSWORD_COST": "4",
    # Short, so that holds expire during the demo.
    "BOXOFFICE_HOLD_TTL_SECONDS": "12",
    "BOXOFFICE_PAYMENT_WINDOW_SECONDS": "20",
}
_OWN_SCALE = 1000.0

# Limits per minute and address of sign-ups and of calls without a token; see the protos.
_SIGN_UPS_PER_MINUTE = 5
_CALLS_PER_MINUTE = 100
_PROBE_SECONDS = 3.0
_FIRST_NUMBER = re.compile(r"\d+")

Say = Callable[[str], None]


class DemoSettings(MeshSettings):
    """The mesh's settings, and those of the demo."""

    admin_registration_secret: SecretStr | None = Field(
        None, description="Secret for admin sign-up of the running mesh."
    )


@dataclass(frozen=True, slots=True)
class Target:
    """A healthy mesh. `home` contains the pid files of its processes."""

    url: str
    home: Path
    admin_secret: str


@asynccontextmanager
async def open_target(
    settings: DemoSettings, *, url: str, customers: int, say: Say
) -> AsyncIterator[Target]:
    """The mesh to use. A mesh that it starts is stopped at the end of the block.

    With `url` only that mesh is used. Raises DemoError, or LaunchError when a mesh does not start.
    """
    running_url = url or settings.gateway_url
    obstacle = await _obstacle(running_url, settings, customers)
    if obstacle is None:
        secret = settings.admin_registration_secret
        say(f"Using the mesh at {running_url}.")
        yield Target(
            running_url, settings.home.absolute(), secret.get_secret_value() if secret else ""
        )
        return
    if url:
        raise DemoError(f"{obstacle} Without --url, the demo starts a mesh of its own.")
    say(obstacle)
    async with open_own_target(settings, say=say) as target:
        yield target


@asynccontextmanager
async def open_own_target(
    settings: DemoSettings,
    *,
    say: Say,
    variables: Mapping[str, str] | None = None,
    rate_limit_scale: float = _OWN_SCALE,
    trusted_proxies: tuple[str, ...] = (),
) -> AsyncIterator[Target]:
    """A mesh for the demo alone, which is stopped at the end of the block.

    Raises DemoError, or LaunchError when it does not start.
    """
    own = _own_settings(settings, rate_limit_scale, trusted_proxies)
    say(f"Starting a mesh for the demo at {own.gateway_url}, in {own.home}.")
    _refuse_shared_servers()
    async with _own_mesh(own, say, variables or {}) as target:
        yield target


async def _obstacle(url: str, settings: DemoSettings, customers: int) -> str | None:
    """The reason why the mesh at `url` cannot be used; None when it can."""
    async with httpx.AsyncClient(base_url=url, timeout=_PROBE_SECONDS, trust_env=False) as client:
        try:
            health = await client.get("/health")
            # Every call that counts towards the common limit has the limit in its headers.
            probe = await client.get(f"/api/v1/events/{UUID(int=0)}")
        except (httpx.HTTPError, httpx.InvalidURL):
            return f"No mesh runs at {url}."
    if health.status_code != httpx.codes.OK:
        return f"The mesh at {url} is not healthy (GET /health: {health.status_code})."
    limit = _FIRST_NUMBER.match(probe.headers.get("x-ratelimit-limit", ""))
    scale = int(limit[0]) / _CALLS_PER_MINUTE if limit else 1.0
    needed = ceil(2 * customers / _SIGN_UPS_PER_MINUTE)
    if scale < needed:
        return (
            f"The mesh at {url} allows {_SIGN_UPS_PER_MINUTE * scale:g} sign-ups per minute and "
            f"address; {customers} customers need BOXOFFICE_RATE_LIMIT_SCALE={needed} or more."
        )
    if settings.admin_registration_secret is None:
        return f"BOXOFFICE_ADMIN_REGISTRATION_SECRET is not set, which the mesh at {url} requires."
    return None


def _own_settings(
    settings: DemoSettings, rate_limit_scale: float, trusted_proxies: tuple[str, ...]
) -> MeshSettings:
    from launcher.settings_listing import load

    return load(
        MeshSettings,
        home=settings.home.absolute() / "demo",
        environment="development",
        gateway_port=settings.gateway_port + OWN_PORT_STEP,
        port_base=settings.port_base + OWN_PORT_STEP,
        envoy_admin_port=settings.envoy_admin_port + OWN_PORT_STEP,
        rate_limit_scale=rate_limit_scale,
        trusted_proxies=trusted_proxies,
        gateways=1,
        replicas=1,
    )


def _refuse_shared_servers() -> None:
    """Raises DemoError if the demo's own mesh would share a database or Redis with another mesh."""
    from launcher.provided import Provided
    from launcher.settings_listing import load

    addresses: list[tuple[str, Any]] = [
        *((name, value) for name, value in load(Provided) if name.endswith("_database_url")),
        ("redis_url", load(MeshSettings).redis_url),
    ]
    shared = [f"BOXOFFICE_{name.upper()}" for name, value in addresses if value is not None]
    if shared:
        raise DemoError(
            f"{', '.join(shared)}: the demo does not write to external servers. "
            "Unset the variable, or start a mesh that uses them and pass its URL with --url."
        )


@asynccontextmanager
async def _own_mesh(
    settings: MeshSettings, say: Say, more_variables: Mapping[str, str]
) -> AsyncIterator[Target]:
    _compile_contract()
    from launcher.mesh import Mesh

    secret = secrets.token_urlsafe(32)
    variables = {**OWN_VARIABLES, **more_variables, "BOXOFFICE_ADMIN_REGISTRATION_SECRET": secret}
    async with Mesh(settings, variables=variables, on_step=lambda step: say(f"  {step}")) as mesh:
        yield Target(settings.gateway_url, mesh.home, secret)
        say("Stopping the demo's mesh.")


def _compile_contract() -> None:
    """Compiles the contract: launcher.mesh imports the stubs."""
    from launcher import protos
    from launcher.errors import LaunchError

    try:
        generated = protos.compile_contract()
    except protos.ProtoError as error:
        raise LaunchError("The contract does not compile.", str(error)) from error
    if generated:
        importlib.invalidate_caches()
