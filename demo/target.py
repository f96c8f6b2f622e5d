"""Which mesh the demo sells on: the one that runs, if its limits allow so many customers
from one address and it lets us make an admin, else one of its own beside it."""

import importlib
import re
import secrets
from collections.abc import AsyncIterator, Callable
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
    # So short that holds expire while the demo runs.
    "BOXOFFICE_HOLD_TTL_SECONDS": "12",
    "BOXOFFICE_PAYMENT_WINDOW_SECONDS": "20",
}
_OWN_SCALE = 1000.0

# Sign-ups and the common limit for calls without a token, a minute and address; see the protos.
_SIGN_UPS_A_MINUTE = 5
_CALLS_A_MINUTE = 100
_PROBE_SECONDS = 3.0
_FIRST_NUMBER = re.compile(r"\d+")

Say = Callable[[str], None]


class DemoSettings(MeshSettings):
    """What the demo needs besides the mesh's settings."""

    admin_registration_secret: SecretStr | None = Field(
        None, description="The running mesh's secret for admins to sign up."
    )


@dataclass(frozen=True, slots=True)
class Target:
    """A healthy mesh. `home` is where the pid files of its processes are."""

    url: str
    home: Path
    admin_secret: str


@asynccontextmanager
async def open_target(
    settings: DemoSettings, *, url: str, customers: int, say: Say
) -> AsyncIterator[Target]:
    """A mesh to sell on; one that it starts itself ends with the block.

    With `url` only that one will do. Raises DemoError, or LaunchError when a mesh does
    not start.
    """
    wanted = url or settings.gateway_url
    why_not = await _why_not(wanted, settings, customers)
    if why_not is None:
        secret = settings.admin_registration_secret
        say(f"Selling on the mesh at {wanted}.")
        yield Target(wanted, settings.home.absolute(), secret.get_secret_value() if secret else "")
        return
    if url:
        raise DemoError(f"{why_not} Without --url the demo starts a mesh of its own.")
    own = _own_settings(settings)
    say(f"{why_not} Starting one for the demo at {own.gateway_url}, in {own.home}.")
    _refuse_shared_servers()
    async with _own_mesh(own, say) as target:
        yield target


async def _why_not(url: str, settings: DemoSettings, customers: int) -> str | None:
    """Why the mesh at `url` cannot be used; None when it can."""
    async with httpx.AsyncClient(base_url=url, timeout=_PROBE_SECONDS, trust_env=False) as client:
        try:
            health = await client.get("/health")
            # Any call that counts towards the common limit tells it in its headers.
            probe = await client.get(f"/api/v1/events/{UUID(int=0)}")
        except (httpx.HTTPError, httpx.InvalidURL):
            return f"No mesh runs at {url}."
    if health.status_code != httpx.codes.OK:
        return f"What runs at {url} is not a healthy mesh (GET /health: {health.status_code})."
    limit = _FIRST_NUMBER.match(probe.headers.get("x-ratelimit-limit", ""))
    scale = int(limit[0]) / _CALLS_A_MINUTE if limit else 1.0
    needed = ceil(2 * customers / _SIGN_UPS_A_MINUTE)
    if scale < needed:
        return (
            f"The mesh at {url} lets one address sign up {_SIGN_UPS_A_MINUTE * scale:g} times a "
            f"minute; {customers} customers need BOXOFFICE_RATE_LIMIT_SCALE={needed} or more."
        )
    if settings.admin_registration_secret is None:
        return (
            f"The mesh at {url} may run, but BOXOFFICE_ADMIN_REGISTRATION_SECRET is not set here."
        )
    return None


def _own_settings(settings: DemoSettings) -> MeshSettings:
    from launcher.settings_listing import load

    return load(
        MeshSettings,
        home=settings.home.absolute() / "demo",
        environment="development",
        gateway_port=settings.gateway_port + OWN_PORT_STEP,
        port_base=settings.port_base + OWN_PORT_STEP,
        envoy_admin_port=settings.envoy_admin_port + OWN_PORT_STEP,
        rate_limit_scale=_OWN_SCALE,
        gateways=1,
        replicas=1,
    )


def _refuse_shared_servers() -> None:
    """The demo's own mesh shares nothing with another one, least of all a database."""
    from launcher.provided import Provided
    from launcher.settings_listing import load

    given: list[tuple[str, Any]] = [
        *((name, value) for name, value in load(Provided) if name.endswith("_database_url")),
        ("redis_url", load(MeshSettings).redis_url),
    ]
    named = [f"BOXOFFICE_{name.upper()}" for name, value in given if value is not None]
    if named:
        raise DemoError(
            f"{', '.join(named)}: the demo does not write to servers of yours. "
            "Unset it, or start a mesh on them and name it with --url."
        )


@asynccontextmanager
async def _own_mesh(settings: MeshSettings, say: Say) -> AsyncIterator[Target]:
    _compile_contract()
    from launcher.mesh import Mesh

    secret = secrets.token_urlsafe(32)
    variables = {**OWN_VARIABLES, "BOXOFFICE_ADMIN_REGISTRATION_SECRET": secret}
    async with Mesh(settings, variables=variables, on_step=lambda step: say(f"  {step}")) as mesh:
        yield Target(settings.gateway_url, mesh.home, secret)
        say("Stopping the demo's mesh.")


def _compile_contract() -> None:
    """launcher.mesh reads the stubs as soon as it is imported."""
    from launcher import protos
    from launcher.errors import LaunchError

    try:
        generated = protos.compile_contract()
    except protos.ProtoError as error:
        raise LaunchError("The contract does not compile.", str(error)) from error
    if generated:
        importlib.invalidate_caches()
