"""The services behind the gateway: which one serves what, and how it is reached.

Mutual TLS with the exact SPIFFE name, health checks, outlier detection, and how many calls
are at work in one at a time. What is routed to them is in routes.py.
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
    "boxoffice.stock": "stock_svc",
    "boxoffice.payments": "payment_svc",
}
"""The service that serves a proto package, without its version."""

JWKS_CLUSTER = "jwks"
"""The gateway itself: it transcodes the key set, which auth_svc serves as gRPC only."""

_CONNECT_TIMEOUT_SECONDS = 1.0
_HEALTH_INTERVAL_SECONDS = 1.0
_MAX_CONNECTIONS = 256
_MAX_READS_A_REPLICA = 64
_MAX_OTHERS_A_REPLICA = 128
"""So many are answered in time by one process on a slow core; more would make all late.

Those with effects also wait for other services, and have longer deadlines. Both leave room for
a burst: a hundred who buy at once are not too many.
"""
_LEAST_BEHIND_A_NAME = 2
"""Replicas, unless the settings know of more; the gateways grow in number as they do."""
_MAX_LIMIT_CALLS = 1024
_MAX_APART = 20_000
_APART = "_apart"
_KEY_SET = "/boxoffice.auth.v1.AuthService/GetJwks"
_HTTP2 = {
    "max_concurrent_streams": 100,
    "initial_stream_window_size": 65_536,
    "initial_connection_window_size": 1_048_576,
    # More often than this and gRPC servers close the connection for too many pings.
    "connection_keepalive": {"interval": "30s", "timeout": "5s"},
}


def clusters(settings: MeshSettings, policies: Collection[MethodPolicy]) -> list[Config]:
    """All services, limit_svc where it runs, and the gateway itself as the source of its keys."""
    apart = sorted({service_of(each) for each in policies if each.is_routed and _is_apart(each)})
    found = [
        *(_cluster(name, name, _calls(name, settings), settings) for name in SERVICES),
        *(_cluster(f"{name}{_APART}", name, (_MAX_APART,), settings) for name in apart),
    ]
    if settings.counts_globally:
        found.append(_cluster(LIMIT_SERVICE, LIMIT_SERVICE, (_MAX_LIMIT_CALLS,), settings))
    return [*found, _jwks(settings)]


def jwks_address(settings: MeshSettings) -> Config:
    """Where a gateway process transcodes the key set for itself.

    An abstract Unix socket: no file, no port, and one per admin port, which is one per process.
    Not Envoy's own internal listener: its main thread, which fetches the keys ahead of time,
    cannot connect to one.
    """
    return {"pipe": {"path": f"@boxoffice-jwks-{settings.envoy_admin_port}"}}


def service_of(policy: MethodPolicy) -> str:
    """Name of the service that serves an RPC."""
    package, _, _ = policy.service.rpartition(".")
    area, _, _ = package.rpartition(".")
    return SERVED_BY[area]


def destination(policy: MethodPolicy) -> Config:
    """The cluster of a route, and its priority there: reads, the others, and what is apart.

    Each of the three is counted for itself: a crowd that looks must leave room for those who
    buy, and both for those who watch, and for whoever asks whether the service is well.
    """
    service = service_of(policy)
    if _is_apart(policy):
        return {"cluster": f"{service}{_APART}"}
    if policy.has_effects:
        return {"cluster": service, "priority": "HIGH"}
    return {"cluster": service}


def reachable(host: str) -> str:
    """Address to connect to where `host` is the address that was listened on."""
    return "127.0.0.1" if ip_address(host).is_unspecified else host


def _is_apart(policy: MethodPolicy) -> bool:
    """Streams are open for minutes, by the thousand.

    A balancer must hear of health, and a gateway of keys, however many calls there are.
    """
    return (
        policy.server_streaming
        or policy.service.startswith("boxoffice.health.")
        or policy.path == _KEY_SET
    )


def _calls(service: str, settings: MeshSettings) -> tuple[int, int]:
    """So many reads, and so many of the others, are at work at a time."""
    replicas = settings.replicas
    if settings.host_name(service) is not None:
        replicas = max(replicas, _LEAST_BEHIND_A_NAME)
    return _MAX_READS_A_REPLICA * replicas, _MAX_OTHERS_A_REPLICA * replicas


def _cluster(name: str, service: str, calls: tuple[int, ...], settings: MeshSettings) -> Config:
    """`calls` are those at work at a time, by priority: DEFAULT, HIGH."""
    host = settings.host_name(service)
    if host is None:
        replicas = 1 if service == LIMIT_SERVICE else settings.replicas
        endpoints = [_endpoint(settings, settings.port(service, n)) for n in range(replicas)]
    else:
        address = {"address": host, "port_value": settings.port(service)}
        endpoints = [{"endpoint": {"address": {"socket_address": address}}}]
    return {
        "name": name,
        # By name: every address that the name has, asked for again and again.
        "type": "STATIC" if host is None else "STRICT_DNS",
        "dns_refresh_rate": "2s",
        "connect_timeout": seconds(_CONNECT_TIMEOUT_SECONDS),
        "lb_policy": "LEAST_REQUEST",
        # With half of the replicas gone all are tried: a service that has just come back
        # is reached before its next health check, and a refused connection costs nothing.
        # limit_svc is not tried then: calls would wait for what the gateway can do alone.
        "common_lb_config": {
            "healthy_panic_threshold": {"value": 0 if service == LIMIT_SERVICE else 50}
        },
        "load_assignment": {"cluster_name": name, "endpoints": [{"lb_endpoints": endpoints}]},
        "typed_extension_protocol_options": _http2(),
        "transport_socket": _mutual_tls(service, settings),
        "health_checks": [_health_check()],
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
                    # Until there is a connection. Then max_requests counts them.
                    "max_pending_requests": most,
                    "max_requests": most,
                    # Retries never add more than a tenth to the load of a service in trouble.
                    "retry_budget": {"budget_percent": {"value": 10}, "min_retry_concurrency": 3},
                    "track_remaining": True,
                }
                for priority, most in zip(("DEFAULT", "HIGH"), calls, strict=False)
            ]
        },
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
    address = {"address": reachable(settings.host), "port_value": port}
    return {"endpoint": {"address": {"socket_address": address}}}


def _http2() -> Config:
    name = "envoy.extensions.upstreams.http.v3.HttpProtocolOptions"
    return {
        name: typed(
            name,
            explicit_http_config={"http2_protocol_options": _HTTP2},
            # Spreads long-lived connections over replicas that came later.
            common_http_protocol_options={"max_requests_per_connection": 10_000},
        )
    }


def _mutual_tls(service: str, settings: MeshSettings) -> Config:
    folder = settings.certificates.resolve()
    return extension(
        "envoy.transport_sockets.tls",
        "envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext",
        common_tls_context={
            "alpn_protocols": ["h2"],
            # Both: as a client Envoy offers 1.2 at most unless told otherwise.
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
