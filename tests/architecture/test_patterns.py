"""What errors say of a text that does not match its pattern: words, not the regular expression."""

import re

import pytest
from buf.validate import validate_pb2
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

from mesh.errors import DomainError
from mesh.rpc.validation import PATTERNS, validate
from tests.architecture.contract import request_messages

# Breaks every pattern of the contract but the one that asks for a visible character.
BAD_TEXT = "\0`"
BLANK = " "
REGEX_CHARACTERS = re.compile(r"[\^$\\\[\]{}|*`]|\(\?")


def pattern_of(field: FieldDescriptor) -> str:
    rules = field.GetOptions().Extensions[validate_pb2.field]
    return (rules.repeated.items if field.is_repeated else rules).string.pattern


FIELDS = {
    field.full_name: field
    for message in request_messages().values()
    for field in message.fields
    if pattern_of(field)
}


def broken(field: FieldDescriptor) -> Message:
    """A message in which a field does not match its pattern."""
    assert field.containing_type is not None
    text = BLANK if pattern_of(field) == r"\S" else BAD_TEXT
    value = [text] if field.is_repeated else text
    return GetMessageClass(field.containing_type)(**{field.name: value})


def test_the_contract_has_patterns() -> None:
    """The test below runs over this list: it must not be empty by mistake."""
    assert len(FIELDS) > 15


@pytest.mark.parametrize("field_name", FIELDS)
def test_no_message_shows_a_regular_expression(field_name: str) -> None:
    field = FIELDS[field_name]
    with pytest.raises(DomainError) as refused:
        validate(broken(field))
    descriptions = [
        violation.description
        for violation in refused.value.violations
        if violation.field.partition("[")[0] == field.name
    ]
    assert PATTERNS[pattern_of(field)] in descriptions
    assert [text for text in descriptions if REGEX_CHARACTERS.search(text)] == []


def test_each_pattern_that_is_described_is_in_the_contract() -> None:
    assert PATTERNS.keys() == {pattern_of(field) for field in FIELDS.values()}
