"""Assembles the OpenAPI document: one operation per REST binding of the routed RPCs."""

import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from email.utils import parseaddr
from typing import Any

from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import Descriptor

from gateway import replies
from mesh.rpc import policy as policies_of
from mesh.rpc.policy import MethodPolicy
from mesh.settings import MeshSettings
from openapi import errors, webhooks
from openapi.comments import comments, paragraphs
from openapi.examples import Examples
from openapi.operations import HEADERS, Operation, path_of
from openapi.schemas import Components, Schemas

_ABOUT = """Sells limited stock and never sells one thing twice.

Register, log in, and send the access token as a bearer token. The same methods are served as
gRPC and gRPC-Web on this port. Fields are accepted in lowerCamelCase and in snake_case; 64-bit
integers are strings; amounts of money are in minor units.

Every error is a `google.rpc.Status` as JSON with a `reason`. An unknown path returns 404
`ROUTE_NOT_FOUND`; an HTTP method that the path does not support returns 405
`METHOD_NOT_ALLOWED` with `Allow`. A rate limit returns 429 with `Retry-After`; the
`RateLimit` headers show the remaining calls.
"""


def document(
    contract: descriptor_pb2.FileDescriptorSet,
    policies: Collection[MethodPolicy],
    settings: MeshSettings,
) -> dict[str, Any]:
    """The OpenAPI 3.1 document of the RPCs in `policies` that have a REST binding."""
    texts = comments(contract)
    methods = {
        f"/{service.full_name}/{method.name}": method
        for service in policies_of.services(contract)
        for method in service.methods
    }
    documented = [policy for policy in policies if not policy.is_undocumented]
    rest = [(methods[policy.path], policy) for policy in documented if policy.bindings]
    asked = _reached(method.input_type for method, _ in rest)
    answered = _reached(method.output_type for method, _ in rest)
    components = Components()
    requests = Schemas(texts, components, here=asked, there=answered, is_request=True)
    answers = Schemas(texts, components, here=answered, there=asked, is_request=False)
    examples = Examples()
    locations = dict(replies.locations(policies))
    paths: dict[str, Any] = {}
    services: dict[str, str] = {}
    for method, policy in rest:
        service = method.containing_service
        services[service.name] = paragraphs(texts.get(service.full_name, ""))
        for number, binding in enumerate(policy.bindings):
            operation = Operation(
                method,
                policy,
                number,
                texts,
                requests=requests,
                answers=answers,
                examples=examples,
                has_location=policy.path in locations,
            )
            paths.setdefault(path_of(binding), {})[binding.verb.lower()] = operation.as_json()
    pool = next(iter(methods.values())).containing_service.file.pool
    received = webhooks.section(pool, answers, texts)
    operations = [
        operation for verbs in [*paths.values(), *received.values()] for operation in verbs.values()
    ]
    name, address = parseaddr(settings.api_contact)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Boxoffice",
            "version": "1",
            "description": _ABOUT,
            "contact": {"name": name, "email": address},
            "license": {"name": settings.api_licence},
        },
        "servers": [{"url": "/"}],
        "tags": [{"name": name, "description": text} for name, text in services.items()],
        "paths": paths,
        "webhooks": received,
        "components": {
            "schemas": {
                "Error": errors.schema(),
                "Reason": errors.reasons_schema(texts),
                **dict(sorted(components.schemas.items())),
            },
            "parameters": _shared(
                (operation["parameters"] for operation in operations),
                "parameters",
                lambda _, parameter: [str(parameter["name"])],
            ),
            "responses": _shared(
                (operation["responses"] for operation in operations), "responses", _response_names
            ),
            "headers": HEADERS,
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


def _response_names(status: int | str, response: dict[str, Any]) -> list[str]:
    """The status, if no response with it is more common; the reasons of an error, or the message."""
    [content] = response.get("content", {"": {}}).values()
    name = str(content.get("schema", {}).get("$ref", "Empty")).rpartition("/")[2]
    if name == "Error":
        return [str(status), response["description"].replace("`", "").replace(", ", ".")]
    return [name + "Created" * ("Location" in response.get("headers", {}))]


def _shared(
    holders: Iterable[Any],
    kind: str,
    names: Callable[[int | str, dict[str, Any]], Sequence[str]],
) -> dict[str, Any]:
    """Moves what several operations have into components, and leaves references to them.

    A content gets the first of its `names` that no content of more operations has.
    """
    places = [
        (holder, key, holder[key])
        for holder in holders
        for key in (holder if isinstance(holder, dict) else range(len(holder)))
    ]
    counts = Counter((_name_key(key), json.dumps(content)) for _, key, content in places)
    contents: dict[str, str] = {}
    names_of: dict[str, str] = {}
    for (key, text), count in counts.most_common():
        if count > 1 and text not in names_of:
            free = [name for name in names(key, json.loads(text)) if name not in contents]
            if free:
                contents[free[0]], names_of[text] = text, free[0]
    for holder, key, content in places:
        text = json.dumps(content)
        if text in names_of:
            holder[key] = {"$ref": f"#/components/{kind}/{names_of[text]}"}
    return {name: json.loads(text) for name, text in sorted(contents.items())}


def _name_key(key: int | str) -> int | str:
    """A response's status; parameters are listed, and their position says nothing."""
    return key if isinstance(key, str) else 0


def _reached(messages: Iterator[Descriptor]) -> frozenset[str]:
    """Full names of messages and of all messages that their fields contain."""
    seen: set[str] = set()
    waiting = list(messages)
    while waiting:
        message = waiting.pop()
        if message.full_name not in seen:
            seen.add(message.full_name)
            waiting += [field.message_type for field in message.fields if field.message_type]
    return frozenset(seen)
