"""Rate limits: Envoy's token buckets per user and per IP address, from the RPCs' policies.

Definitions of the buckets are in mesh/rpc/limits.py; limit_svc counts for several gateways.
"""

# A call consumes a token from every bucket that its descriptors name, and is refused if one is
# empty. The route's metadata names the buckets (`route_metadata`); the filter defines them
# (`limits`). Example: PlaceBooking by user 7 consumes from user 7's common bucket (100 per minute,
# for all methods) and from user 7's bucket for PlaceBooking (10 per minute).
#
# Several gateways call limit_svc (`_global`), which adds a header when it has counted. Without the
# header, because limit_svc or its Redis is unavailable, each gateway counts locally with an equal
# share of each bucket.

from collections import Counter
from collections.abc import Collection
from math import ceil

from gateway import client_address, tokens
from gateway.extension import Config, extension, percent, seconds
from mesh.rpc.limits import BUCKET_KEY, DOMAIN, ENTRY_KEYS, Bucket, Scales, buckets
from mesh.rpc.policy import LimitKey, MethodPolicy, RateLimit
from mesh.settings import LIMIT_SERVICE

METADATA = "boxoffice.limits"
"""Namespace of the route metadata that names the buckets."""

_CEILING_FACTOR = 2
_MIN_CEILING_PER_MINUTE = 3000
_FILTER = "boxoffice.limits"
_PER_IP_CEILING = "boxoffice.per_ip_ceiling"
# Buckets kept per descriptor. The least recently used is evicted and starts full again.
_MAX_BUCKETS = 100_000
# The limit that Envoy reports for a call without buckets; lua/replies.lua removes it.
_UNLIMITED = 4_294_967_295
# Envoy's minimum.
_MIN_FILL_INTERVAL_SECONDS = 0.05
_TYPE = "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit"


_COUNTED_HEADER = "x-boxoffice-counted"
_NOT_COUNTED = "not_counted"
# Long enough for a busy machine. A call whose count comes later than this is counted twice: by
# limit_svc and locally.
_SERVICE_TIMEOUT_SECONDS = 0.25


def per_ip_ceiling(policies: Collection[MethodPolicy], scales: Scales) -> Config:
    """A limit per IP address on all requests, applied before any other work.

    Twice the largest limit per IP address in the contract, so that it is never reached first.
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
    requests = max(_MIN_CEILING_PER_MINUTE, int(_CEILING_FACTOR * per_minute))
    return _filter(
        _PER_IP_CEILING,
        rate_limits=[{"actions": [client_address.ADDRESS]}],
        descriptors=[
            {
                "entries": [{"key": ENTRY_KEYS[LimitKey.IP]}],
                "token_bucket": _token_bucket(
                    Bucket(_PER_IP_CEILING, RateLimit(requests, 60.0, LimitKey.IP)).scaled(scales)
                ),
            }
        ],
    )


def limits(policies: Collection[MethodPolicy], scales: Scales, gateways: int = 1) -> list[Config]:
    """The filters for the common limits and those of single methods.

    One local filter, because each adds its own headers and clients need those of the bucket with
    the fewest tokens. It is on for all routes: Envoy evaluates a route's override on the REST
    path before transcoding, so a filter that one route disables would be off for all REST calls.
    """
    if gateways == 1:
        return [_local(policies, scales, enable_x_ratelimit_headers="DRAFT_VERSION_03")]
    return [
        _global(policies),
        _local(policies, scales.shared_by(gateways), only_when=_not_counted()),
    ]


def route_metadata(policy: MethodPolicy) -> dict[str, str]:
    """Names of a method's buckets, by slot: the first, second … of those with the same key."""
    names: dict[str, str] = {}
    numbers: Counter[LimitKey] = Counter()
    for bucket in buckets(policy):
        key = bucket.limit.key
        names[_slot(key, numbers[key])] = bucket.name
        numbers[key] += 1
    return names


def _local(
    policies: Collection[MethodPolicy],
    scales: Scales,
    only_when: Config | None = None,
    **fields: object,
) -> Config:
    by_name = {bucket.name: bucket for policy in policies for bucket in buckets(policy)}
    condition = [] if only_when is None else [{"key": "header_match", "value": _NOT_COUNTED}]
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
                "token_bucket": _token_bucket(bucket.scaled(scales)),
            }
            for bucket in by_name.values()
            if not bucket.limit.shadow
        ],
        **fields,
    )


def _global(policies: Collection[MethodPolicy]) -> Config:
    """Counts with limit_svc. Without its answer in time the local filter counts."""
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


def _descriptors(policies: Collection[MethodPolicy], conditions: list[Config]) -> list[Config]:
    # Only its key's owner is counted in a bucket: addresses and networks look alike.
    slots = {slot for policy in policies for slot in route_metadata(policy)}
    return [
        {"actions": [_bucket_of_route(_slot(key, n)), _ACTIONS[key], *conditions]}
        for key in LimitKey
        for n in range(len(slots))
        if _slot(key, n) in slots
    ]


def _not_counted() -> Config:
    """An action that drops its descriptor if limit_svc has counted the request."""
    return {
        "header_value_match": {
            "descriptor_value": _NOT_COUNTED,
            "expect_match": False,
            "headers": [{"name": _COUNTED_HEADER, "present_match": True}],
        }
    }


def _token_bucket(bucket: Bucket) -> Config:
    """A bucket that refills evenly over its limit's window.

    100 per 60 s: 100 tokens, and one more every 0.6 s. If the interval would be below Envoy's
    minimum, several tokens are added at once.
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
        # Required by Envoy, but unused: only the descriptors' buckets count.
        token_bucket={
            "max_tokens": _UNLIMITED,
            "tokens_per_fill": _UNLIMITED,
            "fill_interval": "1s",
        },
        always_consume_default_token_bucket=False,
        max_dynamic_descriptors=_MAX_BUCKETS,
        # The default of both is 0 %.
        filter_enabled=percent(100),
        filter_enforced=percent(100),
        # Otherwise gRPC clients get UNAVAILABLE, which they retry at once.
        rate_limited_as_resource_exhausted=True,
        enable_retry_after_header=True,
        **fields,
    )


def _slot(key: LimitKey, n: int) -> str:
    return f"{key.name.lower()}_{n}"


def _bucket_of_route(slot: str) -> Config:
    # If the route's metadata has no value for the slot, Envoy drops the descriptor.
    path = [{"key": slot}]
    return {
        "metadata": {
            "descriptor_key": BUCKET_KEY,
            "source": "ROUTE_ENTRY",
            "metadata_key": {"key": METADATA, "path": path},
        }
    }


_ACTIONS: dict[LimitKey, Config] = {
    LimitKey.IP: client_address.ADDRESS,
    LimitKey.NETWORK: client_address.NETWORK,
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
