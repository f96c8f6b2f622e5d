"""Every field that a client can send has an upper bound, in the contract."""

from collections.abc import Iterator

import pytest
from buf.validate import validate_pb2
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from testing.network import contract_services
from tests.architecture.contract import contract, methods

# The gateway bounds a raw body; a time or a duration has the range of its own format.
BOUNDED_BY_NATURE = {
    "google.api.HttpBody",
    "google.protobuf.Timestamp",
    "google.protobuf.Duration",
    "google.protobuf.Empty",
}
TEXT_BOUNDS = {
    "const",
    "in",
    "len",
    "max_len",
    "max_bytes",
    "len_bytes",
    "pattern",
    "email",
    "hostname",
    "ip",
    "ipv4",
    "ipv6",
    "uuid",
    "tuuid",
}
NUMBER_BOUNDS = {"const", "in", "lt", "lte"}


def unbounded(message: Descriptor, seen: frozenset[str] = frozenset()) -> Iterator[str]:
    """Fields of a message, and of those in it, that may be as large as the sender likes."""
    if message.full_name in BOUNDED_BY_NATURE or message.full_name in seen:
        return
    seen |= {message.full_name}
    for field in message.fields:
        rules = field.GetOptions().Extensions[validate_pb2.field]
        name = f"{message.full_name}.{field.name}"
        if field.is_repeated:
            bound = rules.map.max_pairs if _is_map(field) else rules.repeated.max_items
            if not bound:
                yield f"{name}: how many?"
            rules = rules.map.values if _is_map(field) else rules.repeated.items
        yield from (f"{name}: {fault}" for fault in _faults(field, rules))
        if field.message_type is not None:
            yield from unbounded(field.message_type, seen)


def _is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and field.message_type.GetOptions().map_entry


def _faults(field: FieldDescriptor, rules: validate_pb2.FieldRules) -> Iterator[str]:
    kind = rules.WhichOneof("type")
    named = {rule.name for rule, _ in getattr(rules, kind).ListFields()} if kind else set()
    if field.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES):
        if not named & TEXT_BOUNDS:
            yield "how long?"
    elif field.type == FieldDescriptor.TYPE_ENUM:
        if not named & {"const", "in", "defined_only"}:
            yield "which values?"
    elif field.cpp_type in _NUMERIC and not named & NUMBER_BOUNDS:
        yield "how large?"


_NUMERIC = {
    FieldDescriptor.CPPTYPE_INT32,
    FieldDescriptor.CPPTYPE_INT64,
    FieldDescriptor.CPPTYPE_UINT32,
    FieldDescriptor.CPPTYPE_UINT64,
    FieldDescriptor.CPPTYPE_DOUBLE,
    FieldDescriptor.CPPTYPE_FLOAT,
}

REQUESTS = {
    method.input_type.full_name: method.input_type
    for service in contract_services().values()
    for method in service.methods
}


def test_every_request_is_looked_at() -> None:
    named = {method.input_type.removeprefix(".") for _, method in methods(contract())}
    assert named == set(REQUESTS)


def test_every_field_of_a_request_has_an_upper_bound() -> None:
    assert {name: fields for name in REQUESTS if (fields := list(unbounded(REQUESTS[name])))} == {}


@pytest.mark.parametrize(
    ("field", "rules", "expected"),
    [
        ("string", "", ["how long?"]),
        ("string", "string { min_len: 1 }", ["how long?"]),
        ("string", "string { max_len: 9 }", []),
        ("string", "string { uuid: true }", []),
        ("string", "string { uri: true }", ["how long?"]),
        ("bytes", "", ["how long?"]),
        ("bytes", "bytes { max_len: 9 }", []),
        ("int32", "int32 { gte: 1 }", ["how large?"]),
        ("int32", "int32 { gte: 1 lte: 9 }", []),
        ("double", "", ["how large?"]),
        ("bool", "", []),
        ("repeated string", "repeated { max_items: 9 }", ["how long?"]),
        ("repeated string", "repeated { items { string { max_len: 9 } } }", ["how many?"]),
        ("repeated string", "repeated { max_items: 9 items { string { max_len: 9 } } }", []),
    ],
)
def test_what_counts_as_a_bound(field: str, rules: str, expected: list[str]) -> None:
    descriptions = [fault.partition(": ")[2] for fault in unbounded(a_message(field, rules))]
    assert descriptions == expected


def a_message(field: str, rules: str) -> Descriptor:
    """A message with one field, as if it stood in a proto."""
    from google.protobuf import text_format

    repeated, _, kind = field.rpartition(" ")
    proto = descriptor_pb2.FileDescriptorProto(name="example.proto", package="example")
    message = proto.message_type.add(name="Example")
    added = message.field.add(
        name="field",
        number=1,
        type=descriptor_pb2.FieldDescriptorProto.Type.Value(f"TYPE_{kind.upper()}"),
        label=descriptor_pb2.FieldDescriptorProto.LABEL_REPEATED
        if repeated
        else descriptor_pb2.FieldDescriptorProto.LABEL_OPTIONAL,
    )
    text_format.Parse(rules, added.options.Extensions[validate_pb2.field])
    pool = descriptor_pool.DescriptorPool()
    pool.Add(proto)
    return pool.FindMessageTypeByName("example.Example")


def test_a_position_of_a_stream_fits_into_its_field() -> None:
    """It names the transactions that ran: two snapshots with some hundred ids each."""
    bounds = [
        field.GetOptions().Extensions[validate_pb2.field].string.max_len
        for request in REQUESTS.values()
        for field in request.fields
        if field.name == "after_position"
    ]
    assert len(bounds) > 1
    assert min(bounds) >= 16_000
