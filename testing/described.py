"""Compares answers of the gateway with the OpenAPI document."""

import functools
import re
from typing import Any

import httpx
import jsonschema_rs
from google.protobuf import descriptor_pb2

from gateway.routes import routed
from mesh.paths import CONTRACT
from mesh.rpc import policy
from mesh.settings import MeshSettings
from openapi.document import document

_VARIABLE = re.compile(r"\\\{\w+\\\}")


@functools.cache
def api() -> dict[str, Any]:
    """The document of a mesh in development."""
    contract = descriptor_pb2.FileDescriptorSet.FromString(CONTRACT.read_bytes())
    settings = MeshSettings()
    return document(contract, routed(policy.of_contract(contract).values(), settings), settings)


def checked(answer: httpx.Response) -> httpx.Response:
    """The answer. Fails if it differs from what the document says about it.

    Answers of paths that the document does not have are not compared.
    """
    path = answer.request.url.path
    operation = _operation(answer.request.method.lower(), path)
    is_json = answer.headers.get("content-type", "").startswith("application/json")
    if operation is None or not is_json:
        return answer
    schema = {"$ref": "#/components/schemas/Error"}
    if answer.is_success:
        assert str(answer.status_code) in operation["responses"], answer.status_code
        schema = _schema(operation, str(answer.status_code))
    faults = [
        f"{answer.request.method} {path}: {'/'.join(map(str, fault.instance_path))}: {fault.message}"
        for fault in _validator(str(schema["$ref"])).iter_errors(answer.json())
    ]
    assert faults == [], "The answer differs from /openapi.json: " + "\n".join(faults)
    return answer


def checked_webhook(message: dict[str, Any]) -> dict[str, Any]:
    """A message to a webhook endpoint. Fails if it differs from what the document says."""
    operation = api()["webhooks"][message["type"]]["post"]
    schema = operation["requestBody"]["content"]["application/json"]["schema"]
    validator = jsonschema_rs.validator_for(schema | {"components": api()["components"]})
    faults = [f"{fault.instance_path}: {fault.message}" for fault in validator.iter_errors(message)]
    assert faults == [], f"{message['type']} differs from /openapi.json: {faults}"
    return message


def resolved(part: dict[str, Any]) -> dict[str, Any]:
    """The component that a part of the document refers to, or the part itself."""
    if "$ref" not in part:
        return part
    component: Any = api()
    for key in part["$ref"].removeprefix("#/").split("/"):
        component = component[key]
    return resolved(component)


def _schema(operation: dict[str, Any], status: str) -> dict[str, Any]:
    schema: dict[str, Any] = resolved(operation["responses"][status])["content"][
        "application/json"
    ]["schema"]
    return schema


@functools.cache
def _validator(reference: str) -> Any:
    return jsonschema_rs.validator_for({"$ref": reference, "components": api()["components"]})


@functools.cache
def _paths() -> list[tuple["re.Pattern[str]", dict[str, Any]]]:
    # Paths without variables come first: /webhooks/health is not /webhooks/{provider}.
    return [
        (re.compile(_VARIABLE.sub("[^/]+", re.escape(path))), verbs)
        for path, verbs in sorted(api()["paths"].items(), key=lambda item: item[0].count("{"))
    ]


def _operation(verb: str, path: str) -> dict[str, Any] | None:
    for pattern, verbs in _paths():
        if pattern.fullmatch(path) and verb in verbs:
            operation: dict[str, Any] = verbs[verb]
            return operation
    return None
