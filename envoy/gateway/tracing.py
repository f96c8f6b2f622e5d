"""Tracing in the gateway: creates the first span and makes the sampling decision."""

from urllib.parse import urlsplit

from gateway.extension import Config, extension, typed
from gateway.requests import LOGGED_PATH
from mesh.settings import MeshSettings

CLUSTER = "traces"


def of_requests(settings: MeshSettings) -> Config:
    """The connection manager's tracing settings; empty without a collector."""
    if settings.trace_endpoint is None:
        return {}
    share = {"value": settings.trace_sample * 100}
    return {
        "tracing": {
            "provider": extension(
                "envoy.tracers.opentelemetry",
                "envoy.config.trace.v3.OpenTelemetryConfig",
                grpc_service={"envoy_grpc": {"cluster_name": CLUSTER}, "timeout": "1s"},
                service_name="gateway",
            ),
            # A separate span for the upstream call.
            "spawn_upstream_span": True,
            # Envoy's tag contains the query, which may hold a token; url.path omits it.
            "max_path_tag_length": 1,
            "custom_tags": [{"tag": "url.path", "value": LOGGED_PATH}],
            # Also bounds traces that clients request.
            "client_sampling": share,
            "random_sampling": share,
            "overall_sampling": share,
        }
    }


def clusters(settings: MeshSettings) -> list[Config]:
    """The collector's cluster, if one is configured."""
    if settings.trace_endpoint is None:
        return []
    url = urlsplit(settings.trace_endpoint)
    address = {"address": url.hostname, "port_value": url.port or 4317}
    http2 = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    cluster: Config = {
        "name": CLUSTER,
        "type": "STRICT_DNS",
        "connect_timeout": "1s",
        "load_assignment": {
            "cluster_name": CLUSTER,
            "endpoints": [
                {"lb_endpoints": [{"endpoint": {"address": {"socket_address": address}}}]}
            ],
        },
        "typed_extension_protocol_options": {
            http2: typed(http2, explicit_http_config={"http2_protocol_options": {}})
        },
    }
    if url.scheme == "https":
        cluster["transport_socket"] = extension(
            "envoy.transport_sockets.tls",
            "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
            sni=url.hostname,
            common_tls_context={
                "alpn_protocols": ["h2"],
                "validation_context": {"system_root_certs": {}},
            },
        )
    return [cluster]
