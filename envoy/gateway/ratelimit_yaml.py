"""The limits as configuration of envoyproxy/ratelimit, which can replace limit_svc.

It counts in fixed windows of one unit: other windows become the next longer unit, with the
requests scaled up. It does not support bursts.
"""

from collections.abc import Collection, Iterator

from mesh.rpc.limits import BUCKET_KEY, DOMAIN, ENTRY_KEYS, Bucket, Scales, buckets
from mesh.rpc.policy import MethodPolicy

_UNITS = {"second": 1, "minute": 60, "hour": 3600, "day": 86400}


def text(policies: Collection[MethodPolicy], scales: Scales) -> str:
    """The file, one descriptor per bucket."""
    by_name = {bucket.name: bucket for policy in policies for bucket in buckets(policy)}
    lines = [f"domain: {DOMAIN}", "descriptors:"]
    for bucket in by_name.values():
        lines += _descriptor(bucket.scaled(scales))
    return "\n".join(lines) + "\n"


def _descriptor(bucket: Bucket) -> Iterator[str]:
    limit = bucket.limit
    unit, seconds = next(
        ((name, length) for name, length in _UNITS.items() if length >= limit.window_seconds),
        ("day", 86400),
    )
    yield f"  - key: {BUCKET_KEY}"
    yield f'    value: "{bucket.name}"'
    yield "    descriptors:"
    yield f"      - key: {ENTRY_KEYS[limit.key]}"
    if limit.shadow:
        yield "        shadow_mode: true"
    yield "        rate_limit:"
    yield f"          unit: {unit}"
    yield f"          requests_per_unit: {round(limit.requests * seconds / limit.window_seconds)}"
