"""Envoy's RateLimitService: descriptors to buckets, verdicts to a response."""

from collections.abc import Awaitable

import grpc
from google.protobuf import duration_pb2

from boxoffice.limits.v1 import rate_limit_service_pb2 as pb
from boxoffice.limits.v1.rate_limit_service_pb2_grpc import RateLimitServiceServicer
from limit_svc.counting import Counter, Demand, Verdict
from limit_svc.rules import Rules
from mesh.errors import FieldViolation, invalid
from mesh.observability import metrics
from mesh.redis.link import RedisAwayError
from mesh.rpc.limits import BUCKET_KEY, ENTRY_KEYS

_Context = grpc.aio.ServicerContext[pb.RateLimitRequest, Awaitable[pb.RateLimitResponse]]

COUNTED = "x-boxoffice-counted"
"""Tells the gateway's local limits that the request is counted. The gateway removes a client's."""

_MAX_DESCRIPTORS = 16
_NEAR = 0.8

_CALLS = metrics.counter("limit_calls", "Counted requests, by bucket.", "bucket", "outcome")
_AWAY = metrics.counter("limit_store_away", "Requests not counted because Redis was unavailable.")

_UNITS = {
    1.0: pb.RateLimitResponse.RateLimit.SECOND,
    60.0: pb.RateLimitResponse.RateLimit.MINUTE,
    3600.0: pb.RateLimitResponse.RateLimit.HOUR,
    86400.0: pb.RateLimitResponse.RateLimit.DAY,
}


class RateLimitServicer(RateLimitServiceServicer):
    def __init__(self, counter: Counter, rules: Rules) -> None:
        self._counter = counter
        self._rules = rules

    async def ShouldRateLimit(
        self, request: pb.RateLimitRequest, context: _Context
    ) -> pb.RateLimitResponse:
        if not 0 < len(request.descriptors) <= _MAX_DESCRIPTORS:
            raise invalid(FieldViolation("descriptors", f"must have 1–{_MAX_DESCRIPTORS} items"))
        demands = [self._demand(descriptor) for descriptor in request.descriptors]
        known = [demand for demand in demands if demand is not None]
        if not known:
            return pb.RateLimitResponse(overall_code=pb.RateLimitResponse.OK)
        verdicts = await self._count(known, request.hits_addend or 1)
        if verdicts is None:
            # Without the COUNTED header the gateway's local limits count the request.
            return pb.RateLimitResponse(overall_code=pb.RateLimitResponse.OK)
        return _answer(demands, dict(zip(known, verdicts, strict=True)))

    def _demand(self, descriptor: pb.RateLimitDescriptor) -> Demand | None:
        """The bucket of a descriptor; None when it names no limit.

        A gateway sends each bucket once by address and once by user; the limit's key selects one.
        """
        entries = {entry.key: entry.value for entry in descriptor.entries}
        bucket = self._rules.bucket(entries.get(BUCKET_KEY, ""))
        if bucket is None:
            return None
        owner = entries.get(ENTRY_KEYS[bucket.limit.key])
        return Demand(bucket, owner) if owner else None

    async def _count(self, demands: list[Demand], hits: int) -> list[Verdict] | None:
        try:
            return await self._counter.count(demands, hits)
        except RedisAwayError:
            _AWAY.inc()
            return None


def _answer(demands: list[Demand | None], verdicts: dict[Demand, Verdict]) -> pb.RateLimitResponse:
    answer = pb.RateLimitResponse(overall_code=pb.RateLimitResponse.OK)
    answer.request_headers_to_add.add(key=COUNTED, value="1")
    for demand in demands:
        status = answer.statuses.add(code=pb.RateLimitResponse.OK)
        if demand is None:
            continue
        verdict = verdicts[demand]
        limit = demand.bucket.limit
        _CALLS.labels(demand.bucket.name, _outcome(demand, verdict)).inc()
        if limit.shadow:
            continue
        if not verdict.has_room:
            status.code = answer.overall_code = pb.RateLimitResponse.OVER_LIMIT
        status.current_limit.requests_per_unit = limit.requests
        status.current_limit.unit = _UNITS.get(
            limit.window_seconds, pb.RateLimitResponse.RateLimit.UNKNOWN
        )
        status.limit_remaining = verdict.remaining
        status.duration_until_reset.CopyFrom(_duration(verdict.reset_seconds))
    return answer


def _outcome(demand: Demand, verdict: Verdict) -> str:
    if not verdict.has_room:
        return "shadow_over" if demand.bucket.limit.shadow else "over"
    return "near" if verdict.remaining <= (1 - _NEAR) * demand.bucket.size else "ok"


def _duration(seconds: float) -> duration_pb2.Duration:
    duration = duration_pb2.Duration()
    duration.FromMicroseconds(int(seconds * 1_000_000))
    return duration
