"""Errors name fields so that the names can be written as the client writes them."""

import ast
import re
from collections.abc import Iterator

import pytest
from buf.validate import validate_pb2
from google.protobuf import descriptor_pb2

from mesh.rpc.field_names import MARKED, json_name
from mesh.settings import SERVICES
from tests.architecture.contract import request_messages
from tests.architecture.sources import SHARED, Module, module_of, modules

ERRORS = {"DomainError", "FieldViolation"}
MESSAGES = request_messages()
FIELDS = [field for message in MESSAGES.values() for field in message.fields]
NAMES = {field.name for field in FIELDS}


def faults_of(text: str) -> Iterator[str]:
    """Marked names that are no fields, and names of fields that are not marked."""
    for marked in MARKED.findall(text):
        yield from (name for name in re.findall(r"[a-z_]+", marked) if name not in NAMES)
    unmarked = set(re.findall(r"\b[a-z]+(?:_[a-z]+)+\b", MARKED.sub("", text)))
    yield from unmarked & NAMES


def texts(module: Module) -> Iterator[tuple[int, str]]:
    """Line and text of a module's errors, with `0` in place of what is formatted into it."""
    for node in ast.walk(module.tree):
        if (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Name)
            and node.func.id in ERRORS
            and len(node.args) > 1
        ):
            yield node.lineno, text_of(node.args[1])


def text_of(node: ast.expr) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(map(text_of, node.values))
    return str(node.value) if isinstance(node, ast.Constant) else "0"


def test_names_are_written_as_json_has_them() -> None:
    assert {field.name: json_name(field.name) for field in FIELDS} == {
        field.name: field.json_name for field in FIELDS
    }


@pytest.mark.parametrize("package", [*SERVICES, SHARED])
def test_errors_mark_the_fields_that_they_mention(package: str) -> None:
    faults = [
        f"{module.path}:{line}: {fault}"
        for module in modules(package)
        for line, text in texts(module)
        for fault in faults_of(text)
    ]
    assert faults == []


def test_rules_of_the_contract_mark_the_fields_that_they_mention() -> None:
    faults = []
    for name, message in MESSAGES.items():
        options = descriptor_pb2.MessageOptions.FromString(message.GetOptions().SerializeToString())
        rules = list(options.Extensions[validate_pb2.message].cel)
        for field in message.fields:
            rules += field.GetOptions().Extensions[validate_pb2.field].cel
        faults += [f"{name}: {fault}" for rule in rules for fault in faults_of(rule.message)]
    assert faults == []


def test_what_counts_as_marked() -> None:
    source = 'invalid(FieldViolation(f, f"must be after {x} and `offers[{n}].seat_type`, {y}"))'
    assert [text for _, text in texts(module_of(source))] == [
        "must be after 0 and `offers[0].seat_type`, 0"
    ]
    assert list(faults_of("must be after `start_time` in `offers[0].seat_type`")) == []
    assert list(faults_of("must be after start_time")) == ["start_time"]
    assert list(faults_of("must be after `beginning_time`")) == ["beginning_time"]
