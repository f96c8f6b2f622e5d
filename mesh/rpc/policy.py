"""The policy of each RPC, read from the compiled contract, for the gateway and the servers.

Loading a contract fails when an RPC has no policy or an inconsistent one.
"""

import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TypeVar

from google.api import annotations_pb2, http_pb2
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import (
    Descriptor,
    FieldDescriptor,
    MethodDescriptor,
    ServiceDescriptor,
)

from boxoffice.errors.v1 import reason_pb2
from boxoffice.options.v1 import policy_pb2

PACKAGE = "boxoffice."
"""Services outside of it (health, reflection) have no policy."""

MAX_DEADLINE_SECONDS = 30.0
MAX_REQUEST_BYTES = 1024 * 1024
"""The largest request that the gateway accepts; a seat map of some thousand seats fits."""
DEFAULT_REQUEST_BYTES = 64 * 1024
MAX_IDEMPOTENCY_KEY_LENGTH = 128
DEFAULT_LIMIT_REQUESTS = 100
DEFAULT_LIMIT_WINDOW_SECONDS = 60.0

_VARIABLE = re.compile(r"\{([a-z_]+)\}")
_E = TypeVar("_E", bound=Enum)


class PolicyError(Exception):
    """A policy is missing or invalid; the text names the RPC and the defect."""


class Access(Enum):
    PUBLIC = policy_pb2.ACCESS_PUBLIC
    CUSTOMER = policy_pb2.ACCESS_CUSTOMER
    STAFF = policy_pb2.ACCESS_STAFF
    ADMIN = policy_pb2.ACCESS_ADMIN
    INTERNAL = policy_pb2.ACCESS_INTERNAL


class Idempotency(Enum):
    IGNORED = policy_pb2.IDEMPOTENCY_UNSPECIFIED
    ACCEPTED = policy_pb2.IDEMPOTENCY_ACCEPTED
    REQUIRED = policy_pb2.IDEMPOTENCY_REQUIRED


class LimitKey(Enum):
    IP = policy_pb2.LIMIT_KEY_IP
    USER = policy_pb2.LIMIT_KEY_USER
    NETWORK = policy_pb2.LIMIT_KEY_NETWORK


class LimitAlgorithm(Enum):
    TOKEN_BUCKET = policy_pb2.LIMIT_ALGORITHM_TOKEN_BUCKET
    FIXED_WINDOW = policy_pb2.LIMIT_ALGORITHM_FIXED_WINDOW
    SLIDING_WINDOW = policy_pb2.LIMIT_ALGORITHM_SLIDING_WINDOW


@dataclass(frozen=True, slots=True)
class RateLimit:
    """Requests per window. `burst` is the number admitted at once; None: all of them.

    A `shadow` limit is counted but not enforced. Gateways that count alone use token buckets for
    all algorithms.
    """

    requests: int
    window_seconds: float
    key: LimitKey
    burst: int | None = None
    shadow: bool = False
    algorithm: LimitAlgorithm = LimitAlgorithm.TOKEN_BUCKET


@dataclass(frozen=True, slots=True)
class HttpBinding:
    """A REST binding of an RPC, e.g. verb "POST", path "/api/v1/bookings", body "*"."""

    verb: str
    path: str
    body: str

    @property
    def body_field(self) -> str:
        """Field of the request that is the body, e.g. `event`; empty when none is."""
        return "" if self.body == "*" else self.body

    @property
    def variables(self) -> frozenset[str]:
        """Fields of the request that are part of the path, e.g. `booking_id`."""
        return frozenset(_VARIABLE.findall(self.path))


