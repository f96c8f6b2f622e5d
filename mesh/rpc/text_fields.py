"""Applies the contract's kinds of text (boxoffice/options/v1/text.proto) to requests.

Every string in a message of ours is checked, so that a new field needs no mention here. Internal
calls are not: they carry texts that were accepted before.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message

from boxoffice.options.v1 import text_pb2
from mesh import text
from mesh.errors import FieldViolation

_PACKAGE = "boxoffice."
_TEXT = text_pb2.Text
_FAULTS: dict[int, Callable[[str], str]] = {
    _TEXT.TEXT_UNSPECIFIED: text.fault_of_text,
    _TEXT.TEXT_NAME: text.fault_of_name,
    _TEXT.TEXT_TITLE: text.fault_of_title,
    _TEXT.TEXT_EMAIL: text.fault_of_email,
    _TEXT.TEXT_LINE: text.fault_of_line,
    _TEXT.TEXT_PHONE: text.fault_of_phone,
}


_RULES = {
    kind: _TEXT.DESCRIPTOR.values_by_number[kind].name.lower().replace("_", ".", 1)
    for kind in _FAULTS
}


@dataclass(frozen=True, slots=True)
class _Field:
    """A field of a message with text, or of a message in it."""

    name: str
    is_repeated: bool
    kind: int | None
    """None for a message."""


def normalise(request: Message) -> tuple[FieldViolation, ...]:
    """Removes white space around names, titles and addresses. Returns the texts at fault.

    Empty texts have no fault here: the contract's other rules say whether a field may be empty.
    """
    return tuple(_normalise(request, ""))


def _normalise(message: Message, prefix: str) -> Iterator[FieldViolation]:
    for field in _fields(message.DESCRIPTOR):
        name = field.name
        if field.kind is None:
            if field.is_repeated:
                for number, element in enumerate(getattr(message, name)):
                    yield from _normalise(element, f"{prefix}{name}[{number}].")
            elif message.HasField(name):
                yield from _normalise(getattr(message, name), f"{prefix}{name}.")
        elif value := getattr(message, name):
            if field.is_repeated:
                if field.kind != _TEXT.TEXT_UNSPECIFIED:
                    value[:] = [element.strip() for element in value]
                for number, element in enumerate(value):
                    yield from _fault(field.kind, element, f"{prefix}{name}[{number}]")
                continue
            if field.kind != _TEXT.TEXT_UNSPECIFIED and value != value.strip():
                value = value.strip()
                setattr(message, name, value)
            yield from _fault(field.kind, value, f"{prefix}{name}")


def _fault(kind: int, value: str, path: str) -> Iterator[FieldViolation]:
    if kind == _TEXT.TEXT_UNSPECIFIED and value.isascii() and value.isprintable():
        return
    if value and (fault := _FAULTS[kind](value)):
        yield FieldViolation(path, fault, _RULES[kind])


@cache
def _fields(descriptor: Descriptor) -> tuple[_Field, ...]:
    return tuple(
        _Field(field.name, field.is_repeated, None if field.message_type else kind_of(field))
        for field in descriptor.fields
        if (field.type == FieldDescriptor.TYPE_STRING and kind_of(field) != _TEXT.TEXT_SECRET)
        or (field.message_type is not None and has_texts(field.message_type))
    )


@cache
def has_texts(descriptor: Descriptor, above: frozenset[str] = frozenset()) -> bool:
    """Whether the message, or one in it, is ours and has a string."""
    if not descriptor.full_name.startswith(_PACKAGE) or descriptor.full_name in above:
        return False
    above |= {descriptor.full_name}
    return any(
        field.type == FieldDescriptor.TYPE_STRING
        or (field.message_type is not None and has_texts(field.message_type, above))
        for field in descriptor.fields
    )


def kind_of(field: FieldDescriptor) -> int:
    """What the text of a field is."""
    kind: int = field.GetOptions().Extensions[text_pb2.text]
    return kind
