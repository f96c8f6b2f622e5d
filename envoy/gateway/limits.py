"""Rate limits: token buckets in Envoy, per user and per IP address, from the policies.

A call consumes from every bucket that its descriptors name and passes when none is
empty. Which buckets a call names is in its route's metadata (`route_metadata`); the
buckets themselves are in the filter (`limits`). The shield stands before everything.

Example, PlaceBooking with a token of user 7: the common bucket of user 7 (100 a minute,
shared by all methods) and the bucket of user 7 for PlaceBooking (10 a minute).
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from math import ceil

from gateway import tokens
from gateway.extension import Config, extension, percent, seconds
from mesh.policy import (
    DEFAULT_LIMIT_REQUESTS,
    DEFAULT_LIMIT_WINDOW_SECONDS,
    LimitKey,
    MethodPolicy,
    RateLimit,
)

METADATA = "boxoffice.limits"
"""Namespace of the metadata in which a route names its buckets."""

EXEMPT_FROM_COMMON = frozenset(
    {
        # Probed by load balancers and monitors, all of them from one address.
        "boxoffice.health.v1.HealthService",
        # Fetched by everyone who verifies tokens, this gateway included.
        "boxoffice.auth.v1.AuthService/GetJwks",
    }
)
"""Services and methods that the common limit does not count. The shield does."""

_SHIELD_FACTOR = 2
_SHIELD_LEAST_REQUESTS_PER_MINUTE = 3000
_FILTER = "boxoffice.limits"
_SHIELD = "boxoffice.shield"
# Buckets that are kept per descriptor; the least recently used one goes first, full again.
_MAX_BUCKETS = 100_000
# A call that no bucket counts is reported as having this limit; lua/replies.lua hides that.
_UNLIMITED = 4_294_967_295
_LARGEST_BUCKET = _UNLIMITED - 1
# Envoy takes no less.
_MIN_FILL_INTERVAL_SECONDS = 0.05
_TYPE = "envoy.extensions.filters.http.local_ratelimit.v3.LocalRateLimit"


@dataclass(frozen=True, slots=True)
class _Bucket:
    """A bucket per value of the limit's key, by the name that routes call it."""

    name: str
    limit: RateLimit


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
                "token_bucket": _token_bucket(RateLimit(requests, 60.0, LimitKey.IP), scale),
            }
        ],
    )


def limits(policies: Collection[MethodPolicy], scale: float) -> Config:
    """The common limits and those of single methods, in one filter.

    One, because each filter adds headers of its own, and clients shall see those of the
    bucket that is nearest to empty. It is on for every route: a filter that a route turns
    off stays off for all REST calls, because Envoy decides that on the path before transcoding.
    """
    buckets = {bucket.name: bucket for policy in policies for bucket in _buckets(policy)}
    slots = max((len(route_metadata(policy)) for policy in policies), default=0)
    return _filter(
        _FILTER,
        enable_x_ratelimit_headers="DRAFT_VERSION_03",
        rate_limits=[
            {"actions": [_named_by_route(slot), _ACTIONS[key]]}
            for slot in range(slots)
            for key in LimitKey
        ],
        descriptors=[
            {
                "entries": [
                    {"key": "bucket", "value": bucket.name},
                    {"key": _ENTRIES[bucket.limit.key]},
                ],
                "token_bucket": _token_bucket(bucket.limit, scale),
            }
            for bucket in buckets.values()
        ],
    )


def route_metadata(policy: MethodPolicy) -> dict[str, str]:
    """Names of the buckets that a method's calls consume from, by slot."""
    return {_slot(n): bucket.name for n, bucket in enumerate(_buckets(policy))}


def _buckets(policy: MethodPolicy) -> Iterator[_Bucket]:
    common = _common(policy)
    if common is not None:
        yield _Bucket(f"common per {common.key.name.lower()}", common)
    for limit in policy.limits:
        per = f"{limit.requests} in {limit.window_seconds:g} s per {limit.key.name.lower()}"
        yield _Bucket(f"{policy.path}: {per}", limit)


def _common(policy: MethodPolicy) -> RateLimit | None:
    """The limit that all methods share, unless the method is to get more than it."""
    if {policy.service, policy.path.removeprefix("/")} & EXEMPT_FROM_COMMON:
        return None
    key = LimitKey.USER if policy.needs_token else LimitKey.IP
    common = RateLimit(DEFAULT_LIMIT_REQUESTS, DEFAULT_LIMIT_WINDOW_SECONDS, key)
    if any(limit.key is key and _rate(limit) > _rate(common) for limit in policy.limits):
        return None
    return common


def _rate(limit: RateLimit) -> float:
    return limit.requests / limit.window_seconds


def _token_bucket(limit: RateLimit, scale: float) -> Config:
    """A bucket that holds one window's requests and fills evenly over the window.

    100 in 60 s: 100 tokens, one more each 0.6 s. Nobody gets a second burst at the edge
    of a window. Where tokens would come too fast, several come at once.
    """
    size = min(max(1, round(limit.requests * scale)), _LARGEST_BUCKET)
    interval = limit.window_seconds / size
    tokens_per_fill = max(1, ceil(_MIN_FILL_INTERVAL_SECONDS / interval))
    return {
        "max_tokens": size,
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
            "descriptor_key": "bucket",
            "source": "ROUTE_ENTRY",
            "metadata_key": {"key": METADATA, "path": path},
        }
    }


_ENTRIES = {LimitKey.IP: "remote_address", LimitKey.USER: "user"}
_ACTIONS: dict[LimitKey, Config] = {
    LimitKey.IP: {"remote_address": {}},
    LimitKey.USER: {
        "metadata": {
            "descriptor_key": "user",
            "source": "DYNAMIC",
            "metadata_key": {
                "key": tokens.FILTER,
                "path": [{"key": tokens.CLAIMS}, {"key": "sub"}],
            },
        }
    },
}
