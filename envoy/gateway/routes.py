"""One route per public RPC, on its gRPC path; 404 for all other paths."""

from collections.abc import Iterable

from gateway import client_address, documentation, limits, replies
from gateway.clusters import HEALTH_CLUSTER, destination, is_health
from gateway.extension import Config, extension, seconds, typed
from mesh.rpc.policy import MAX_REQUEST_BYTES, MethodPolicy
from mesh.settings import SERVICES, MeshSettings

METHOD_BODY_LIMIT = "boxoffice.method_body_limit"
REST_BODY = "boxoffice.rest_body"

# Lets the service's DEADLINE_EXCEEDED, which has details, arrive before the gateway's timeout.
_DEADLINE_SLACK_SECONDS = 0.25

# The request has not reached a handler, so retrying is safe for all methods.
_NOT_SENT = "connect-failure,refused-stream,reset-before-request"

# A frozen service delays an answer about health by this, three by three times as much.
_HEDGE_SECONDS = 0.05

_CORS_MAX_AGE_SECONDS = 600
_ALLOWED_HEADERS = (
    "authorization",
    "content-type",
    "idempotency-key",
    "if-match",
    "x-idempotency-key",
    "x-request-id",
    "x-grpc-web",
    "x-user-agent",
    "grpc-timeout",
    "last-event-id",
    "x-requested-with",
    # Tracing in browsers: W3C, and Sentry.
    "traceparent",
    "tracestate",
    "baggage",
    "sentry-trace",
)
_EXPOSED_HEADERS = (
    "x-request-id",
    "location",
    "etag",
    "idempotent-replayed",
    "ratelimit",
    "ratelimit-policy",
    "ratelimit-limit",
    "ratelimit-remaining",
    "ratelimit-reset",
    "x-ratelimit-limit",
    "x-ratelimit-remaining",
    "x-ratelimit-reset",
    "retry-after",
    "www-authenticate",
    "grpc-status",
    "grpc-message",
    "grpc-status-details-bin",
)


def routed(policies: Iterable[MethodPolicy], settings: MeshSettings) -> list[MethodPolicy]:
    """The policies of the RPCs that the gateway routes."""
    return [
        policy
        for policy in policies
        if policy.is_routed and (settings.is_development or not policy.development_only)
    ]


def route_configuration(
    policies: Iterable[MethodPolicy], settings: MeshSettings, security_headers: str
) -> Config:
    """Routes of the `routed` policies and of the documentation.

    `security_headers` is the name of the filter that writes these headers.
    """
    policies = list(policies)
    locations = dict(replies.locations(policies))
    return {
        "name": "boxoffice",
        **client_address.to_services(),
        # The cluster `nowhere` does not exist on purpose; a test checks the others.
        "validate_clusters": False,
        "virtual_hosts": [
            {
                "name": "boxoffice",
                "domains": ["*"],
                "typed_per_filter_config": {
                    "envoy.filters.http.cors": _cors(settings.cors_origins)
                },
                "routes": [
                    *(_route(policy, locations.get(policy.path), settings) for policy in policies),
                    *documentation.routes(security_headers, _NOWHERE),
                    _grpc_not_found(),
                    _rest(),
                ],
            }
        ],
    }


def _route(policy: MethodPolicy, location: str | None, settings: MeshSettings) -> Config:
    to = destination(policy)
    route: Config = {
        "name": policy.path.removeprefix("/"),
        # Without a gRPC matcher: the route is selected before grpc_web changes the content type.
        # The transcoder rejects requests that are neither gRPC nor a REST path of the contract.
        "match": {"path": policy.path},
        "metadata": {
            "filter_metadata": {
                limits.METADATA: limits.route_metadata(policy),
                replies.FILTER: replies.route_metadata(policy, location, settings),
            }
        },
        "route": {
            **to,
            **_deadlines(policy),
            "retry_policy": _retry_policy(policy),
            **(_HEDGED if to["cluster"] == HEALTH_CLUSTER else {}),
        },
        "typed_per_filter_config": {
            METHOD_BODY_LIMIT: _NO_BODY_LIMIT
            if policy.client_streaming
            else _buffer(buffer={"max_request_bytes": policy.max_request_bytes})
        },
    }
    if not policy.needs_token:
        # The gateway does not verify it for this route, so services must not see it.
        route["request_headers_to_remove"] = ["authorization"]
    return route


