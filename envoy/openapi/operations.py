"""One operation of the OpenAPI document per REST binding of an RPC."""

import re
from collections.abc import Iterator, Mapping
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor, MethodDescriptor

from mesh.rpc.field_names import json_name
from mesh.rpc.limits import buckets
from mesh.rpc.policy import (
    DEFAULT_LIMIT_REQUESTS,
    MAX_IDEMPOTENCY_KEY_LENGTH,
    HttpBinding,
    Idempotency,
    LimitKey,
    MethodPolicy,
)
from openapi import errors, rules
from openapi.comments import after_summary, paragraphs, summary
from openapi.examples import Examples
from openapi.rules import Schema
from openapi.schemas import Schemas

_VARIABLE = re.compile(r"\{([a-z_.]+)(?:=[^}]*)?\}")
_HTTP_BODY = "google.api.HttpBody"
_MAX_QUERY_DEPTH = 2

IDEMPOTENCY_KEY = "order-2026-0001"
PARAMETERS: dict[str, Any] = {
    "Idempotency-Key": {
        "name": "Idempotency-Key",
        "in": "header",
        "description": "Repeating the call with the same key returns the first response. "
        "Keys are kept for 3 days. `X-Idempotency-Key` is an alias.",
        "schema": {
            "type": "string",
            "pattern": f"^[!-~]{{1,{MAX_IDEMPOTENCY_KEY_LENGTH}}}$",
            "examples": [IDEMPOTENCY_KEY],
        },
    },
    "If-Match": {
        "name": "If-Match",
        "in": "header",
        "description": "The `ETag` of the version that the change is based on. With another "
        "version the call fails and changes nothing.",
        "schema": {"type": "string"},
    },
}

HEADERS: dict[str, Any] = {
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
        "description": "Version of the resource, in quotes, for `If-Match`.",
        "schema": {"type": "string"},
    },
    "RateLimit": {
        "description": "The limit that is nearest to its end: `r` calls remain, after `t` seconds "
        "without a call all are available again. `RateLimit-Limit`, `-Remaining` and `-Reset` "
        "have the same numbers, also with the prefix `X-`.",
        "schema": {"type": "string"},
        "example": '"PlaceBooking";r=9;t=6',
    },
    "RateLimit-Policy": {
        "description": "All limits of the call: `q` calls in `w` seconds.",
        "schema": {"type": "string"},
        "example": '"user";q=100;w=60, "PlaceBooking";q=10;w=60',
    },
}


def path_of(binding: HttpBinding) -> str:
    """The path with its variables as in JSON, e.g. `/api/v1/bookings/{bookingId}`."""
    return _VARIABLE.sub(lambda variable: f"{{{json_name(variable[1])}}}", binding.path)


