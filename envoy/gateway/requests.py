"""The Lua filter that checks REST requests against the contract before they are transcoded.

The script is lua/requests.lua. This module writes the contract's paths, fields and enum values as
Lua tables before it, so that a new RPC is checked without further work.
"""

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from gateway import api_keys, documentation, replies
from gateway.extension import Config, extension, first_of
from mesh.rpc.identity import API_KEY_PREFIX
from mesh.rpc.policy import HttpBinding, MethodPolicy

FILTER = "boxoffice.requests"
ENCODING_HEADER = "x-boxoffice-content-encoding"
"""The client's content-encoding, set by the gateway before it inflates the body."""

_LOG = "boxoffice.log"
# NQ omits the query, which may contain secrets. The metadata is set for paths with a secret.
LOGGED_PATH = "%COALESCE({})%".format(
    first_of(("DYNAMIC_METADATA", f"{_LOG}:path"), ("PATH", "NQ:ORIG_OR_PATH"))
)
"""The path of a request in Envoy's formats, for logs and traces."""

_SCRIPT = Path(__file__).parent / "lua" / "requests.lua"
_RAW = "google.api.HttpBody"
_TIMESTAMP = "google.protobuf.Timestamp"
_NAMES = f"""local API_KEY = "^Bearer {API_KEY_PREFIX}"
local API_KEYS, API_KEY_MARK = "{api_keys.NAMESPACE}", "{api_keys.MARK}"
local WELCOME = "{documentation.WELCOME}"
"""
# Their JSON is a text, a number or a boolean.
_SCALAR_MESSAGES = frozenset(
    {
        "google.protobuf.Duration",
        "google.protobuf.FieldMask",
        *(
            f"google.protobuf.{name}Value"
            for name in (
                *("Bool", "String", "Bytes", "Double", "Float"),
                *("Int32", "Int64", "UInt32", "UInt64"),
            )
        ),
    }
)


def lua(policies: Collection[MethodPolicy]) -> Config:
    """The filter. It has no function for responses, so these pass without running Lua."""
    return extension(
        FILTER,
        "envoy.extensions.filters.http.lua.v3.Lua",
        default_source_code={
            "inline_string": _NAMES + secrets(policies) + tables(policies) + _SCRIPT.read_text()
        },
    )


def secrets(policies: Collection[MethodPolicy]) -> str:
    """The script's patterns of paths up to a variable that is a secret (`debug_redact`)."""
    before = {
        binding.path.partition("{" + name + "}")[0]
        for policy in policies
        for binding in policy.bindings
        for name in binding.variables
        if policy.request.fields_by_name[name].GetOptions().debug_redact
    }
    patterns = [json.dumps(f"^({replies.escaped(path)})[^/]+") for path in sorted(before)]
    return f"local SECRETS = {{{', '.join(patterns)}}}\n"


def tables(policies: Collection[MethodPolicy]) -> str:
    """The script's tables."""
    messages = _Messages()
    root: dict[str, Any] = {}
    for policy in policies:
        for binding in policy.bindings:
            node = root
            for segment in binding.path.strip("/").split("/"):
                if segment.startswith("{"):
                    node = node.setdefault("any", {})
                else:
                    node = node.setdefault("children", {}).setdefault(segment, {})
            node.setdefault("verbs", {})[binding.verb] = _target(messages, policy, binding)
    lines = [f"local ROOT = {_lua(root)}\n"]
    return "".join([*messages.lines(), *lines])


def _target(messages: "_Messages", policy: MethodPolicy, binding: HttpBinding) -> dict[str, Any]:
    """What a request of a REST binding may contain."""
    target = _contents(messages, policy, binding)
    if binding.verb == "GET" and not policy.server_streaming:
        target["head"] = True
    if policy.resumes_streams:
        target["resumes"] = True
    return target


