"""Envoy clusters of the services: addresses, mutual TLS, health checks, concurrency limits.

Routes to them are in routes.py.
"""

from collections.abc import Collection
from ipaddress import ip_address

from gateway.extension import Config, extension, seconds, typed
from mesh.rpc.identity import GATEWAY, SPIFFE_PREFIX
from mesh.rpc.policy import MethodPolicy
from mesh.settings import LIMIT_SERVICE, SERVICES, MeshSettings

SERVED_BY = {
    "boxoffice.auth": "auth_svc",
    "boxoffice.catalogue": "booking_svc",
    "boxoffice.bookings": "booking_svc",
    "boxoffice.health": "booking_svc",
    "boxoffice.webhooks": "booking_svc",
    "boxoffice.queueing": "booking_svc",
    "boxoffice.stock": "stock_svc",
    "boxoffice.payments": "payment_svc",
}
"""The service that implements a proto package, without the package's version."""

HEALTH_CLUSTER = "health"
"""All replicas of all services: each can answer for the health of all."""

JWKS_CLUSTER = "jwks"
"""The gateway itself, which transcodes the key set that auth_svc serves as gRPC."""

_CONNECT_TIMEOUT_SECONDS = 1.0
_HEALTH_INTERVAL_SECONDS = 1.0
# Enough for the calls of 20 replicas, _CALLS_PER_CONNECTION on each.
_MAX_CONNECTIONS = 1024
# Concurrent calls that one process on a slow core completes within their deadlines. Calls with
# effects also wait for other services and have longer deadlines. The numbers leave room for bursts.
_MAX_READS_PER_REPLICA = 64
_MAX_OTHERS_PER_REPLICA = 128
# Replicas behind a DNS name, unless BOXOFFICE_REPLICAS is larger.
_MIN_DNS_REPLICAS = 2
_MAX_LIMIT_CALLS = 1024
_MAX_STREAMING = 20_000
_STREAMING = "_streaming"
_KEY_SET = "/boxoffice.auth.v1.AuthService/GetJwks"
# Not GetCacheHealth: only some services are configured with Redis.
_OF_ALL_SERVICES = (
    "/boxoffice.health.v1.HealthService/GetHealth",
    "/boxoffice.health.v1.HealthService/GetDatabaseHealth",
)
_STREAMS_PER_CONNECTION = 100
# A process has several servers on its port (mesh/rpc/server.py), and each connection reaches one.
# With few calls on each connection, concurrent calls use more of the servers.
_CALLS_PER_CONNECTION = 4
_HTTP2 = {
    "initial_stream_window_size": 65_536,
    "initial_connection_window_size": 1_048_576,
    # With a shorter interval gRPC servers close the connection because of too many pings.
    "connection_keepalive": {"interval": "30s", "timeout": "5s"},
}


def clusters(settings: MeshSettings, policies: Collection[MethodPolicy]) -> list[Config]:
    """The clusters of all services, of limit_svc if it runs, and of the gateway's own key set."""
    streaming = sorted(
        {service_of(policy) for policy in policies if policy.is_routed and _is_streaming(policy)}
    )
    services = [
        *(_cluster(name, name, _max_calls(name, settings), settings) for name in SERVICES),
        *(_cluster(f"{name}{_STREAMING}", name, (_MAX_STREAMING,), settings) for name in streaming),
    ]
    services.append(_health(settings))
    if settings.counts_globally:
        services.append(_cluster(LIMIT_SERVICE, LIMIT_SERVICE, (_MAX_LIMIT_CALLS,), settings))
    return [*services, _jwks(settings)]


def jwks_address(settings: MeshSettings) -> Config:
    """The address on which a gateway process transcodes the key set for itself.

    An abstract Unix socket named after the admin port, which is unique per process. Envoy's main
    thread, which prefetches the keys, cannot connect to an internal listener.
    """
    return {"pipe": {"path": f"@boxoffice-jwks-{settings.envoy_admin_port}"}}


def service_of(policy: MethodPolicy) -> str:
    """Name of the service that implements an RPC."""
    package, _, _ = policy.service.rpartition(".")
    area, _, _ = package.rpartition(".")
    return SERVED_BY[area]


def destination(policy: MethodPolicy) -> Config:
    """The cluster of a route and, for calls with effects, its priority.

    Reads, calls with effects, and streaming calls have separate concurrency limits, so that a
    burst of one kind does not block the others.
    """
    if policy.path in _OF_ALL_SERVICES:
        return {"cluster": HEALTH_CLUSTER}
    service = service_of(policy)
    if _is_streaming(policy):
        return {"cluster": f"{service}{_STREAMING}"}
    if policy.has_effects:
        return {"cluster": service, "priority": "HIGH"}
    return {"cluster": service}


def reachable(host: str) -> str:
    """The address to connect to for a listener on `host`."""
    return "127.0.0.1" if ip_address(host).is_unspecified else host


def is_health(policy: MethodPolicy) -> bool:
    """Whether an RPC reports health. Its errors are results."""
    return policy.service.startswith("boxoffice.health.")


def _is_streaming(policy: MethodPolicy) -> bool:
    """Whether an RPC uses the streaming cluster: streams, which stay open for minutes, and calls
    that must work under any load (health of the cache, key set).
    """
    return policy.server_streaming or is_health(policy) or policy.path == _KEY_SET


def _max_calls(service: str, settings: MeshSettings) -> tuple[int, int]:
    """The maximum of concurrent reads and of concurrent other calls."""
    replicas = settings.replicas
    if settings.host_name(service) is not None:
        replicas = max(replicas, _MIN_DNS_REPLICAS)
    return _MAX_READS_PER_REPLICA * replicas, _MAX_OTHERS_PER_REPLICA * replicas


