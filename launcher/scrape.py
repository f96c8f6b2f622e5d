"""Tells Prometheus what to scrape: every process that this mesh runs, and no other.

By file, as its `file_sd_configs` reads it: deploy/prometheus/prometheus.yaml names the file.
"""

import json
from pathlib import Path
from typing import Any

from launcher import preflight
from mesh.settings import MeshSettings

_GATEWAY_PATH = "/stats/prometheus"


def write(settings: MeshSettings) -> None:
    """Writes scrape.json into the state folder; a Prometheus that runs takes it up."""
    file = path(settings.home)
    new = file.with_suffix(".new")
    new.write_text(json.dumps(targets(settings), indent=1) + "\n")
    new.replace(file)


def path(home: Path) -> Path:
    return home / "scrape.json"


def targets(settings: MeshSettings) -> list[dict[str, Any]]:
    """A group for each service and one for the gateways."""
    groups: dict[str, list[str]] = {}
    for service, replica in preflight.service_processes(settings):
        address = f"{settings.metrics_host}:{settings.metrics_port(service, replica)}"
        groups.setdefault(service, []).append(address)
    found: list[dict[str, Any]] = [
        {"targets": addresses, "labels": {"job": service}} for service, addresses in groups.items()
    ]
    gateways = [
        f"127.0.0.1:{preflight.admin_port(settings, number)}" for number in range(settings.gateways)
    ]
    found.append(
        {"targets": gateways, "labels": {"job": "gateway", "__metrics_path__": _GATEWAY_PATH}}
    )
    return found