@dataclass(frozen=True, slots=True)
class MethodPolicy:
    """The policy and other properties of an RPC.

    `path` is the gRPC path, e.g. `/boxoffice.stock.v1.StockService/Reserve`.
    `deadline_seconds` is None for a stream without end. `retryable` and `has_effects` come from
    the method's idempotency_level. `reasons` are names as clients see them, e.g. `SOLD_OUT`.
    `response` is the full name of the response message, `response_texts` are the JSON names of
    its string fields, in order.
    """

    path: str
    access: Access
    callers: frozenset[str]
    limits: tuple[RateLimit, ...]
    deadline_seconds: float | None
    idempotency: Idempotency
    success_status: int
    reasons: frozenset[str]
    development_only: bool
    retryable: bool
    has_effects: bool
    server_streaming: bool
    client_streaming: bool
    max_request_bytes: int
    # Descriptors of two pools are never equal.
    request: Descriptor = field(compare=False)
    response: str
    response_texts: tuple[str, ...]
    bindings: tuple[HttpBinding, ...]
    reads_token: bool = False
    accepts_ended_token: bool = False

    @property
    def resumes_streams(self) -> bool:
        """Whether each message has a `version`, after which a new stream can continue."""
        return self.server_streaming and "after_version" in self.request.fields_by_name

    needs_verified_email: bool = False
    needs_session: bool = False
    is_undocumented: bool = False

    @property
    def service(self) -> str:
        return self.path.split("/")[1]

    @property
    def name(self) -> str:
        """Short and still unique, for metrics and spans: `StockService/Reserve`."""
        return self.path.rpartition(".")[2]

    @property
    def body_field(self) -> str:
        """The same for each of its bindings."""
        return self.bindings[0].body_field if self.bindings else ""

    @property
    def is_routed(self) -> bool:
        """Whether the gateway has a route for it."""
        return self.access is not Access.INTERNAL

    @property
    def needs_token(self) -> bool:
        return self.access in (Access.CUSTOMER, Access.STAFF, Access.ADMIN)


def of_service(service: ServiceDescriptor) -> dict[str, MethodPolicy]:
    """Policies of a service's methods by gRPC path."""
    return {policy.path: policy for policy in map(_of_method, service.methods)}


def of_contract(contract: descriptor_pb2.FileDescriptorSet) -> dict[str, MethodPolicy]:
    """Policies of all methods of a compiled contract, by gRPC path, in its order."""
    return {
        policy.path: policy
        for service in services(contract)
        for policy in of_service(service).values()
    }


def services(contract: descriptor_pb2.FileDescriptorSet) -> Iterator[ServiceDescriptor]:
    """The contract's own services, in its order."""
    pool = descriptor_pool.DescriptorPool()
    for file in contract.file:
        pool.Add(file)
    for file in contract.file:
        if file.package.startswith(PACKAGE):
            yield from pool.FindFileByName(file.name).services_by_name.values()


def _of_method(method: MethodDescriptor) -> MethodPolicy:
    path = f"/{method.containing_service.full_name}/{method.name}"
    # Options from another pool have other classes; parsing their bytes again gives ours.
    options = descriptor_pb2.MethodOptions.FromString(method.GetOptions().SerializeToString())
    if not options.HasExtension(policy_pb2.policy):
        raise PolicyError(f"{path} has no (boxoffice.options.v1.policy)")
    raw = options.Extensions[policy_pb2.policy]
    policy = MethodPolicy(
        path=path,
        access=_enum(Access, raw.access, path, "access"),
        callers=frozenset(raw.callers),
        limits=tuple(_limit(limit, path) for limit in raw.limits),
        deadline_seconds=raw.deadline.ToTimedelta().total_seconds()
        if raw.HasField("deadline")
        else None,
        idempotency=_enum(Idempotency, raw.idempotency, path, "idempotency"),
        success_status=raw.success_status or 200,
        reasons=frozenset(reason_name(reason) for reason in raw.errors),
        development_only=raw.development_only,
        retryable=options.idempotency_level
        in (descriptor_pb2.MethodOptions.NO_SIDE_EFFECTS, descriptor_pb2.MethodOptions.IDEMPOTENT),
        has_effects=options.idempotency_level != descriptor_pb2.MethodOptions.NO_SIDE_EFFECTS,
        server_streaming=method.server_streaming,
        client_streaming=method.client_streaming,
        max_request_bytes=raw.max_request_bytes or _default_request_bytes(raw.access),
        request=method.input_type,
        response=method.output_type.full_name,
        response_texts=tuple(
            field.json_name
            for field in method.output_type.fields
            if field.type == FieldDescriptor.TYPE_STRING and not field.is_repeated
        ),
        bindings=tuple(_bindings(options.Extensions[annotations_pb2.http]))
        if options.HasExtension(annotations_pb2.http)
        else (),
        reads_token=raw.reads_token,
        accepts_ended_token=raw.accepts_ended_token,
        needs_verified_email=raw.needs_verified_email,
        needs_session=raw.needs_session,
        is_undocumented=raw.is_undocumented,
    )
    _check(policy)
    return policy