def _cluster(name: str, service: str, max_calls: tuple[int, ...], settings: MeshSettings) -> Config:
    """`max_calls` is the maximum of concurrent calls by priority: DEFAULT, HIGH."""
    return {
        **_endpoints(name, (service,), settings),
        # With half of the replicas unhealthy Envoy tries all: a restarted replica is used before
        # its next health check, and a refused connection is cheap. Not so for limit_svc, because
        # calls would wait for it although the gateway can count alone.
        "common_lb_config": {
            "healthy_panic_threshold": {"value": 0 if service == LIMIT_SERVICE else 50}
        },
        "typed_extension_protocol_options": _http2(
            _STREAMS_PER_CONNECTION if name.endswith(_STREAMING) else _CALLS_PER_CONNECTION
        ),
        "outlier_detection": {
            "consecutive_5xx": 5,
            "interval": "1s",
            "base_ejection_time": "5s",
            "max_ejection_percent": 50,
        },
        "circuit_breakers": {
            "thresholds": [
                {
                    "priority": priority,
                    "max_connections": _MAX_CONNECTIONS,
                    # Bounds calls while there is no connection; max_requests bounds them later.
                    "max_pending_requests": maximum,
                    "max_requests": maximum,
                    # Retries add at most a tenth to the load of a failing service.
                    "retry_budget": {"budget_percent": {"value": 10}, "min_retry_concurrency": 3},
                    "track_remaining": True,
                }
                for priority, maximum in zip(("DEFAULT", "HIGH"), max_calls, strict=False)
            ]
        },
    }


def _health(settings: MeshSettings) -> Config:
    """Without outlier detection: a service that reports another's failure is healthy itself."""
    return {
        **_endpoints(HEALTH_CLUSTER, SERVICES, settings),
        "typed_extension_protocol_options": _http2(_STREAMS_PER_CONNECTION),
        "circuit_breakers": {"thresholds": [{"max_retries": _MAX_STREAMING}]},
    }


def _endpoints(name: str, services: tuple[str, ...], settings: MeshSettings) -> Config:
    """The part of a cluster that says where it leads: all replicas of the services."""
    endpoints = []
    for service in services:
        host = settings.host_name(service)
        if host is None:
            replicas = 1 if service == LIMIT_SERVICE else settings.replicas
            endpoints += [_endpoint(settings, settings.port(service, n)) for n in range(replicas)]
        else:
            address = {"address": host, "port_value": settings.port(service)}
            endpoints.append({"endpoint": {"address": {"socket_address": address}}})
    return {
        "name": name,
        # STRICT_DNS uses all addresses of the name and resolves it every 2 s.
        "type": "STATIC" if settings.service_domain is None else "STRICT_DNS",
        "dns_refresh_rate": "2s",
        "connect_timeout": seconds(_CONNECT_TIMEOUT_SECONDS),
        "lb_policy": "LEAST_REQUEST",
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]},
        "transport_socket": _mutual_tls(services, settings),
        "health_checks": [_health_check()],
    }


def _jwks(settings: MeshSettings) -> Config:
    endpoint = {"endpoint": {"address": jwks_address(settings)}}
    return {
        "name": JWKS_CLUSTER,
        "type": "STATIC",
        "connect_timeout": seconds(_CONNECT_TIMEOUT_SECONDS),
        "load_assignment": {
            "cluster_name": JWKS_CLUSTER,
            "endpoints": [{"lb_endpoints": [endpoint]}],
        },
    }


def _endpoint(settings: MeshSettings, port: int) -> Config:
    host = settings.peer_host or reachable(settings.host)
    address = {"address": host, "port_value": port}
    return {"endpoint": {"address": {"socket_address": address}}}


def _http2(max_streams: int) -> Config:
    name = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    return {
        name: typed(
            name,
            explicit_http_config={
                "http2_protocol_options": {**_HTTP2, "max_concurrent_streams": max_streams}
            },
            # Reconnects from time to time, so that new replicas get connections too.
            common_http_protocol_options={"max_requests_per_connection": 10_000},
        )
    }


def _mutual_tls(services: tuple[str, ...], settings: MeshSettings) -> Config:
    folder = settings.certificates.resolve()
    return extension(
        "envoy.transport_sockets.tls",
        "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        common_tls_context={
            "alpn_protocols": ["h2"],
            # Both, because Envoy as a client offers at most 1.2 by default.
            "tls_params": {
                "tls_minimum_protocol_version": "TLSv1_3",
                "tls_maximum_protocol_version": "TLSv1_3",
            },
            "tls_certificates": [
                {
                    "certificate_chain": {"filename": str(folder / f"{GATEWAY}.pem")},
                    "private_key": {"filename": str(folder / f"{GATEWAY}.key")},
                }
            ],
            "validation_context": {
                "trusted_ca": {"filename": str(folder / "ca.pem")},
                "match_typed_subject_alt_names": [
                    {"san_type": "URI", "matcher": {"exact": SPIFFE_PREFIX + service}}
                    for service in services
                ],
            },
        },
    )


def _health_check() -> Config:
    interval = seconds(_HEALTH_INTERVAL_SECONDS)
    return {
        "grpc_health_check": {},
        "timeout": "1s",
        "interval": interval,
        "no_traffic_interval": interval,
        "unhealthy_threshold": 2,
        "healthy_threshold": 1,
    }
