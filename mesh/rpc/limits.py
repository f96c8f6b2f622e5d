"""Which buckets the calls of each RPC consume from, by the policies.

The gateway's own buckets (envoy/gateway/limits.py), limit_svc and the export for
envoyproxy/ratelimit all take them from here, so that they cannot disagree.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from mesh.rpc.policy import (
    DEFAULT_LIMIT_REQUESTS,
    DEFAULT_LIMIT_WINDOW_SECONDS,
    LimitKey,
    MethodPolicy,
    RateLimit,
)

DOMAIN = "boxoffice"
BUCKET_KEY = "bucket"
"""Key of the descriptor entry that has a bucket's name."""
ENTRY_KEYS = {LimitKey.IP: "remote_address", LimitKey.USER: "user"}
"""Key of the entry that says whose bucket it is."""

EXEMPT_FROM_COMMON = frozenset(
    {
        # Probed by load balancers and monitors, all of them from one address.
        "boxoffice.health.v1.HealthService",
        # Fetched by everyone who verifies tokens, this gateway included.
        "boxoffice.auth.v1.AuthService/GetJwks",
    }
)
"""Services and methods that the common limit does not count. The shield does."""

_LARGEST = 4_294_967_294


@dataclass(frozen=True, slots=True)
class Bucket:
    """A bucket per value of the limit's key, by the name that routes call it.

    The name has no number of the limit, so that a limit can change while gateways run.
    """

    name: str
    limit: RateLimit

    def scaled(self, scale: float) -> "Bucket":
        """The bucket with so many times the requests and the burst, at least 1."""
        limit = self.limit
        burst = None if limit.burst is None else _times(limit.burst, scale)
        return Bucket(
            self.name,
            RateLimit(
                _times(limit.requests, scale), limit.window_seconds, limit.key, burst, limit.shadow
            ),
        )

    @property
    def size(self) -> int:
        """Requests that a full bucket takes at once."""
        return self.limit.burst or self.limit.requests

    @property
    def interval_seconds(self) -> float:
        """Time in which one more request comes back."""
        return self.limit.window_seconds / self.limit.requests


def buckets(policy: MethodPolicy) -> Iterator[Bucket]:
    """The common bucket first, then the method's own."""
    common = _common(policy)
    if common is not None:
        yield Bucket(f"common per {common.key.name.lower()}", common)
    for limit in policy.limits:
        per = f"per {limit.key.name.lower()} in {limit.window_seconds:g} s"
        yield Bucket(f"{policy.path} {per}", limit)


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


def _times(requests: int, scale: float) -> int:
    return min(max(1, round(requests * scale)), _LARGEST)
