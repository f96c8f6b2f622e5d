"""Every example of the OpenAPI document goes through the gateway.

A request's example arrives at the service as a valid message. An answer's example is exactly the
JSON that the gateway makes of the message, and follows the document's schema.
"""

import json
import re
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from mesh.rpc import validation
from mesh.rpc.policy import MethodPolicy
from openapi.operations import path_of
from testing import gateway_harness
from testing.described import api, checked, resolved
from testing.gateway_harness import Gateway
from tests.architecture.test_examples import METHODS

CASES = [
    (method, rpc, number)
    for method, rpc in METHODS
    for number in range(len(rpc.bindings))
    # The gateway itself calls it; the harness answers.
    if rpc.name != "AuthService/GetJwks" and not rpc.is_undocumented
]
RAW = b"any bytes"


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway in front of all services, for the contract as it is."""
    with gateway_harness.running_gateway(tmp_path_factory.mktemp("examples")) as running:
        yield running


def test_every_example_passes_the_gateway(gateway: Gateway, subtests: pytest.Subtests) -> None:
    for method, rpc, number in CASES:
        binding = rpc.bindings[number]
        operation = api()["paths"][path_of(binding)][binding.verb.lower()]
        with subtests.test(f"{rpc.name} {binding.verb}"):
            answer = sent(gateway, method, rpc, number)
            assert answer.status_code == rpc.success_status, answer.text
            [call] = [call for call in gateway.upstream.calls if call.path == rpc.path]
            request = message_of(method.input_type)
            request.ParseFromString(call.request)
            validation.validate(request)
            described = answer_of(operation, rpc)
            if rpc.server_streaming:
                assert json.loads(answer.text.partition("data:")[2]) == example_in(described)
            elif described:
                assert checked(answer).json() == example_in(described)


def test_a_wrong_example_is_noticed(gateway: Gateway) -> None:
    """Controls: a field that no message has, and an answer that lacks a field."""
    [(method, rpc)] = [case for case in METHODS if case[1].name == "AuthService/Login"]
    wrong = sent(gateway, method, rpc, 0, body={"email": "mira@example.com", "pass": "x"})
    assert (wrong.status_code, "pass" in wrong.text) == (400, True)
    partial = message_of(method.output_type)
    gateway.upstream.answers[rpc.path] = lambda *_: partial
    with pytest.raises(AssertionError, match='"user" is a required property'):
        checked(sent(gateway, method, rpc, 0, answer=partial))


def sent(
    gateway: Gateway,
    method: MethodDescriptor,
    rpc: MethodPolicy,
    number: int,
    *,
    body: Any = None,
    answer: Message | None = None,
) -> httpx.Response:
    """Sends what Swagger UI sends when nothing is filled in; the service answers the example."""
    binding = rpc.bindings[number]
    operation = api()["paths"][path_of(binding)][binding.verb.lower()]
    parameters = [resolved(parameter) for parameter in operation["parameters"]]
    values = {
        place: {
            parameter["name"]: parameter["example"]
            for parameter in parameters
            if parameter["in"] == place and "example" in parameter
        }
        for place in ("path", "query", "header")
    }
    path = re.sub(r"\{(\w+)\}", lambda name: values["path"][name[1]], path_of(binding))
    if answer is None:
        answer = message_of(method.output_type)
        described = answer_of(operation, rpc)
        if described:
            json_format.ParseDict(example_in(described), answer)
    gateway.upstream.calls.clear()
    gateway.upstream.answers[rpc.path] = lambda *_: answer
    gateway.upstream.streams.clear()
    if rpc.server_streaming:
        gateway.upstream.streams[rpc.path] = lambda *_: iter([answer])
    content = operation.get("requestBody", {}).get("content", {})
    if body is None and "application/json" in content:
        body = example_in(content["application/json"])
    return gateway.rest.request(
        binding.verb,
        path,
        params=values["query"],
        headers={
            **gateway_harness.bearer(gateway_harness.token(role="ADMIN")),
            **values["header"],
            **({"content-type": "application/json"} if content else {}),
        },
        content=json.dumps(body) if "application/json" in content else RAW if content else None,
    )


def example_in(content: dict[str, Any]) -> Any:
    """The example of a request or an answer: the content's own, or that of its schema."""
    if "example" in content:
        return content["example"]
    [example] = resolved(content["schema"])["examples"]
    return example


def answer_of(operation: dict[str, Any], rpc: MethodPolicy) -> dict[str, Any]:
    """Content of the answer in the document; empty for what is not JSON."""
    content = resolved(operation["responses"][str(rpc.success_status)]).get("content", {})
    [(kind, answer)] = content.items() if content else [("", {})]
    return {} if kind == "*/*" else answer


def message_of(descriptor: Descriptor) -> Message:
    return GetMessageClass(descriptor)()
