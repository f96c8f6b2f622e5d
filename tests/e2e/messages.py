"""Hypothesis strategies for messages of any type of the contract: valid, unusual and broken ones."""

import string
from collections.abc import Mapping
from typing import Any

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from hypothesis import strategies as st

_MAX_DEPTH = 4
_KINDS = FieldDescriptor
_RANGES = {
    _KINDS.CPPTYPE_INT32: (-(2**31), 2**31 - 1),
    _KINDS.CPPTYPE_UINT32: (0, 2**32 - 1),
    _KINDS.CPPTYPE_INT64: (-(2**63), 2**63 - 1),
    _KINDS.CPPTYPE_UINT64: (0, 2**64 - 1),
}
# Valid values by field name, so that requests get past validation.
_GOOD = {
    "currency_code": "INR",
    "email": "mira@example.com",
    "full_name": "Mira Rao",
    "new_email": "mira@example.org",
    "phone": "098765 43210",
    "name": "Monsoon Nights",
    "password": "Curtain-Up-2026!",
    "time_zone": "Asia/Kolkata",
    "url": "http://127.0.0.1:1/hook",
}
# Texts that are known to break software.
_TEXTS = [
    *("", " ", "\x00", "a\x00b", "\u202e", "\ufeff", "\U0001f39f" * 40, "x" * 300, "x" * 20_000),
    *("' OR 1=1 --", "%s{0}", "../../etc/passwd", "http://127.0.0.1:1/", "https://[::1", "-1"),
    *("2099-07-04T14:00:00Z", "0001-01-01T00:00:00Z", "9999-99-99", "NaN", "1e400", "true"),
]

Known = Mapping[str, str]
"""Ids of existing resources by field name. They are used half of the time."""


def messages(descriptor: Descriptor, known: Known, depth: int = 0) -> st.SearchStrategy[Message]:
    """Messages with any of their fields set to any value of its type."""
    kind = GetMessageClass(descriptor)
    fields = [
        field
        for field in descriptor.fields
        if depth < _MAX_DEPTH or field.cpp_type != _KINDS.CPPTYPE_MESSAGE
    ]
    if not fields:
        return st.builds(kind)

    @st.composite
    def build(draw: st.DrawFn) -> Message:
        message = kind()
        for field in fields:
            # Fields are rarely omitted: most requests need most of them.
            if draw(st.integers(0, 5)):
                _set(message, field, draw(_values(field, known, depth)))
        return message

    return build()


def broken(message: Message) -> st.SearchStrategy[bytes]:
    """A message's bytes truncated, reversed or followed by other bytes."""
    whole = message.SerializeToString()
    return st.one_of(
        st.integers(0, len(whole)).map(lambda end: whole[:end]),
        st.just(whole[::-1]),
        st.binary(max_size=40).map(lambda rest: whole + rest),
        # A text that is not UTF-8.
        st.just(whole + b"\x0a\x02\xc3\x28"),
    )


def _set(message: Message, field: FieldDescriptor, value: Any) -> None:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        values = field.message_type.fields_by_name["value"]
        for key, entry in value:
            if values.message_type is not None:
                getattr(message, field.name)[key].CopyFrom(entry)
            else:
                getattr(message, field.name)[key] = entry
    elif field.is_repeated:
        getattr(message, field.name).extend(value)
    elif field.message_type is not None:
        getattr(message, field.name).CopyFrom(value)
    else:
        setattr(message, field.name, value)


def _values(field: FieldDescriptor, known: Known, depth: int) -> st.SearchStrategy[Any]:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        entry = field.message_type.fields_by_name
        pair = st.tuples(
            _single(entry["key"], known, depth + 1), _single(entry["value"], known, depth + 1)
        )
        return st.lists(pair, max_size=3)
    value = _single(field, known, depth)
    return st.lists(value, max_size=3) if field.is_repeated else value


def _single(field: FieldDescriptor, known: Known, depth: int) -> st.SearchStrategy[Any]:
    if field.message_type is not None:
        if field.message_type.full_name == "google.protobuf.Timestamp":
            return _timestamps(field.message_type)
        return messages(field.message_type, known, depth + 1)
    if field.enum_type is not None:
        numbers = [value.number for value in field.enum_type.values]
        return st.sampled_from([*numbers, *numbers, 99, -1])
    if field.cpp_type in _RANGES:
        low, high = _RANGES[field.cpp_type]
        edges = [number for number in (low, -1, 0, 1, 2, 100, high) if low <= number <= high]
        return st.one_of(st.integers(1, 10), st.sampled_from(edges), st.integers(low, high))
    if field.cpp_type == _KINDS.CPPTYPE_BOOL:
        return st.booleans()
    if field.cpp_type == _KINDS.CPPTYPE_STRING:
        return st.binary(max_size=40) if field.type == _KINDS.TYPE_BYTES else _texts(field, known)
    return st.floats(width=32 if field.cpp_type == _KINDS.CPPTYPE_FLOAT else 64)


def _texts(field: FieldDescriptor, known: Known) -> st.SearchStrategy[str]:
    words = st.text(string.ascii_letters + " ", min_size=1, max_size=20)
    anything = st.one_of(
        words, st.uuids().map(str), st.sampled_from(_TEXTS), st.text(max_size=60, alphabet=_UTF_8)
    )
    good = {**_GOOD, **known}.get(field.name.removesuffix("s"))
    if good is None:
        return anything
    return st.tuples(st.booleans(), anything).map(lambda drawn: drawn[1] if drawn[0] else good)


# Surrogates have no UTF-8 encoding: protobuf refuses them.
_UTF_8 = st.characters(exclude_categories=["Cs"])


def _timestamps(descriptor: Descriptor) -> st.SearchStrategy[Message]:
    """Timestamps within and outside of the years that databases and calendars support."""
    kind: Any = GetMessageClass(descriptor)
    seconds = st.one_of(
        st.integers(1_577_836_800, 4_102_444_800),
        st.integers(1_777_836_800, 1_902_444_800),
        st.sampled_from([-62_135_596_800, -62_135_596_801, 253_402_300_799, 253_402_300_800, 0]),
        st.integers(-(2**63), 2**63 - 1),
    )
    nanos = st.sampled_from([0, 0, 0, 1, 999_999_999, 1_000_000_000, -1])
    return st.builds(kind, seconds=seconds, nanos=nanos)
