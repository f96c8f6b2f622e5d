"""Checks ports, disk space and executables before anything is started."""

import shutil
import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

from launcher.errors import LaunchError
from mesh.settings import LIMIT_SERVICE, SERVICES, MeshSettings

MIN_FREE_BYTES = 512 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Port:
    """A port on which the mesh will listen, and the setting that changes it."""

    number: int
    owner: str
    setting: str
    host: str


def ports(settings: MeshSettings) -> list[Port]:
    """All ports of the mesh."""
    return [
        *(
            Port(settings.gateway_port + n, "the gateway", "BOXOFFICE_GATEWAY_PORT", settings.host)
            for n in range(settings.gateways)
        ),
        *(
            Port(
                admin_port(settings, n),
                "Envoy's admin port",
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
    """All processes of services, as service and replica number."""
    limit_service = [(LIMIT_SERVICE, 0)] if settings.counts_globally else []
    return [(service, n) for service in SERVICES for n in range(settings.replicas)] + limit_service


def admin_port(settings: MeshSettings, gateway: int) -> int:
    """The admin port of gateway process `gateway`."""
    return settings.envoy_admin_port + gateway


def check_ports(ports: Iterable[Port]) -> None:
    """Raises LaunchError that names each unavailable port, its user and its setting."""
    by_number: dict[int, Port] = {}
    problems = []
    for port in ports:
        if (other := by_number.setdefault(port.number, port)) is not port:
            problems.append(
                f"Port {port.number} is configured for both {other.owner} ({other.setting}) and "
                f"{port.owner} ({port.setting})."
            )
        elif _is_taken(port):
            problems.append(
                f"Port {port.number} for {port.owner} is in use{_by(port.number)}; "
                f"{port.setting} changes it."
            )
    if problems:
        raise LaunchError(
            "\n".join(problems),
            "Stop the processes that use them, or configure other ports, e.g. in .env.",
        )


def check_disk(folder: Path, *, free_bytes: int | None = None) -> None:
    """Raises LaunchError when the disk of `folder` has less than 512 MiB of free space.

    `free_bytes` None: measure it.
    """
    free = shutil.disk_usage(folder).free if free_bytes is None else free_bytes
    if free < MIN_FREE_BYTES:
        raise LaunchError(
            f"The disk of {folder} has {free // 2**20} MiB of free space; "
            f"the mesh requires {MIN_FREE_BYTES // 2**20} MiB.",
            "Free some space, or set BOXOFFICE_HOME to a folder on another disk.",
        )


def check_binaries(binaries: Iterable[Path]) -> None:
    """Raises LaunchError when an embedded server's executable is missing."""
    for binary in binaries:
        if not binary.is_file():
            raise LaunchError(
                f"{binary.name} is not installed: {binary} does not exist.",
                "Run `make clean up` to reinstall everything.",
            )


def _is_taken(port: Port) -> bool:
    with socket.socket(socket.AF_INET6 if ":" in port.host else socket.AF_INET) as probe:
        # As servers do, so that connections of an earlier run in TIME_WAIT do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((port.host, port.number))
            probe.listen(1)
        except PermissionError as error:
            raise LaunchError(
                f"Port {port.number} for {port.owner} requires root privileges.",
                f"Set {port.setting} to 1024 or higher.",
            ) from error
        except OSError:
            return True
        return False


def _by(port: int) -> str:
    """The process that listens on the port, or that has an outgoing connection from it.

    The services' ports are within Linux's range for outgoing connections.
    """
    try:
        connections = [
            connection
            for connection in psutil.net_connections(kind="tcp")
            if connection.laddr and connection.laddr.port == port and connection.pid is not None
        ]
        connections.sort(key=lambda connection: connection.status != psutil.CONN_LISTEN)
        for connection in connections[:1]:
            name = f"{psutil.Process(connection.pid).name()} (pid {connection.pid})"
            if connection.status == psutil.CONN_LISTEN:
                return f" by {name}"
            return f" by an outgoing connection of {name}, until that ends"
    except psutil.Error:
        # Processes of other users may be invisible; the message is useful without the name.
        pass
    return ""
