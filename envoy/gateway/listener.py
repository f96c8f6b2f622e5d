"""The one door: its connections, its filters in their order, its log."""

from collections.abc import Collection

from gateway import errors, limits, replies, tokens, transcoding
from gateway.extension import Config, extension
from gateway.routes import route_configuration
from mesh.identity import PAYLOAD_HEADER
from mesh.policy import MethodPolicy
from mesh.settings import MeshSettings

_BUFFER_BYTES = 32 * 1024

# What only the mesh may say. A client's own must not reach a service.
_INTERNAL_HEADERS = (PAYLOAD_HEADER, "x-forwarded-client-cert")
_INTERNAL_PREFIXES = ("x-user-", "x-internal-", "x-jwt-", "x-boxoffice-", "x-envoy-")
_SECURITY_HEADERS = {
    "cache-control": "no-store",
    # A page of the sandbox brings its own.
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
}

_LOG_FORMAT = {
    "time": "%START_TIME%",
    "request_id": "%REQ(X-REQUEST-ID)%",
    "method": "%REQ(X-ENVOY-ORIGINAL-METHOD?:METHOD)%",
    # NQ leaves the query out: it may carry what nobody should read in a log.
    "path": "%PATH(NQ:ORIG_OR_PATH)%",
    "rpc": "%ROUTE_NAME%",
    "protocol": "%PROTOCOL%",
    "status": "%RESPONSE_CODE%",
    "grpc_status": "%GRPC_STATUS%",
    "flags": "%RESPONSE_FLAGS%",
    "details": "%RESPONSE_CODE_DETAILS%",
    "duration_ms": "%DURATION%",
    "bytes_in": "%BYTES_RECEIVED%",
    "bytes_out": "%BYTES_SENT%",
    "client": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
    "upstream": "%UPSTREAM_CLUSTER%",
    "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
}


def listener(
    policies: Collection[MethodPolicy], settings: MeshSettings, descriptor_path: str
) -> Config:
    address = {"address": settings.host, "port_value": settings.gateway_port}
    return {
        "name": "gateway",
        "address": {"socket_address": address},
        # Off for a single gateway: a second one on the port must fail, not share it silently.
        "enable_reuse_port": settings.gateways > 1,
        "per_connection_buffer_limit_bytes": _BUFFER_BYTES,
        "filter_chains": [{"filters": [_connection_manager(policies, settings, descriptor_path)]}],
    }


def _connection_manager(
    policies: Collection[MethodPolicy], settings: MeshSettings, descriptor_path: str
) -> Config:
    return extension(
        "envoy.filters.network.http_connection_manager",
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="gateway",
        codec_type="AUTO",
        access_log=[_access_log()],
        early_header_mutation_extensions=[_strip_internal_headers()],
        http_filters=_filters(policies, settings, descriptor_path),
        local_reply_config=errors.local_reply_config(),
        route_config=route_configuration(policies, settings),
        **_HARDENING,
    )


def _filters(
    policies: Collection[MethodPolicy], settings: MeshSettings, descriptor_path: str
) -> list[Config]:
    """A request meets them from first to last, its answer from last to first."""
    return [
        _security_headers(),
        extension("envoy.filters.http.cors", "envoy.extensions.filters.http.cors.v3.Cors"),
        replies.lua(),
        limits.shield(policies, settings.rate_limit_scale),
        # The transcoder's own limit does not count what it drops: fields that it does not know.
        extension(
            "envoy.filters.http.buffer",
            "envoy.extensions.filters.http.buffer.v3.Buffer",
            max_request_bytes=transcoding.MAX_BODY_BYTES,
        ),
        extension(
            "envoy.filters.http.grpc_web", "envoy.extensions.filters.http.grpc_web.v3.GrpcWeb"
        ),
        transcoding.transcoder(policies, descriptor_path),
        tokens.jwt_authn(policies),
        limits.limits(policies, settings.rate_limit_scale),
        extension(
            "envoy.filters.http.router",
            "envoy.extensions.filters.http.router.v3.Router",
            suppress_envoy_headers=True,
        ),
    ]


def _strip_internal_headers() -> Config:
    remove: list[Config] = [{"remove": name} for name in _INTERNAL_HEADERS]
    remove += [
        {"remove_on_match": {"key_matcher": {"prefix": prefix, "ignore_case": True}}}
        for prefix in _INTERNAL_PREFIXES
    ]
    return extension(
        "boxoffice.strip",
        "envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation",
        mutations=remove,
    )


def _security_headers() -> Config:
    return extension(
        "boxoffice.security_headers",
        "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation",
        mutations={
            "response_mutations": [
                {
                    "append": {
                        "header": {"key": key, "value": value},
                        "append_action": "ADD_IF_ABSENT",
                    }
                }
                for key, value in _SECURITY_HEADERS.items()
            ]
        },
    )


def _access_log() -> Config:
    return extension(
        "envoy.access_loggers.stdout",
        "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog",
        log_format={"json_format": _LOG_FORMAT, "omit_empty_values": True},
    )


# No internal_address_config: without it no address is internal; an empty one makes
# loopback internal, and internal clients may set Envoy's own headers.
_HARDENING: Config = {
    "use_remote_address": True,
    "xff_num_trusted_hops": 0,
    "normalize_path": True,
    "merge_slashes": True,
    "path_with_escaped_slashes_action": "REJECT_REQUEST",
    "forward_client_cert_details": "SANITIZE",
    "server_name": "boxoffice",
    "generate_request_id": True,
    "preserve_external_request_id": True,
    "always_set_request_id_in_response": True,
    "max_request_headers_kb": 32,
    "request_headers_timeout": "5s",
    "request_timeout": "15s",
    "stream_idle_timeout": "30s",
    "common_http_protocol_options": {
        "headers_with_underscores_action": "REJECT_REQUEST",
        "max_headers_count": 64,
        "idle_timeout": "300s",
        "max_connection_duration": "3600s",
    },
    "http2_protocol_options": {
        "max_concurrent_streams": 100,
        "initial_stream_window_size": 65_536,
        "initial_connection_window_size": 1_048_576,
    },
}
