"""A listener for the gateway's metrics and readiness.

Envoy's admin port, which allows much more, listens only on 127.0.0.1.
"""

from gateway.extension import Config, extension
from mesh.settings import MeshSettings

_CLUSTER = "admin"
_PATHS = ("/stats/prometheus", "/ready")


def listeners(settings: MeshSettings) -> list[Config]:
    """The listener, if its port is set."""
    if settings.gateway_metrics_port is None:
        return []
    get = {"name": ":method", "string_match": {"exact": "GET"}}
    routes = [
        {"match": {"path": path, "headers": [get]}, "route": {"cluster": _CLUSTER}}
        for path in _PATHS
    ]
    manager = extension(
        "envoy.filters.network.http_connection_manager",
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="probes",
        http_filters=[
            extension("envoy.filters.http.router", "envoy.extensions.filters.http.router.v3.Router")
        ],
        route_config={"virtual_hosts": [{"name": "probes", "domains": ["*"], "routes": routes}]},
    )
    address = {"address": settings.metrics_host, "port_value": settings.gateway_metrics_port}
    return [
        {
            "name": "probes",
            "address": {"socket_address": address},
            # Keeps answering until the end of a drain.
            "drain_type": "MODIFY_ONLY",
            "filter_chains": [{"filters": [manager]}],
        }
    ]


def clusters(settings: MeshSettings) -> list[Config]:
    """The admin port as upstream of the listener."""
    if settings.gateway_metrics_port is None:
        return []
    address = {"address": "127.0.0.1", "port_value": settings.envoy_admin_port}
    return [
        {
            "name": _CLUSTER,
            "type": "STATIC",
            "connect_timeout": "1s",
            "load_assignment": {
                "cluster_name": _CLUSTER,
                "endpoints": [
                    {"lb_endpoints": [{"endpoint": {"address": {"socket_address": address}}}]}
                ],
            },
        }
    ]
