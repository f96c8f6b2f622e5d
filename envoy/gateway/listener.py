"""The public listener: connection settings, HTTP filters in order, access log."""

from collections.abc import Collection
from pathlib import Path

from gateway import (
    api_keys,
    client_address,
    documentation,
    errors,
    limits,
    replies,
    requests,
    routes,
    tls,
    tokens,
    tracing,
    transcoding,
)
from gateway.extension import Config, extension, first_of
from mesh.rpc.errors import REASON_HEADER
from mesh.rpc.identity import PAYLOAD_HEADER
from mesh.rpc.limits import Scales
from mesh.rpc.policy import MAX_REQUEST_BYTES, MethodPolicy
from mesh.settings import MeshSettings

_BUFFER_BYTES = 32 * 1024

# Headers that only the gateway may set; a client's are removed.
_INTERNAL_HEADERS = (PAYLOAD_HEADER, "x-forwarded-client-cert")
_INTERNAL_PREFIXES = ("x-user-", "x-internal-", "x-jwt-", "x-boxoffice-", "x-envoy-")
# Removed too: names that are not valid metadata keys (those with a colon are HTTP's), and binary
# metadata, which no service reads. For both, gRPC would answer INTERNAL.
_INVALID_METADATA = (r"[^:]*[^a-z0-9_.:-].*", r".*-bin")
_SECURITY_HEADERS = {
    "cache-control": "no-store",
    # The pages of the sandbox set their own.
    "content-security-policy": "default-src 'none'; frame-ancestors 'none'",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "permissions-policy": "camera=(), geolocation=(), microphone=(), payment=(), usb=()",
}
_BODY_LIMIT = "boxoffice.body_limit"
_HSTS_SECONDS = 31_536_000
_SECURITY_HEADERS_FILTER = "boxoffice.security_headers"
# Compressing smaller responses costs more time than it saves.
_COMPRESS_FROM_BYTES = 1024
_COMPRESSED_TYPES = (
    "application/json",
    "text/html",
    "text/css",
    "text/javascript",
)


_GRPC_STATUS = first_of(
    ("DYNAMIC_METADATA", "boxoffice.log:grpc_status"), ("GRPC_STATUS", "SNAKE_STRING")
)
_REASON = first_of(("DYNAMIC_METADATA", "boxoffice.log:reason"), ("TRAILER", REASON_HEADER))
_LOG_FORMAT = {
    "time": "%START_TIME%",
    "request_id": "%REQ(X-REQUEST-ID)%",
    "method": "%REQ(X-ENVOY-ORIGINAL-METHOD?:METHOD)%",
    "path": requests.LOGGED_PATH,
    "rpc": "%ROUTE_NAME%",
    "protocol": "%PROTOCOL%",
    "status": "%RESPONSE_CODE%",
    # The first is set by lua/replies.lua, also for REST; the second is for statuses in trailers.
    "grpc_status": f"%COALESCE({_GRPC_STATUS})%",
    "reason": f"%COALESCE({_REASON})%",
    "user_id": f"%DYNAMIC_METADATA({tokens.FILTER}:{tokens.CLAIMS}:sub)%",
    "flags": "%RESPONSE_FLAGS%",
    "details": "%RESPONSE_CODE_DETAILS%",
    "duration_ms": "%DURATION%",
    "bytes_in": "%BYTES_RECEIVED%",
    "bytes_out": "%BYTES_SENT%",
    "client": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
    "upstream": "%UPSTREAM_CLUSTER%",
    "attempts": "%UPSTREAM_REQUEST_ATTEMPT_COUNT%",
}


def listener(policies: Collection[MethodPolicy], settings: MeshSettings, folder: Path) -> Config:
    address = {"address": settings.host, "port_value": settings.gateway_port}
    return {
        "name": "gateway",
        "address": {"socket_address": address},
        "listener_filters": client_address.listener_filters(settings),
        # A second gateway on the same port must fail instead of sharing it silently.
        "enable_reuse_port": False,
        "per_connection_buffer_limit_bytes": _BUFFER_BYTES,
        # A burst of new connections must not delay existing ones: Envoy serves those between two
        # accepts.
        "max_connections_to_accept_per_socket_event": 1,
        "filter_chains": [
            {
                "filters": [_connection_manager(policies, settings, folder)],
                **({"transport_socket": tls.server(settings)} if settings.gateway_tls else {}),
                # Without it an unfinished handshake holds its connection forever.
                "transport_socket_connect_timeout": "5s",
            }
        ],
    }


