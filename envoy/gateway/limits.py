"""Rate limits: token buckets in Envoy, per user and per IP address, from the policies.

A call consumes from every bucket that its descriptors name and passes when none is
empty. Which buckets a call names is in its route's metadata (`route_metadata`); the
buckets themselves are in the filter (`limits`). The shield stands before everything.

Example, PlaceBooking with a token of user 7: the common bucket of user 7 (100 a minute,
shared by all methods) and the bucket of user 7 for PlaceBooking (10 a minute).

Several gateways ask limit_svc (`counted_together`), which tells by a header that it has
counted. Without that header, because it or its Redis is away, each gateway counts by
itself, with its share of each bucket.
"""

from collections.abc import Collection
from math import ceil

from gateway import tokens
from gateway.extension import Config, extension, percent, seconds
from mesh.rpc.limits import BUCKET_KEY, DOMAIN, ENTRY_KEYS, Bucket, buckets
from mesh.rpc.policy import LimitKey, MethodPolicy, RateLimit
from mesh.settings import LIMIT_SERVICE

METADATA = "boxoffice.limits"
"""Namespace of the metadata in which a route names its buckets."""

_SHIELD_FACTOR = 2
_SHIELD_LEAST_REQUESTS_PER_MINUTE = 3000
_FILTER = "boxoffice.limits"
_SHIELD = "boxoffice.shield"
# Buckets that are kept per descriptor; the least recently used one goes first, full again.
_MAX_BUCKETS = 100_000
# A call that no bucket counts is reported as having this limit; lua/replies.lua hides that.
_UNLIMITED = 4_294_967_295
# Envoy takes no less.
_MIN_FILL_INTERVAL_SECONDS = 0.05
_TYPE = "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit"


_COUNTED_HEADER = "x-boxoffice-counted"
_ALONE = "alone"
# Long enough for a busy machine: a call that limit_svc counts and the gateway does not wait for
# is let through by both, each from buckets of its own.
_SERVICE_TIMEOUT_SECONDS = 0.25


def shield(policies: Collection[MethodPolicy], scale: float) -> Config:
    """A loose ceiling per IP address on everything, before any work is done for a request.

    Twice the largest limit per IP address in the contract, so that it cuts none of them.
    """
    per_minute = max(
        (
            limit.requests * 60 / limit.window_seconds
            for policy in policies
            for limit in policy.limits
            if limit.key is LimitKey.IP
        ),
        default=0.0,
    )
    requests = max(_SHIELD_LEAST_REQUESTS_PER_MINUTE, int(_SHIELD_FACTOR * per_minute))
    return _filter(
        _SHIELD,
        rate_limits=[{"actions": [{"remote_address": {}}]}],
        descriptors=[
            {
                "entries": [{"key": "remote_address"}],
                "token_bucket": _token_bucket(
                    Bucket(_SHIELD, RateLimit(requests, 60.0, LimitKey.IP)).scaled(scale)
                ),
            }
        ],
    )


def limits(policies: Collection[MethodPolicy], scale: float, gateways: int = 1) -> list[Config]:
    """The common limits and those of single methods.

    One filter, because each adds headers of its own, and clients shall see those of the
    bucket that is nearest to empty. It is on for every route: a filter that a route turns
    off stays off for all REST calls, because Envoy decides that on the path before transcoding.
    """
    if gateways == 1:
        return [_local(policies, scale, enable_x_ratelimit_headers="DRAFT_VERSION_03")]
    return [
        _counted_together(policies),
        _local(policies, scale / gateways, only_when=_alone()),
    ]


def route_metadata(policy: MethodPolicy) -> dict[str, str]:
    """Names of the buckets that a method's calls consume from, by slot."""
    return {_slot(n): bucket.name for n, bucket in enumerate(buckets(policy))}


