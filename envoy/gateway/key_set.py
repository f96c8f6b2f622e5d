"""The listener from which Envoy fetches the keys for verifying tokens.

auth_svc serves them as gRPC, jwt_authn fetches JSON, so this listener transcodes. The public
listener cannot be used: it may require TLS and limits its callers.
"""

from collections.abc import Collection
from pathlib import Path

from gateway import transcoding
from gateway.clusters import destination, jwks_address
from gateway.extension import Config, extension
from gateway.tokens import JWKS_PATH
from mesh.rpc.policy import MethodPolicy
from mesh.settings import MeshSettings


def listener(
    policies: Collection[MethodPolicy], settings: MeshSettings, descriptor_path: Path
) -> Config:
    [policy] = [
        policy
        for policy in policies
        if any(binding.path == JWKS_PATH for binding in policy.bindings)
    ]
    route = {"match": {"path": policy.path}, "route": destination(policy)}
    manager = extension(
        "envoy.filters.network.http_connection_manager",
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="jwks",
        http_filters=[
            transcoding.transcoder([policy], str(descriptor_path)),
            extension(
                "envoy.filters.http.router", "envoy.extensions.filters.http.router.v3.Router"
            ),
        ],
        route_config={"virtual_hosts": [{"name": "jwks", "domains": ["*"], "routes": [route]}]},
    )
    return {
        "name": "jwks",
        "address": jwks_address(settings),
        "filter_chains": [{"filters": [manager]}],
    }
