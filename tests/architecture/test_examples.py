"""Every request and every answer of the REST API has an example, and every example is used."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format
from google.protobuf.descriptor import Descriptor, MethodDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from mesh.rpc import validation
from mesh.rpc.field_names import json_name
from mesh.rpc.policy import MethodPolicy
from openapi.comments import comments
from openapi.examples import Examples, needed
from openapi.rules import is_always_answered, is_set_by_server
from testing.network import contract_services
from tests.architecture.contract import contract, policies

METHODS: list[tuple[MethodDescriptor, MethodPolicy]] = [
    (method, policies()[f"/{service.full_name}/{method.name}"])
    for service in contract_services().values()
    for method in service.methods
    if policies()[f"/{service.full_name}/{method.name}"].bindings
]


def test_every_request_and_answer_has_an_example() -> None:
    assert list(dict.fromkeys(Examples().missing(METHODS))) == []


def test_every_example_is_of_a_request_an_answer_or_a_parameter() -> None:
    assert Examples().unused(METHODS) == []


def test_a_missing_example_is_reported_with_its_place(tmp_path: Path) -> None:
    place = [
        (method, rpc) for method, rpc in METHODS if rpc.name == "BookingService/CheckoutBooking"
    ]
    assert list(Examples(tmp_path).missing(place)) == [
        'envoy/openapi/examples/bookings.json: add "CheckoutBookingRequest", the request body of '
        "BookingService/CheckoutBooking",
        'envoy/openapi/examples/bookings.json: add "Booking", the answer of '
        "BookingService/CheckoutBooking",
        'envoy/openapi/examples/parameters.json: add "bookingId", a parameter of '
        "BookingService/CheckoutBooking",
    ]
    (tmp_path / "bookings.json").write_text(json.dumps({"Bocking": {}}))
    assert Examples(tmp_path).unused(place) == ["bookings.json: Bocking"]


def test_examples_are_messages_as_the_gateway_shows_them(subtests: pytest.Subtests) -> None:
    """An answer has every field that ProtoJSON prints, and a request follows its rules."""
    examples = Examples()
    for method, rpc in METHODS:
        for message, what in needed(method, rpc):
            example = examples.of_message(message)
            if example is None:
                continue  # test_every_request_and_answer_has_an_example says so.
            with subtests.test(f"{message.full_name} in envoy/openapi/examples"):
                if what == "the answer":
                    assert printed(message, example) == example
                    continue
                body = {rpc.body_field: example} if rpc.body_field else example
                names = rpc.bindings[0].variables
                values = {name: examples.of_parameter(json_name(name)) for name in names}
                validation.validate(parsed(message, body | values))


def test_what_comments_say_about_answers_is_in_the_contract() -> None:
    """What a comment says about a field of an answer, generators learn from its options."""
    texts = comments(contract())
    answers = messages(method.output_type for method, _ in METHODS)
    shared = answers.keys() & messages(method.input_type for method, _ in METHODS).keys()
    faults = []
    for name in answers:
        for field in answers[name].fields:
            text = " ".join(texts.get(field.full_name, "").split()).lower()
            if name in shared and "set by the server" in text and not is_set_by_server(field):
                faults.append(f"{field.full_name}: OUTPUT_ONLY, because the server sets it")
            absent = "not set" in text and field.message_type is not None
            if absent and not field.is_repeated and is_always_answered(field):
                faults.append(f"{field.full_name}: optional, because it can be absent")
    assert faults == []


def messages(roots: Iterable[Descriptor]) -> dict[str, Descriptor]:
    """The messages and all messages in their fields, by full name."""
    reached: dict[str, Descriptor] = {}
    waiting = list(roots)
    while waiting:
        message = waiting.pop()
        if message.full_name not in reached:
            reached[message.full_name] = message
            waiting += [field.message_type for field in message.fields if field.message_type]
    return reached


def parsed(message: Descriptor, example: Any) -> Message:
    return json_format.ParseDict(example, GetMessageClass(message)())


def printed(message: Descriptor, example: Any) -> Any:
    return json_format.MessageToDict(
        parsed(message, example), always_print_fields_with_no_presence=True
    )