def _local(
    policies: Collection[MethodPolicy],
    scale: float,
    only_when: Config | None = None,
    **fields: object,
) -> Config:
    by_name = {bucket.name: bucket for policy in policies for bucket in buckets(policy)}
    condition = [] if only_when is None else [{"key": "header_match", "value": _ALONE}]
    return _filter(
        _FILTER,
        rate_limits=_descriptors(policies, [] if only_when is None else [only_when]),
        descriptors=[
            {
                "entries": [
                    {"key": BUCKET_KEY, "value": bucket.name},
                    {"key": ENTRY_KEYS[bucket.limit.key]},
                    *condition,
                ],
                "token_bucket": _token_bucket(bucket.scaled(scale)),
            }
            for bucket in by_name.values()
            if not bucket.limit.shadow
        ],
        **fields,
    )


def _counted_together(policies: Collection[MethodPolicy]) -> Config:
    """Asks limit_svc. No answer in time is no refusal: the filter after this one counts then."""
    return extension(
        "envoy.filters.http.ratelimit",
        "envoy.extensions.filters.http.ratelimit.v3.RateLimit",
        domain=DOMAIN,
        timeout=seconds(_SERVICE_TIMEOUT_SECONDS),
        failure_mode_deny=False,
        rate_limited_as_resource_exhausted=True,
        enable_x_ratelimit_headers="DRAFT_VERSION_03",
        enable_retry_after_header=True,
        disable_x_envoy_ratelimited_header=True,
        rate_limits=_descriptors(policies, []),
        rate_limit_service={
            "transport_api_version": "V3",
            "grpc_service": {"envoy_grpc": {"cluster_name": LIMIT_SERVICE}},
        },
    )


def _descriptors(policies: Collection[MethodPolicy], more: list[Config]) -> list[Config]:
    slots = max((len(route_metadata(policy)) for policy in policies), default=0)
    return [
        {"actions": [_named_by_route(slot), _ACTIONS[key], *more]}
        for slot in range(slots)
        for key in LimitKey
    ]


def _alone() -> Config:
    """An action that ends its descriptor where limit_svc has counted the request."""
    return {
        "header_value_match": {
            "descriptor_value": _ALONE,
            "expect_match": False,
            "headers": [{"name": _COUNTED_HEADER, "present_match": True}],
        }
    }


def _token_bucket(bucket: Bucket) -> Config:
    """A bucket that fills evenly over its limit's window.

    100 in 60 s: 100 tokens, one more each 0.6 s. Nobody gets a second burst at the edge
    of a window. Where tokens would come too fast, several come at once.
    """
    interval = bucket.interval_seconds
    tokens_per_fill = max(1, ceil(_MIN_FILL_INTERVAL_SECONDS / interval))
    return {
        "max_tokens": max(bucket.size, tokens_per_fill),
        "tokens_per_fill": tokens_per_fill,
        "fill_interval": seconds(interval * tokens_per_fill),
    }


def _filter(name: str, **fields: object) -> Config:
    return extension(
        name,
        _TYPE,
        stat_prefix=name.rpartition(".")[2],
        # Required by Envoy; what counts are the descriptors.
        token_bucket={
            "max_tokens": _UNLIMITED,
            "tokens_per_fill": _UNLIMITED,
            "fill_interval": "1s",
        },
        always_consume_default_token_bucket=False,
        max_dynamic_descriptors=_MAX_BUCKETS,
        # Unset, both are 0 %: nothing would be limited.
        filter_enabled=percent(100),
        filter_enforced=percent(100),
        # Otherwise native gRPC clients see UNAVAILABLE, which they retry at once.
        rate_limited_as_resource_exhausted=True,
        enable_retry_after_header=True,
        **fields,
    )


def _slot(n: int) -> str:
    return f"bucket_{n}"


def _named_by_route(slot: int) -> Config:
    # Without a value in the route the whole descriptor is left out.
    path = [{"key": _slot(slot)}]
    return {
        "metadata": {
            "descriptor_key": BUCKET_KEY,
            "source": "ROUTE_ENTRY",
            "metadata_key": {"key": METADATA, "path": path},
        }
    }


_ACTIONS: dict[LimitKey, Config] = {
    LimitKey.IP: {"remote_address": {}},
    LimitKey.USER: {
        "metadata": {
            "descriptor_key": ENTRY_KEYS[LimitKey.USER],
            "source": "DYNAMIC",
            "metadata_key": {
                "key": tokens.FILTER,
                "path": [{"key": tokens.CLAIMS}, {"key": "sub"}],
            },
        }
    },
}
