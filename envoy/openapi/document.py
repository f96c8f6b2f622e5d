"""Assembles the OpenAPI document: one operation per REST binding of the routed RPCs."""

import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor

from mesh.rpc import policy as policies_of
from mesh.rpc.policy import (
    DEFAULT_LIMIT_REQUESTS,
    MAX_IDEMPOTENCY_KEY_LENGTH,
    HttpBinding,
    Idempotency,
    LimitKey,
    MethodPolicy,
)
from openapi import errors
from openapi.comments import comments, paragraphs, summary
from openapi.schemas import Schemas, is_required

_VARIABLE = re.compile(r"\{([a-z_.]+)(?:=[^}]*)?\}")
_HTTP_BODY = "google.api.HttpBody"
_MAX_QUERY_DEPTH = 2

_HEADERS: dict[str, Any] = {
    "X-Request-Id": {
        "description": "Id of the request; all its log lines contain it.",
        "schema": {"type": "string"},
    },
    "Retry-After": {
        "description": "Seconds to wait before a retry.",
        "schema": {"type": "integer"},
    },
    "WWW-Authenticate": {
        "description": "Challenge of RFC 6750: why the token was refused.",
        "schema": {"type": "string"},
    },
    "Location": {"description": "Path of the created resource.", "schema": {"type": "string"}},
    "ETag": {
        "description": "Version of the resource, for If-Match.",
        "schema": {"type": "string"},
    },
}

_ABOUT = """Sells limited stock and never sells one thing twice.

Register, log in, and send the access token as a bearer token. The same methods are served as
gRPC and gRPC-Web on this port. Fields are accepted in lowerCamelCase and in snake_case; 64-bit
integers are strings; amounts of money are in minor units.

Every error is a `google.rpc.Status` as JSON with a `reason`. An unknown path returns 404
`ROUTE_NOT_FOUND`; an HTTP method that the path does not support returns 405
`METHOD_NOT_ALLOWED` with `Allow`. A rate limit returns 429 with `Retry-After`; the
`x-ratelimit-*` headers show the remaining requests.
"""


def document(
    contract: descriptor_pb2.FileDescriptorSet, policies: Collection[MethodPolicy]
) -> dict[str, Any]:
    """The OpenAPI 3.1 document of the RPCs in `policies` that have a REST binding."""
    texts = comments(contract)
    methods = {
        f"/{service.full_name}/{method.name}": method
        for service in policies_of.services(contract)
        for method in service.methods
    }
    rest = [(methods[policy.path], policy) for policy in policies if policy.bindings]
    schemas = Schemas(
        texts,
        _reached(method.input_type for method, _ in rest),
        _reached(method.output_type for method, _ in rest),
    )
    paths: dict[str, Any] = {}
    services: dict[str, str] = {}
    for method, policy in rest:
        service = method.containing_service
        services[service.name] = paragraphs(texts.get(service.full_name, ""))
        for number, binding in enumerate(policy.bindings):
            path = _VARIABLE.sub(r"{\1}", binding.path)
            operation = _Operation(method, policy, binding, texts, schemas).as_json()
            if number:
                operation["operationId"] += f"_{number + 1}"
            paths.setdefault(path, {})[binding.verb.lower()] = operation
    return {
        "openapi": "3.1.0",
        "info": {"title": "Boxoffice", "version": "1", "description": _ABOUT},
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": text} for name, text in services.items()],
        "paths": paths,
        "components": {
            "schemas": {
                "Error": errors.ERROR,
                "Reason": errors.reasons_schema(texts),
                **dict(sorted(schemas.components.items())),
            },
            "headers": _HEADERS,
            "securitySchemes": {
                "bearerAuth": {
                    "type": "http",
                    "scheme": "bearer",
                    "bearerFormat": "JWT",
                    "description": "The `accessToken` of `POST /api/v1/auth/login`, or the `key` of"
                    " `POST /api/v1/api-keys`.",
                }
            },
        },
    }