def descriptor_path(folder: Path) -> Path:
    """The transcoder's descriptors, in the gateway's folder."""
    return folder / "contract.binpb"


def public_folder(folder: Path) -> Path:
    """The folder of the public documentation (OpenAPI document, /docs)."""
    return folder / "public"


def _connection_manager(
    policies: Collection[MethodPolicy], settings: MeshSettings, folder: Path
) -> Config:
    return extension(
        "envoy.filters.network.http_connection_manager",
        "envoy.extensions.filters.network.http_connection_manager.v3.HttpConnectionManager",
        stat_prefix="gateway",
        codec_type="AUTO",
        access_log=[_access_log()],
        **tracing.of_requests(settings),
        early_header_mutation_extensions=[_set_internal_headers()],
        http_filters=_filters(policies, settings, folder),
        local_reply_config=errors.local_reply_config(),
        route_config=routes.route_configuration(policies, settings, _SECURITY_HEADERS_FILTER),
        **client_address.detection(settings),
        **_HARDENING,
    )


def _filters(
    policies: Collection[MethodPolicy], settings: MeshSettings, folder: Path
) -> list[Config]:
    """The HTTP filters: requests pass them in this order, responses in reverse."""
    return [
        _security_headers(settings),
        extension("envoy.filters.http.cors", "envoy.extensions.filters.http.cors.v3.Cors"),
        _compressor(),
        replies.lua(policies),
        # Before all filters that reject requests, so that it converts their errors for gRPC-Web.
        extension(
            "envoy.filters.http.grpc_web", "envoy.extensions.filters.http.grpc_web.v3.GrpcWeb"
        ),
        limits.per_ip_ceiling(policies, Scales.configured(settings)),
        _known_compression(),
        _decompressor(),
        # Counts inflated bytes.
        _body_limit(),
        _rest_body(),
        requests.lua(policies),
        # After Lua, which maps / to a page.
        documentation.file_server(public_folder(folder)),
        transcoding.transcoder(policies, str(descriptor_path(folder))),
        api_keys.exchange(),
        tokens.jwt_authn(policies),
        *limits.limits(policies, Scales.configured(settings), settings.gateways),
        # After transcoding, when the route with the method's limit is known.
        _method_body_limit(),
        extension(
            "envoy.filters.http.router",
            "envoy.extensions.filters.http.router.v3.Router",
            suppress_envoy_headers=True,
        ),
    ]


def _set_internal_headers() -> Config:
    remove: list[Config] = [{"remove": name} for name in _INTERNAL_HEADERS]
    remove += [
        {"remove_on_match": {"key_matcher": {"prefix": prefix, "ignore_case": True}}}
        for prefix in _INTERNAL_PREFIXES
    ]
    remove += [
        {"remove_on_match": {"key_matcher": {"safe_regex": {"regex": regex}}}}
        for regex in _INVALID_METADATA
    ]
    # The decompressor removes content-encoding; lua/requests.lua must know that there was one.
    encoding = {"key": requests.ENCODING_HEADER, "value": "%REQ(content-encoding)%"}
    remove.append({"append": {"header": encoding, "append_action": "APPEND_IF_EXISTS_OR_ADD"}})
    return extension(
        "boxoffice.internal_headers",
        "envoy.extensions.http.early_header_mutation.header_mutation.v3.HeaderMutation",
        mutations=remove,
    )


def _security_headers(settings: MeshSettings) -> Config:
    headers = dict(_SECURITY_HEADERS)
    if settings.gateway_tls:
        headers["strict-transport-security"] = f"max-age={_HSTS_SECONDS}; includeSubDomains"
    return extension(
        _SECURITY_HEADERS_FILTER,
        "envoy.extensions.filters.http.header_mutation.v3.HeaderMutation",
        mutations={
            "response_mutations": [
                {
                    "append": {
                        "header": {"key": key, "value": value},
                        "append_action": "ADD_IF_ABSENT",
                    }
                }
                for key, value in headers.items()
            ]
        },
    )


