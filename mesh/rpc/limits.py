"""The rate limit buckets of each RPC, derived from its policy.

The gateway's local buckets (envoy/gateway/limits.py), limit_svc and the export for
envoyproxy/ratelimit use these definitions.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from mesh.rpc.policy import (
    DEFAULT_LIMIT_REQUESTS,
    DEFAULT_LIMIT_WINDOW_SECONDS,
    LimitKey,
    MethodPolicy,
    RateLimit,
)
from mesh.settings import MeshSettings

DOMAIN = "boxoffice"
BUCKET_KEY = "bucket"
"""Key of the descriptor entry with the bucket's name."""
ENTRY_KEYS = {
    LimitKey.IP: "masked_remote_address",
    LimitKey.USER: "user",
    LimitKey.NETWORK: "masked_remote_address",
}
"""Key of the descriptor entry with the bucket's owner; an IPv6 address counts by its /64."""

EXEMPT_FROM_COMMON = frozenset(
    {
        # Load balancers and monitors probe it, often from one address.
        "boxoffice.health.v1.HealthService",
        # Verifiers of tokens fetch it, the gateway included.
        "boxoffice.auth.v1.AuthService/GetJwks",
    }
)
"""Services and methods without the common limit. The gateway's per-IP ceiling still counts them."""

_LARGEST = 4_294_967_294


@dataclass(frozen=True, slots=True)
class Scales:
    """Factors of the limits: of all, and in addition of those per IP address or network."""

    every: float = 1.0
    per_address: float = 1.0

    @classmethod
    def configured(cls, settings: MeshSettings) -> "Scales":
        return cls(settings.rate_limit_scale, settings.address_limit_scale)

    def of(self, key: LimitKey) -> float:
        return self.every if key is LimitKey.USER else self.every * self.per_address

    def shared_by(self, gateways: int) -> "Scales":
        """The factors for one of several gateways that count apart."""
        return Scales(self.every / gateways, self.per_address)


@dataclass(frozen=True, slots=True)
class Bucket:
    """A limit with the name of its buckets; each address or user has its own bucket.

    The name does not contain the limit, which can therefore change while gateways run.
    """

    name: str
    limit: RateLimit

    def scaled(self, scales: Scales) -> "Bucket":
        """The bucket with requests and burst multiplied by its factor, each at least 1."""
        limit, scale = self.limit, scales.of(self.limit.key)
        burst = None if limit.burst is None else _times(limit.burst, scale)
        requests = _times(limit.requests, scale)
        return Bucket(self.name, replace(limit, requests=requests, burst=burst))

    @property
    def size(self) -> int:
        """Requests that a full bucket admits at once."""
        return self.limit.burst or self.limit.requests

    @property
    def interval_seconds(self) -> float:
        """Time in which the bucket refills by one request."""
        return self.limit.window_seconds / self.limit.requests


def buckets(policy: MethodPolicy) -> Iterator[Bucket]:
    """The buckets of a method: first the common one, then those of its policy."""
    common = _common(policy)
    if common is not None:
        yield Bucket(f"common per {common.key.name.lower()}", common)
    for limit in policy.limits:
        per = f"per {limit.key.name.lower()} in {limit.window_seconds:g} s"
        yield Bucket(f"{policy.path} {per}", limit)


def _common(policy: MethodPolicy) -> RateLimit | None:
    """The limit shared by all methods; None for exempt methods and those with a higher limit."""
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
