"""What would make the mesh fail later, found before anything is started."""

import shutil
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

from launcher.errors import LaunchError
from mesh.settings import LIMIT_SERVICE, SERVICES, MeshSettings

# The gateway listens on all addresses.
_EVERYWHERE = "0.0.0.0"  # noqa: S104  only probed, never served

MIN_FREE_BYTES = 512 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Port:
    """A port that the mesh is going to listen on, and the setting that moves it."""

    number: int
    owner: str
    setting: str
    host: str


def ports(settings: MeshSettings) -> list[Port]:
    """Every port of the mesh."""
    return [
        *(
            Port(settings.gateway_port + n, "the gateway", "BOXOFFICE_GATEWAY_PORT", _EVERYWHERE)
            for n in range(settings.gateways)
        ),
        *(
            Port(
                admin_port(settings, n),
                "Envoy's admin page",
                "BOXOFFICE_ENVOY_ADMIN_PORT",
                "127.0.0.1",
            )
            for n in range(settings.gateways)
        ),
        *(
            Port(settings.port(service, n), service, "BOXOFFICE_PORT_BASE", settings.host)
            for service, n in service_processes(settings)
        ),
        *(
            Port(
                settings.metrics_port(service, n),
                f"the metrics of {service}",
                "BOXOFFICE_METRICS_PORT_BASE",
                settings.metrics_host,
            )
            for service, n in service_processes(settings)
        ),
    ]


def service_processes(settings: MeshSettings) -> list[tuple[str, int]]:
    """Every process of a service, with its number among the replicas."""
    together = [(LIMIT_SERVICE, 0)] if settings.counts_globally else []
    return [(service, n) for service in SERVICES for n in range(settings.replicas)] + together


def admin_port(settings: MeshSettings, gateway: int) -> int:
    """Envoy's admin port of the gateway process with that number."""
    return settings.envoy_admin_port + gateway


def check_ports(wanted: Iterable[Port]) -> None:
    """Raises LaunchError that names every port which is taken, by whom, and how to move it."""
    seen: dict[int, Port] = {}
    problems = []
    for port in wanted:
        if (other := seen.setdefault(port.number, port)) is not port:
            problems.append(
                f"Port {port.number} is for both {other.owner} ({other.setting}) and "
                f"{port.owner} ({port.setting})."
            )
        elif _is_taken(port):
            problems.append(
                f"Port {port.number} for {port.owner} is taken{_by(port.number)}; "
                f"{port.setting} changes it."
            )
    if problems:
        raise LaunchError(
            "\n".join(problems), "Stop what uses them, or set other ports, e.g. in .env."
        )


def check_disk(folder: Path, *, free_bytes: int | None = None) -> None:
    """Raises LaunchError when the disk of `folder` is nearly full.

    `free_bytes` is what is free; measured when None.
    """
    free = shutil.disk_usage(folder).free if free_bytes is None else free_bytes
    if free < MIN_FREE_BYTES:
        raise LaunchError(
            f"Only {free // 2**20} MiB are free on the disk of {folder}; "
            f"the mesh needs {MIN_FREE_BYTES // 2**20} MiB.",
            "Free some, or set BOXOFFICE_HOME to a folder on another disk.",
        )


def check_binaries(binaries: Iterable[Path]) -> None:
    """Raises LaunchError when an embedded server's executable is not there."""
    for binary in binaries:
        if not binary.is_file():
            raise LaunchError(
                f"{binary.name} is not installed: there is no {binary}.",
                "Run `make clean up` to install everything again.",
            )


def _is_taken(port: Port) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in port.host else socket.AF_INET) as probe:
        # As servers do: a connection of the last run that still fades out is no hindrance.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((port.host, port.number))
            probe.listen(1)
        except PermissionError as error:
            raise LaunchError(
                f"Port {port.number} for {port.owner} needs more rights than you have.",
                f"Set {port.setting} to a port of 1024 or more.",
            ) from error
        except OSError:
            return True
        return False


def _by(port: int) -> str:
    """Who has the port: who listens on it, or else whose outgoing connection was given it.

    The services' ports lie among those that Linux gives to outgoing connections.
    """
    try:
        holders = [
            each
            for each in psutil.net_connections(kind="tcp")
            if each.laddr and each.laddr.port == port and each.pid is not None
        ]
        holders.sort(key=lambda each: each.status != psutil.CONN_LISTEN)
        for holder in holders[:1]:
            name = f"{psutil.Process(holder.pid).name()} (pid {holder.pid})"
            if holder.status == psutil.CONN_LISTEN:
                return f" by {name}"
            return f" by an outgoing connection of {name}, until that ends"
    except psutil.Error:
        # Whose it is may be hidden from us; that it is taken is what matters.
        pass
    return ""
