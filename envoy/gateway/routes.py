"""One route per RPC that the outside may call, on its gRPC path; 404 for all else."""

from collections.abc import Iterable

from gateway import limits, replies
from gateway.clusters import cluster_of
from gateway.extension import Config, extension, seconds, typed
from mesh.policy import MethodPolicy
from mesh.settings import MeshSettings

# The service's own DEADLINE_EXCEEDED, with its details, arrives before the gateway's.
_DEADLINE_SLACK_SECONDS = 0.25

# The request has not reached a handler: repeating it is safe for every method.
_NOT_SENT = "connect-failure,refused-stream,reset-before-request"

_CORS_MAX_AGE_SECONDS = 600
_ALLOWED_HEADERS = (
    "authorization",
    "content-type",
    "idempotency-key",
    "x-idempotency-key",
    "x-request-id",
    "x-grpc-web",
    "x-user-agent",
    "grpc-timeout",
)
_EXPOSED_HEADERS = (
    "x-request-id",
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
    """The policies of the RPCs that the gateway lets through."""
    return [
        policy
        for policy in policies
        if policy.is_routed and (settings.is_development or not policy.development_only)
    ]


def route_configuration(policies: Iterable[MethodPolicy], settings: MeshSettings) -> Config:
    """Routes of `policies`, which are those that are `routed`."""
    return {
        "name": "boxoffice",
        # One route leads nowhere on purpose; a test checks the others.
        "validate_clusters": False,
        "virtual_hosts": [
            {
                "name": "boxoffice",
                "domains": ["*"],
                "typed_per_filter_config": {
                    "envoy.filters.http.cors": _cors(settings.cors_origins)
                },
                "routes": [*(_route(policy) for policy in policies), _nothing_here()],
            }
        ],
    }


def _route(policy: MethodPolicy) -> Config:
    route: Config = {
        "name": policy.path.removeprefix("/"),
        # Not "grpc": the route is chosen before grpc_web changes the content type. A request
        # that is neither gRPC nor a REST path of the contract ends at the transcoder.
        "match": {"path": policy.path},
        "metadata": {
            "filter_metadata": {
                limits.METADATA: limits.route_metadata(policy),
                replies.FILTER: {replies.SUCCESS_STATUS: policy.success_status},
            }
        },
        "route": {
            "cluster": cluster_of(policy),
            **_deadlines(policy),
            "retry_policy": _retry_policy(policy),
        },
    }
    if not policy.needs_token:
        # Nobody has verified it, so no service shall see it.
        route["request_headers_to_remove"] = ["authorization"]
    return route


def _deadlines(policy: MethodPolicy) -> Config:
    if policy.deadline_seconds is None:
        # A stream without end: neither a total time nor a longest silence.
        return {"timeout": "0s", "idle_timeout": "0s"}
    longest = seconds(policy.deadline_seconds + _DEADLINE_SLACK_SECONDS)
    return {
        "timeout": longest,
        # A client's grpc-timeout may only shorten it.
        "max_stream_duration": {
            "max_stream_duration": longest,
            "grpc_timeout_header_max": longest,
        },
    }


def _retry_policy(policy: MethodPolicy) -> Config:
    return {
        "retry_on": f"{_NOT_SENT},unavailable" if policy.retryable else _NOT_SENT,
        "num_retries": 2,
        "retry_back_off": {"base_interval": "0.050s", "max_interval": "0.500s"},
        # Another replica first, where there is one.
        "retry_host_predicate": [
            extension(
                "envoy.retry_host_predicates.previous_hosts",
                "envoy.extensions.retry.host.previous_hosts.v3.PreviousHostsPredicate",
            )
        ],
        "host_selection_retry_max_attempts": 3,
    }


def _nothing_here() -> Config:
    # No direct response: the CORS filter leaves such routes out, and this is the one that
    # a REST call has until it is transcoded.
    return {
        "name": "nothing",
        "match": {"prefix": "/"},
        "route": {"cluster": "nowhere", "cluster_not_found_response_code": "NOT_FOUND"},
    }


def _cors(origins: Iterable[str]) -> Config:
    return typed(
        "envoy.extensions.filters.http.cors.v3.CorsPolicy",
        allow_origin_string_match=[{"exact": origin} for origin in origins],
        allow_methods="GET, POST, PUT, PATCH, DELETE",
        allow_headers=", ".join(_ALLOWED_HEADERS),
        expose_headers=", ".join(_EXPOSED_HEADERS),
        max_age=str(_CORS_MAX_AGE_SECONDS),
        allow_credentials=True,
        forward_not_matching_preflights=False,
    )