def _default_request_bytes(access: int) -> int:
    staff = access in (policy_pb2.ACCESS_STAFF, policy_pb2.ACCESS_ADMIN)
    return MAX_REQUEST_BYTES if staff else DEFAULT_REQUEST_BYTES


def reason_name(reason: "reason_pb2.Reason.ValueType") -> str:
    """The name that clients see, e.g. `SOLD_OUT`."""
    return reason_pb2.Reason.Name(reason).removeprefix("REASON_")


def _check(policy: MethodPolicy) -> None:
    if policy.access is Access.INTERNAL and not policy.callers:
        raise PolicyError(f"{policy.path} is INTERNAL but names no callers")
    if policy.access is Access.INTERNAL and policy.bindings:
        raise PolicyError(f"{policy.path} is INTERNAL and has a REST path")
    if any(binding.body_field != policy.body_field for binding in policy.bindings):
        raise PolicyError(f"{policy.path} has REST paths with different fields as body")
    if policy.reads_token and policy.access is not Access.PUBLIC:
        raise PolicyError(f"{policy.path} reads a token but is not PUBLIC")
    if policy.accepts_ended_token and not policy.needs_token:
        raise PolicyError(f"{policy.path} accepts an ended token but requires none")
    if policy.deadline_seconds is None and not policy.server_streaming:
        raise PolicyError(f"{policy.path} has no deadline")
    if (
        policy.deadline_seconds is not None
        and not 0 < policy.deadline_seconds <= MAX_DEADLINE_SECONDS
    ):
        raise PolicyError(
            f"{policy.path} has a deadline outside of 0–{MAX_DEADLINE_SECONDS:g} seconds"
        )
    if policy.max_request_bytes > MAX_REQUEST_BYTES:
        raise PolicyError(f"{policy.path} accepts more than {MAX_REQUEST_BYTES} bytes")
    if policy.success_status not in (200, 201, 202, 204):
        raise PolicyError(
            f"{policy.path} has the success status {policy.success_status}, not 200, 201, 202 or 204"
        )
    if not policy.reasons:
        raise PolicyError(f"{policy.path} lists no error reasons")
    if not policy.needs_token and any(limit.key is LimitKey.USER for limit in policy.limits):
        raise PolicyError(f"{policy.path} has a limit per user but requires no token")


def _limit(raw: policy_pb2.RateLimit, path: str) -> RateLimit:
    limit = RateLimit(
        requests=raw.requests,
        window_seconds=raw.window.ToTimedelta().total_seconds(),
        key=_enum(LimitKey, raw.key, path, "limits.key"),
        burst=raw.burst or None,
        shadow=raw.shadow,
        algorithm=_enum(
            LimitAlgorithm,
            raw.algorithm or policy_pb2.LIMIT_ALGORITHM_TOKEN_BUCKET,
            path,
            "limits.algorithm",
        ),
    )
    if limit.burst is not None and limit.algorithm is not LimitAlgorithm.TOKEN_BUCKET:
        raise PolicyError(f"{path} has a limit with a burst, which only a token bucket has")
    if limit.burst is not None and limit.burst > limit.requests:
        raise PolicyError(f"{path} has a limit whose burst exceeds its requests")
    if limit.requests < 1 or limit.window_seconds <= 0:
        raise PolicyError(
            f"{path} has a limit of {limit.requests} requests in {limit.window_seconds:g} seconds"
        )
    return limit


def _enum(kind: type[_E], value: int, path: str, field: str) -> _E:
    try:
        return kind(value)
    except ValueError:
        raise PolicyError(f"{path} has an unknown value for {field}: {value}") from None


def _bindings(rule: http_pb2.HttpRule) -> Iterable[HttpBinding]:
    verb = rule.WhichOneof("pattern")
    if verb is not None and verb != "custom":
        yield HttpBinding(verb.upper(), getattr(rule, verb), rule.body)
    for additional in rule.additional_bindings:
        yield from _bindings(additional)


def main() -> int:
    """Checks the policies of a compiled contract: `python -m mesh.rpc.policy contract.binpb`."""
    contract = descriptor_pb2.FileDescriptorSet.FromString(Path(sys.argv[1]).read_bytes())
    try:
        of_contract(contract)
    except PolicyError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