def _deadlines(policy: MethodPolicy) -> Config:
    if policy.deadline_seconds is None:
        # A stream without end has no timeouts.
        return {"timeout": "0s", "idle_timeout": "0s"}
    timeout = seconds(policy.deadline_seconds + _DEADLINE_SLACK_SECONDS)
    return {
        "timeout": timeout,
        # A client's grpc-timeout may only shorten it.
        "max_stream_duration": {
            "max_stream_duration": timeout,
            "grpc_timeout_header_max": timeout,
        },
    }


def _retry_policy(policy: MethodPolicy) -> Config:
    # An error of a health check is its result.
    is_retried = policy.retryable and not is_health(policy)
    return {
        "retry_on": f"{_NOT_SENT},unavailable" if is_retried else _NOT_SENT,
        "num_retries": 2,
        "retry_back_off": {"base_interval": "0.050s", "max_interval": "0.500s"},
        **_other_hosts(attempts=3),
    }


def _other_hosts(*, attempts: int) -> Config:
    """Retries at another replica, if `attempts` random choices find one."""
    return {
        "retry_host_predicate": [
            extension(
                "envoy.retry_host_predicates.previous_hosts",
                "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate",
            )
        ],
        "host_selection_retry_max_attempts": attempts,
    }


# Asks further services without giving up the first, which may be frozen or wait for one that is.
# The first answer counts.
_HEDGED: Config = {
    "retry_policy": {
        "retry_on": _NOT_SENT,
        "num_retries": len(SERVICES) - 1,
        "per_try_timeout": seconds(_HEDGE_SECONDS),
        # Otherwise the third service would be asked too late to wait for a frozen one.
        "retry_back_off": {"base_interval": "0.001s", "max_interval": "0.010s"},
        **_other_hosts(attempts=20),
    },
    "hedge_policy": {"hedge_on_per_try_timeout": True},
}

# Not a direct response, for which the CORS filter does not run: REST calls have this route until
# they are transcoded.
_NOWHERE: Config = {"cluster": "nowhere", "cluster_not_found_response_code": "NOT_FOUND"}


def _grpc_not_found() -> Config:
    is_grpc = {"name": "content-type", "string_match": {"prefix": "application/grpc"}}
    return {
        "name": "not_found",
        "match": {"prefix": "/", "headers": [is_grpc]},
        "route": _NOWHERE,
        # Without buffering, a stream to an unknown path gets its 404 at once.
        "typed_per_filter_config": {METHOD_BODY_LIMIT: _NO_BODY_LIMIT},
    }


def _rest() -> Config:
    """The route of REST calls until they are transcoded, and of unknown paths."""
    return {
        "name": "not_found",
        "match": {"prefix": "/"},
        "route": _NOWHERE,
        "typed_per_filter_config": {
            # lua/requests.lua reads whole bodies, for which Envoy's limit is 32 KiB otherwise.
            REST_BODY: _buffer(buffer={"max_request_bytes": MAX_REQUEST_BYTES}),
            METHOD_BODY_LIMIT: _NO_BODY_LIMIT,
        },
    }


def _buffer(**fields: object) -> Config:
    return typed("envoy.extensions.filters.http.buffer.v3.BufferPerRoute", **fields)


_NO_BODY_LIMIT = _buffer(disabled=True)


def _cors(origins: Iterable[str]) -> Config:
    return typed(
        "envoy.extensions.filters.http.cors.v3.CorsPolicy",
        allow_origin_string_match=[{"exact": origin} for origin in origins],
        allow_methods="GET, HEAD, POST, PUT, PATCH, DELETE",
        allow_headers=", ".join(_ALLOWED_HEADERS),
        expose_headers=", ".join(_EXPOSED_HEADERS),
        max_age=str(_CORS_MAX_AGE_SECONDS),
        allow_credentials=True,
        forward_not_matching_preflights=False,
    )