class _Operation:
    """One binding of an RPC."""

    def __init__(
        self,
        method: MethodDescriptor,
        policy: MethodPolicy,
        binding: HttpBinding,
        comments: Mapping[str, str],
        schemas: Schemas,
    ) -> None:
        self._method = method
        self._policy = policy
        self._binding = binding
        self._comments = comments
        self._schemas = schemas
        self._in_path = frozenset(_VARIABLE.findall(binding.path))

    def as_json(self) -> dict[str, Any]:
        text = self._comments.get(self._method.full_name, "")
        body = self._request_body()
        operation: dict[str, Any] = {
            "operationId": f"{self._method.containing_service.name}_{self._method.name}",
            "tags": [self._method.containing_service.name],
            "summary": summary(text),
            "description": "\n\n".join([paragraphs(text), *_terms(self._policy)]),
            "parameters": [*self._parameters()],
            "responses": {
                str(self._policy.success_status): self._success(),
                **errors.responses(self._policy, self._comments, has_body=body is not None),
            },
            "security": self._security(),
        }
        if body is not None:
            operation["requestBody"] = body
        return operation

    def _security(self) -> list[dict[str, list[str]]]:
        bearer: dict[str, list[str]] = {"bearerAuth": []}
        if self._policy.reads_token:
            return [{}, bearer]
        return [bearer] if self._policy.needs_token else []

    def _parameters(self) -> Iterator[dict[str, Any]]:
        for variable in _VARIABLE.findall(self._binding.path):
            field = _field(self._method.input_type, variable)
            yield self._parameter(variable, field, place="path") | {"required": True}
        if self._binding.body != "*":
            for name, field in self._query(self._method.input_type):
                yield self._parameter(name, field, place="query")
        if self._policy.idempotency is not Idempotency.IGNORED:
            yield {
                "name": "Idempotency-Key",
                "in": "header",
                "required": self._policy.idempotency is Idempotency.REQUIRED,
                "description": "Repeating the call with the same key returns the first response. "
                "Keys are kept for 3 days. `X-Idempotency-Key` is an alias.",
                "schema": {
                    "type": "string",
                    "pattern": f"^[!-~]{{1,{MAX_IDEMPOTENCY_KEY_LENGTH}}}$",
                    "examples": ["order-2026-0001"],
                },
            }

    def _query(
        self, message: Descriptor, prefix: str = "", depth: int = 1
    ) -> Iterator[tuple[str, FieldDescriptor]]:
        for field in message.fields:
            name = prefix + field.name
            if name in self._in_path or name == self._binding.body:
                continue
            nested = field.message_type
            if nested is None or nested.full_name.startswith("google.protobuf."):
                yield name, field
            elif not field.is_repeated and depth < _MAX_QUERY_DEPTH:
                yield from self._query(nested, f"{name}.", depth + 1)

    def _parameter(self, name: str, field: FieldDescriptor, *, place: str) -> dict[str, Any]:
        schema = self._schemas.field(field)
        parameter: dict[str, Any] = {"name": name, "in": place, "schema": schema}
        description = schema.pop("description", None)
        if description:
            parameter["description"] = description
        if place == "query" and "." not in name and is_required(field):
            parameter["required"] = True
        return parameter

    def _request_body(self) -> dict[str, Any] | None:
        message = self._method.input_type
        if not self._binding.body:
            return None
        if self._binding.body != "*":
            field = message.fields_by_name[self._binding.body]
            if field.message_type is not None and field.message_type.full_name == _HTTP_BODY:
                return {
                    "required": True,
                    "description": paragraphs(self._comments.get(field.full_name, "")),
                    "content": {"*/*": {"schema": {"type": "string", "format": "binary"}}},
                }
            return _json(self._schemas.field(field), required=True)
        schema = self._schemas.object(message, without=self._in_path)
        return _json(schema, required=bool(schema.get("required")))

    def _success(self) -> dict[str, Any]:
        message = self._method.output_type
        text = paragraphs(self._comments.get(message.full_name, "")) or "Done."
        response: dict[str, Any] = {
            "description": text,
            "headers": {"X-Request-Id": {"$ref": "#/components/headers/X-Request-Id"}},
        }
        if self._policy.success_status == 204:
            response["description"] = "Done. The response has no body."
            return response
        schema = self._schemas.of(message)
        if self._policy.server_streaming:
            response["description"] += (
                "\n\nServer-sent events: each `data:` line contains one such object."
            )
            response["content"] = {"text/event-stream": {"schema": schema}}
        elif message.full_name == _HTTP_BODY:
            response["content"] = {"*/*": {"schema": schema}}
        else:
            response["content"] = {"application/json": {"schema": schema}}
        return response


def _json(schema: dict[str, Any], *, required: bool) -> dict[str, Any]:
    return {"required": required, "content": {"application/json": {"schema": schema}}}


def _terms(policy: MethodPolicy) -> Iterator[str]:
    """Access and rate limits of an RPC as text."""
    yield f"Access: {policy.access.name.lower()}."
    limits = [
        f"{limit.requests} calls in {limit.window_seconds:g} s per "
        f"{'user' if limit.key is LimitKey.USER else 'address'}"
        for limit in policy.limits
    ]
    if limits:
        yield (
            f"Limit: {', '.join(limits)}, besides the common limit of {DEFAULT_LIMIT_REQUESTS} "
            "calls per minute."
        )


def _field(message: Descriptor, path: str) -> FieldDescriptor:
    name, _, rest = path.partition(".")
    field = message.fields_by_name[name]
    nested = field.message_type
    return field if nested is None or not rest else _field(nested, rest)


def _reached(messages: Iterator[Descriptor] | Collection[Descriptor]) -> frozenset[str]:
    """Full names of messages and of all messages that their fields contain."""
    seen: set[str] = set()
    waiting = list(messages)
    while waiting:
        message = waiting.pop()
        if message.full_name not in seen:
            seen.add(message.full_name)
            waiting += [field.message_type for field in message.fields if field.message_type]
    return frozenset(seen)
