"""The Lua filter that finishes responses: success statuses, Location, ETag, errors.

The script is lua/replies.lua. This module gives it facts of the contract: as route metadata, and
as tables before the script.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import grpc
from google.protobuf.message import Message
from google.rpc import status_pb2

from gateway import documentation, errors
from gateway.extension import Config, extension
from mesh.errors import DomainError, Reason
from mesh.rpc.errors import to_status
from mesh.rpc.field_names import json_name
from mesh.rpc.limits import Bucket, Scales, buckets
from mesh.rpc.policy import LimitAlgorithm, MethodPolicy
from mesh.settings import MeshSettings

FILTER = "envoy.filters.http.lua"
SUCCESS_STATUS = "success_status"
"""Key of a route's metadata under FILTER: the HTTP status of a successful REST call."""
LOCATION = "location"
"""Key of a route's metadata: path of the created resource, e.g. `/api/v1/bookings/{bookingId}`."""
ETAG = "etag"
"""Key of a route's metadata: whether the response has an `etag` field."""

RESUMES = "resumes"
"""Key of a route's metadata: whether messages of the stream have a `version`, its event id."""
QUOTAS = "quotas"
"""Key of a route's metadata: by quota, the seconds per request, the bucket's size and its name.

The seconds are 0 for a window, whose end limit_svc reports."""
QUOTA_POLICY = "quota_policy"
"""Key of a route's metadata: the field RateLimit-Policy."""

_SCRIPT = Path(__file__).parent / "lua" / "replies.lua"
_VARIABLE = re.compile(r"\{([a-z_]+)\}")
_MAGIC = re.compile(r"([\^$()%.\[\]*+\-?])")


def lua(policies: Collection[MethodPolicy]) -> Config:
    return extension(
        FILTER,
        "envoy.extensions.filters.http.lua.v3.Lua",
        default_source_code={
            "inline_string": _paths(policies) + _status_codes() + _limited() + _SCRIPT.read_text()
        },
    )


def route_metadata(
    policy: MethodPolicy, location: str | None, settings: MeshSettings
) -> dict[str, object]:
    scales = Scales.configured(settings)
    metadata: dict[str, object] = {SUCCESS_STATUS: policy.success_status}
    if location is not None:
        metadata[LOCATION] = location
    if ETAG in policy.response_texts and not policy.server_streaming:
        metadata[ETAG] = True
    if policy.resumes_streams:
        metadata[RESUMES] = True
    quotas = {
        str(number): f"{_seconds(bucket, settings):.6f} {bucket.size} {name}"
        for name, bucket in _quotas(policy, scales)
        for number in (bucket.size, bucket.limit.requests)
    }
    if quotas:
        metadata[QUOTAS] = quotas
        metadata[QUOTA_POLICY] = ", ".join(
            f'"{name}";q={bucket.limit.requests};w={bucket.limit.window_seconds:g}'
            for name, bucket in _quotas(policy, scales)
        )
    return metadata


def _seconds(bucket: Bucket, settings: MeshSettings) -> float:
    """Time in which a bucket gets one more request; 0 for a window."""
    is_bucket = bucket.limit.algorithm is LimitAlgorithm.TOKEN_BUCKET
    return bucket.interval_seconds if is_bucket or not settings.counts_globally else 0.0


def _quotas(policy: MethodPolicy, scales: Scales) -> list[tuple[str, Bucket]]:
    """The enforced buckets of a method with their names in the RateLimit fields."""
    return [
        (bucket.name.partition(" ")[0].rpartition("/")[2], bucket.scaled(scales))
        for bucket in buckets(policy)
        if not bucket.limit.shadow
    ]


def locations(policies: Iterable[MethodPolicy]) -> Iterator[tuple[str, str]]:
    """gRPC paths of creating methods, each with the REST path of the created resource.

    The resource's path is the GET that returns the same message by that message's first field.
    """
    policies = list(policies)
    for create in policies:
        if create.success_status != 201 or not create.response_texts:
            continue
        for get in policies:
            if get.response == create.response and get.access.value <= create.access.value:
                for binding in get.bindings:
                    names = [json_name(name) for name in _VARIABLE.findall(binding.path)]
                    if binding.verb == "GET" and names == [create.response_texts[0]]:
                        yield create.path, _VARIABLE.sub("{" + names[0] + "}", binding.path)


def escaped(text: str) -> str:
    """A text as a Lua pattern that matches it."""
    return _MAGIC.sub(r"%\1", text)


def _paths(policies: Iterable[MethodPolicy]) -> str:
    """A Lua table of patterns of REST paths, each with its HTTP methods."""
    verbs: dict[str, set[str]] = defaultdict(set)
    for policy in policies:
        for binding in policy.bindings:
            pattern = _VARIABLE.sub("[^/]+", escaped(binding.path))
            verbs[pattern].add(binding.verb)
            if binding.verb == "GET" and not policy.server_streaming:
                verbs[pattern].add("HEAD")
    for path in (documentation.DOCUMENT, documentation.CONTRACT):
        verbs[escaped(path)] = {"GET", "HEAD"}
    for path in (documentation.PAGE, documentation.PAGE + "/.*"):
        verbs[path] = {"GET", "HEAD"}
    entries = (f'  {{"^{path}$", "{", ".join(sorted(names))}"}},' for path, names in verbs.items())
    return "local PATHS = {\n" + "\n".join(entries) + "\n}\n"


def _status_codes() -> str:
    """A Lua table of the names of gRPC's status codes."""
    entries = (f'["{code.value[0]}"] = "{code.name}"' for code in grpc.StatusCode)
    return "local CODES = {" + ", ".join(entries) + "}\n"


def _limited() -> str:
    """Lua constants: parts of the google.rpc.Status of a call beyond its limit."""
    status = to_status(DomainError(Reason.RATE_LIMITED, ""))
    code = status_pb2.Status(code=status.code)
    details = status_pb2.Status(details=status.details)
    return (
        f'local SECONDS = "{errors.SECONDS}"\n'
        f"local LIMITED_CODE = {_bytes(code)}\nlocal LIMITED_DETAILS = {_bytes(details)}\n"
    )


def _bytes(message: Message) -> str:
    """A serialised message as a Lua string."""
    return '"' + "".join(f"\\{byte:03}" for byte in message.SerializeToString()) + '"'