def _contents(messages: "_Messages", policy: MethodPolicy, binding: HttpBinding) -> dict[str, Any]:
    request = policy.request
    in_path = binding.variables
    if binding.body == "*":
        return {"body": messages.request(request, in_path), "query": _NO_FIELDS}
    if not binding.body:
        return {"body": _NO_FIELDS, "query": messages.request(request, in_path)}
    body = request.fields_by_name[binding.body].message_type
    if body is None:
        raise ValueError(f"{policy.path}: the body is not a message")
    query = messages.request(request, in_path, without=binding.body)
    if body.full_name == _RAW:
        return {"raw": True, "query": query}
    return {"body": messages.of(body), "query": query}


class _Code(str):
    """A Lua expression."""


_NO_FIELDS = _Code("{}")


class _Messages:
    """Lua tables of the fields of messages and the values of enums, which may refer to each other."""

    def __init__(self) -> None:
        self._tables: dict[str, str] = {}

    def lines(self) -> Iterator[str]:
        """The tables. All are created before the first is filled, because messages may nest."""
        yield f"local T = {{}}\nfor i = 1, {len(self._tables)} do\n  T[i] = {{}}\nend\n"
        yield from self._tables.values()

    def of(self, message: Descriptor) -> _Code:
        return self._table(message.full_name, message, frozenset())

    def request(self, message: Descriptor, in_path: frozenset[str], *, without: str = "") -> _Code:
        """The fields of a request, of which `in_path` are variables of the path."""
        key = f"{message.full_name} {sorted(in_path)} {without}"
        return self._table(key, message, in_path, without)

    def _table(
        self, key: str, message: Descriptor, in_path: frozenset[str], without: str = ""
    ) -> _Code:
        number = self._number(key)
        name = _Code(f"T[{number}]")
        if not self._tables[key]:
            # Marked as begun: a message may contain itself.
            self._tables[key] = "-"
            self._tables[key] = "".join(
                self._field(name, field, field.name in in_path)
                for field in message.fields
                if field.name != without
            )
        return name

    def _field(self, table: str, field: FieldDescriptor, is_in_path: bool) -> str:
        names = "".join(
            f"{table}[{json.dumps(name)}] = field\n"
            for name in sorted({field.name, field.json_name})
        )
        return f"do\nlocal field = {_lua(self._kind(field, is_in_path))}\n{names}end\n"

    def _kind(self, field: FieldDescriptor, is_in_path: bool) -> dict[str, Any]:
        known: dict[str, Any] = {"name": field.json_name}
        if is_in_path:
            return known | {"kind": "path"}
        if field.is_repeated:
            known["list"] = True
        message = field.message_type
        if field.enum_type is not None:
            return known | {"kind": "enum", "values": self._values(field.enum_type)}
        if message is None or message.full_name in _SCALAR_MESSAGES:
            return known | {"kind": "scalar"}
        if message.full_name == _TIMESTAMP:
            return known | {"kind": "time"}
        if message.GetOptions().map_entry or message.full_name.startswith("google."):
            raise ValueError(f"{field.full_name}: the gateway cannot check this type")
        return known | {"kind": "message", "fields": self.of(message)}

    def _values(self, enum: EnumDescriptor) -> _Code:
        number = self._number(enum.full_name)
        self._tables[enum.full_name] = "".join(
            f"T[{number}][{json.dumps(text)}] = true\n"
            for value in enum.values
            for text in (value.name, str(value.number))
        )
        return _Code(f"T[{number}]")

    def _number(self, key: str) -> int:
        self._tables.setdefault(key, "")
        return list(self._tables).index(key) + 1


def _lua(value: Any) -> str:
    """A Lua expression for nested dicts of texts and booleans."""
    if isinstance(value, _Code):
        return str(value)
    if isinstance(value, dict):
        return "{" + ", ".join(f"[{json.dumps(k)}] = {_lua(v)}" for k, v in value.items()) + "}"
    return json.dumps(value)
