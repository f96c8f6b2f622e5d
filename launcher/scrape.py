"""Writes scrape.json, the targets of this mesh for Prometheus's `file_sd_configs`.

deploy/prometheus/prometheus.yaml reads the file.
"""

import json
from pathlib import Path
from typing import Any

from launcher import preflight
from mesh.settings import MeshSettings

_GATEWAY_PATH = "/stats/prometheus"


def write(settings: MeshSettings) -> None:
    """Writes scrape.json into the state folder; a running Prometheus reloads it."""
    file = path(settings.home)
    new = file.with_suffix(".new")
    new.write_text(json.dumps(targets(settings), indent=1) + "\n")
    new.replace(file)


def path(home: Path) -> Path:
    return home / "scrape.json"


def targets(settings: MeshSettings) -> list[dict[str, Any]]:
    """One target group per service and one for the gateways."""
    groups: dict[str, list[str]] = {}
    for service, replica in preflight.service_processes(settings):
        address = f"{settings.metrics_host}:{settings.metrics_port(service, replica)}"
        groups.setdefault(service, []).append(address)
    gateways = [
        f"127.0.0.1:{preflight.admin_port(settings, number)}" for number in range(settings.gateways)
    ]
    return [
        *(
            {"targets": addresses, "labels": {"job": service}}
            for service, addresses in groups.items()
        ),
        {"targets": gateways, "labels": {"job": "gateway", "__metrics_path__": _GATEWAY_PATH}},
    ]
