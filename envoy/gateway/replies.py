"""The last touch on answers, in Lua: success statuses, and the gateway's own errors.

Only what configuration alone cannot say is done there; see lua/replies.lua. What it has to
know of the contract is written here: into routes, or as a table before the script.
"""

import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

from gateway import documentation
from gateway.extension import Config, extension
from mesh.rpc.field_names import json_name
from mesh.rpc.policy import MethodPolicy

FILTER = "envoy.filters.http.lua"
SUCCESS_STATUS = "success_status"
"""Key of a route's metadata under FILTER: the HTTP status of a REST call that succeeds."""
LOCATION = "location"
"""Key of a route's metadata: where what a call made is, e.g. `/api/v1/bookings/{bookingId}`."""
ETAG = "etag"
"""Key of a route's metadata: whether answers have a field of that name."""

_SCRIPT = Path(__file__).parent / "lua" / "replies.lua"
_VARIABLE = re.compile(r"\{([a-z_]+)\}")
_MAGIC = re.compile(r"([\^$()%.\[\]*+\-?])")


def lua(policies: Collection[MethodPolicy]) -> Config:
    return extension(
        FILTER,
        "envoy.extensions.filters.http.lua.v3.Lua",
        default_source_code={"inline_string": _paths(policies) + _SCRIPT.read_text()},
    )


def route_metadata(policy: MethodPolicy, location: str | None) -> dict[str, object]:
    metadata: dict[str, object] = {SUCCESS_STATUS: policy.success_status}
    if location is not None:
        metadata[LOCATION] = location
    if ETAG in policy.response_texts and not policy.server_streaming:
        metadata[ETAG] = True
    return metadata


def locations(policies: Iterable[MethodPolicy]) -> Iterator[tuple[str, str]]:
    """Paths of creating methods, each with the path at which its caller finds the result.

    That is the GET which returns the same message by the message's first field.
    """
    policies = list(policies)
    for creates in policies:
        if creates.success_status != 201 or not creates.response_texts:
            continue
        for gets in policies:
            if gets.response == creates.response and gets.access.value <= creates.access.value:
                for binding in gets.bindings:
                    names = [json_name(name) for name in _VARIABLE.findall(binding.path)]
                    if binding.verb == "GET" and names == [creates.response_texts[0]]:
                        yield creates.path, _VARIABLE.sub("{" + names[0] + "}", binding.path)


def _paths(policies: Iterable[MethodPolicy]) -> str:
    """A Lua table of REST paths as patterns, each with the verbs that it has."""
    verbs: dict[str, set[str]] = defaultdict(set)
    for policy in policies:
        for binding in policy.bindings:
            pattern = _VARIABLE.sub("[^/]+", _MAGIC.sub(r"%\1", binding.path))
            verbs[pattern].add(binding.verb)
    verbs[_MAGIC.sub(r"%\1", documentation.DOCUMENT)] = {"GET", "HEAD"}
    for path in (documentation.PAGE, documentation.PAGE + "/.*"):
        verbs[path] = {"GET", "HEAD"}
    entries = (f'  {{"^{path}$", "{", ".join(sorted(each))}"}},' for path, each in verbs.items())
    return "local PATHS = {\n" + "\n".join(entries) + "\n}\n"