def _compressor() -> Config:
    """Before Lua in the list, so that responses reach Lua uncompressed."""
    return extension(
        "envoy.filters.http.compressor",
        "envoy.extensions.filters.http.compressor.v3.Compressor",
        response_direction_config={
            "common_config": {
                "min_content_length": _COMPRESS_FROM_BYTES,
                "content_type": _COMPRESSED_TYPES,
            },
            "weaken_etag_on_compress": True,
        },
        compressor_library=extension(
            "gzip",
            "envoy.extensions.compression.gzip.compressor.v3.Gzip",
            compression_level="BEST_SPEED",
            window_bits=15,
            memory_level=8,
        ),
    )


def _decompressor() -> Config:
    """Inflates bodies of requests. Responses of the services are never compressed."""
    return extension(
        "envoy.filters.http.decompressor",
        "envoy.extensions.filters.http.decompressor.v3.Decompressor",
        decompressor_library=extension(
            "gzip",
            "envoy.extensions.compression.gzip.decompressor.v3.Gzip",
            window_bits=15,
        ),
        request_direction_config={"advertise_accept_encoding": False},
        response_direction_config={
            "common_config": {
                "enabled": {
                    "default_value": False,
                    "runtime_key": "boxoffice.unused.inflate_responses",
                }
            }
        },
    )


def _known_compression() -> Config:
    """Rejects a `grpc-encoding` for which the services' gRPC runtime would answer INTERNAL."""
    header = {"name": "grpc-encoding"}
    known = {"safe_regex": {"regex": "|".join(errors.COMPRESSIONS)}}
    unknown = {
        "and_rules": {
            "rules": [
                {"header": {**header, "present_match": True}},
                {"not_rule": {"header": {**header, "string_match": known}}},
            ]
        }
    }
    return extension(
        "envoy.filters.http.rbac",
        "envoy.extensions.filters.http.rbac.v3.RBAC",
        rules={
            "action": "DENY",
            "policies": {
                errors.UNKNOWN_COMPRESSION: {
                    "permissions": [unknown],
                    "principals": [{"any": True}],
                }
            },
        },
    )


def _body_limit() -> Config:
    # Does not buffer the body, so that streams pass.
    return extension(
        _BODY_LIMIT,
        "envoy.extensions.filters.http.body_size_limit.v3.BodySizeLimit",
        max_request_bytes=MAX_REQUEST_BYTES,
    )


def _rest_body() -> Config:
    # Off, except for REST calls: see routes.py.
    return extension(
        routes.REST_BODY,
        "envoy.extensions.filters.http.buffer.v3.Buffer",
        max_request_bytes=MAX_REQUEST_BYTES,
    ) | {"disabled": True}


def _method_body_limit() -> Config:
    # Buffers the whole body, so that no partial message is forwarded; routes of client streams
    # disable it. Unlike the body_size_limit filter it supports limits per route.
    return extension(
        routes.METHOD_BODY_LIMIT,
        "envoy.extensions.filters.http.buffer.v3.Buffer",
        max_request_bytes=MAX_REQUEST_BYTES,
    )


def _access_log() -> Config:
    return extension(
        "envoy.access_loggers.stdout",
        "envoy.extensions.access_loggers.stream.v3.StdoutAccessLog",
        log_format={"json_format": _LOG_FORMAT, "omit_empty_values": True},
    )


# Without internal_address_config no address is internal. An empty one would make loopback
# internal, and internal clients may set Envoy's headers.
_HARDENING: Config = {
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
    # A client that keeps sending after an error may finish: closing at once would force it to
    # reconnect, which costs more.
    "delayed_close_timeout": "5s",
    # For probes of old balancers; HTTP/1.0 does not require a Host header.
    "http_protocol_options": {"accept_http_10": True, "default_host_for_http_10": "boxoffice"},
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