class Operation:
    """One binding of an RPC. `number` counts the RPC's bindings from 0."""

    def __init__(
        self,
        method: MethodDescriptor,
        policy: MethodPolicy,
        number: int,
        comments: Mapping[str, str],
        *,
        requests: Schemas,
        answers: Schemas,
        examples: Examples,
        has_location: bool,
    ) -> None:
        self._method = method
        self._policy = policy
        self._number = number
        self._binding = policy.bindings[number]
        self._comments = comments
        self._requests = requests
        self._answers = answers
        self._examples = examples
        self._has_location = has_location
        self._in_path = frozenset(_VARIABLE.findall(self._binding.path))

    def as_json(self) -> dict[str, Any]:
        text = self._comments.get(self._method.full_name, "")
        suffix = f"_{self._number + 1}" if self._number else ""
        body = self._request_body()
        operation: dict[str, Any] = {
            "operationId": f"{self._method.containing_service.name}_{self._method.name}{suffix}",
            "tags": [self._method.containing_service.name],
            "summary": summary(text),
            "description": self._description(text),
            "parameters": [*self._parameters()],
            "responses": {
                str(self._policy.success_status): self._success(),
                **errors.responses(self._policy, has_body=body is not None),
            },
            "security": self._security(),
        }
        if body is not None:
            operation["requestBody"] = body
        return operation

    def _description(self, text: str) -> str:
        if self._number:
            first = self._policy.bindings[0]
            return f"The same as `{first.verb} {path_of(first)}`."
        return "\n\n".join([after_summary(text), *_terms(self._policy)]).strip()

    def _security(self) -> list[dict[str, list[str]]]:
        bearer: dict[str, list[str]] = {"bearerAuth": []}
        if self._policy.reads_token:
            return [{}, bearer]
        return [bearer] if self._policy.needs_token else []

    def _parameters(self) -> Iterator[dict[str, Any]]:
        for variable in _VARIABLE.findall(self._binding.path):
            field = _field(self._method.input_type, variable)
            yield self._parameter(variable, field, place="path")
        if self._binding.body != "*":
            for name, field in self._query(self._method.input_type):
                yield self._parameter(name, field, place="query")
        if self._policy.idempotency is Idempotency.REQUIRED:
            yield PARAMETERS["Idempotency-Key"] | {"required": True, "example": IDEMPOTENCY_KEY}
        if self._policy.idempotency is Idempotency.ACCEPTED:
            yield PARAMETERS["Idempotency-Key"]
        if self._reads_etag():
            yield PARAMETERS["If-Match"]

    def _reads_etag(self) -> bool:
        """Whether a change is based on a version: its resource has an `etag` that it can name."""
        if not self._binding.body_field:
            return False
        resource = self._method.input_type.fields_by_name[self._binding.body_field].message_type
        etag = resource.fields_by_name.get("etag") if resource is not None else None
        return etag is not None and not rules.is_set_by_server(etag)

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
        schema = self._requests.field(field)
        parameter: dict[str, Any] = {"name": json_name(name), "in": place, "schema": schema}
        description = schema.pop("description", None)
        if description:
            parameter["description"] = description
        if place == "path" or ("." not in name and rules.is_required(field)):
            parameter["required"] = True
            parameter["example"] = self._examples.of_parameter(parameter["name"])
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
            schema = self._requests.field(field)
            content = self._json(self._requests, schema, message)
            return {"required": True, "content": content}
        return {
            "required": any(
                rules.is_required(field)
                for field in message.fields
                if field.name not in self._in_path
            ),
            "content": self._json(
                self._requests, self._requests.body(message, self._in_path), message
            ),
        }

    def _success(self) -> dict[str, Any]:
        message = self._method.output_type
        names = ["X-Request-Id"]
        if any(not bucket.limit.shadow for bucket in buckets(self._policy)):
            names += errors.RATE_LIMIT_HEADERS
        if self._has_location:
            names.append("Location")
        if "etag" in self._policy.response_texts and not self._policy.server_streaming:
            names.append("ETag")
        response: dict[str, Any] = {
            "description": summary(self._comments.get(message.full_name, "")) or "Done",
            "headers": {name: {"$ref": f"#/components/headers/{name}"} for name in names},
        }
        if self._policy.success_status == 204:
            response["description"] = "Done; the response has no body"
            return response
        schema = self._answers.of(message)
        if self._policy.server_streaming:
            response["description"] += "; one in each `data:` line of the server-sent events"
            content = self._json(self._answers, schema, message)["application/json"]
            response["content"] = {"text/event-stream": content}
        elif message.full_name == _HTTP_BODY:
            response["content"] = {"*/*": {"schema": schema}}
        else:
            response["content"] = self._json(self._answers, schema, message)
        return response

    def _json(self, schemas: Schemas, schema: Schema, message: Descriptor) -> dict[str, Any]:
        """Content with a schema, which has the example of a message.

        The content itself has it if the schema has another one, of another operation.
        """
        content: dict[str, Any] = {"schema": schema}
        example = self._examples.of_message(message)
        if example is not None and not schemas.illustrate(schema, example):
            content["example"] = example
        return {"application/json": content}


_OWNERS = {
    LimitKey.IP: "address",
    LimitKey.USER: "user",
    LimitKey.NETWORK: "network (/24, IPv6 /56)",
}


def _terms(policy: MethodPolicy) -> Iterator[str]:
    """Access and rate limits of an RPC as text."""
    yield f"Access: {policy.access.name.lower()}."
    limits = [
        f"{limit.requests} calls in {limit.window_seconds:g} s per {_OWNERS[limit.key]}"
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
