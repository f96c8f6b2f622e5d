"""Messages as JSON Schema in ProtoJSON's format, with their buf.validate rules.

A message can have two schemas: `Event` in answers, and `EventInput` in requests, without the fields
that the server sets. Schemas of requests require the fields that their rules require and allow no
others; schemas of answers require all fields that ProtoJSON always prints.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from buf.validate import validate_pb2
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from openapi import rules as rules_of
from openapi.comments import example, paragraphs, without_example
from openapi.rules import INT64, UINT64, Combinations, Schema

_DURATION = r"^-?[0-9]{1,12}(\.[0-9]{1,9})?s$"
_MIN_INT32, _MAX_INT32, _MAX_UINT32 = -(2**31), 2**31 - 1, 2**32 - 1

_WELL_KNOWN: dict[str, Schema] = {
    "google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    "google.protobuf.Duration": {"type": "string", "pattern": _DURATION},
    "google.protobuf.FieldMask": {
        "type": "string",
        "description": "Field paths, separated by commas.",
    },
    "google.protobuf.Struct": {"type": "object"},
    "google.protobuf.Empty": {"type": "object"},
    "google.protobuf.Any": {"type": "object", "required": ["@type"]},
    "google.rpc.Status": {"$ref": "#/components/schemas/Error"},
    "google.api.HttpBody": {"type": "string", "format": "binary"},
}
_F = FieldDescriptor
_SCALARS: dict[int, Schema] = {
    _F.TYPE_DOUBLE: {"type": "number", "format": "double"},
    _F.TYPE_FLOAT: {"type": "number", "format": "float"},
    **{
        kind: {"type": "string", "format": "int64", "pattern": INT64}
        for kind in (_F.TYPE_INT64, _F.TYPE_SINT64, _F.TYPE_SFIXED64)
    },
    **{
        kind: {"type": "string", "format": "uint64", "pattern": UINT64}
        for kind in (_F.TYPE_UINT64, _F.TYPE_FIXED64)
    },
    **{
        kind: {
            "type": "integer",
            "format": "int32",
            "minimum": _MIN_INT32,
            "maximum": _MAX_INT32,
        }
        for kind in (_F.TYPE_INT32, _F.TYPE_SINT32, _F.TYPE_SFIXED32)
    },
    **{
        kind: {"type": "integer", "minimum": 0, "maximum": _MAX_UINT32}
        for kind in (_F.TYPE_UINT32, _F.TYPE_FIXED32)
    },
    _F.TYPE_BOOL: {"type": "boolean"},
    _F.TYPE_STRING: {"type": "string"},
    _F.TYPE_BYTES: {"type": "string", "contentEncoding": "base64"},
}


@dataclass
class Components:
    """The component schemas of a document, and their names by the full name of their type."""

    names: dict[str, str] = field(default_factory=dict)
    schemas: dict[str, Schema] = field(default_factory=dict)


class Schemas:
    """The schemas of one direction: of requests, or of answers.

    `here` and `there` are the full names of the messages in this direction and in the other.
    """

    def __init__(
        self,
        comments: Mapping[str, str],
        components: Components,
        *,
        here: frozenset[str],
        there: frozenset[str],
        is_request: bool,
    ) -> None:
        self._comments = comments
        self._components = components
        self._shared = here & there
        self._is_request = is_request

    def of(self, message: Descriptor) -> Schema:
        """A reference to a message, which is added, or the schema of a well-known type."""
        if message.full_name in _WELL_KNOWN:
            return dict(_WELL_KNOWN[message.full_name])
        name = self.name(message)
        if name not in self._components.schemas:
            self._components.schemas[name] = {}  # ends the recursion of messages in themselves
            self._components.schemas[name] = self._object(message)
        return {"$ref": f"#/components/schemas/{name}"}

    def body(self, message: Descriptor, without: frozenset[str]) -> Schema:
        """A reference to a request's body: its message without the fields in the path."""
        name = self.name(message)
        self._components.schemas.setdefault(name, self._object(message, without))
        return {"$ref": f"#/components/schemas/{name}"}

    def part(self, message: Descriptor, without: frozenset[str]) -> Schema:
        """A reference to what webhooks have of a message: it without some fields."""
        if without.isdisjoint(message.fields_by_name):
            return self.of(message)
        name = f"Webhook{self.name(message)}"
        self._components.schemas.setdefault(name, self._object(message, without))
        return {"$ref": f"#/components/schemas/{name}"}

    def illustrate(self, schema: Schema, example: object) -> bool:
        """Adds an example to the component that a schema refers to; False if it has another."""
        component = self._components.schemas.get(schema.get("$ref", "").rpartition("/")[2])
        return component is not None and component.setdefault("examples", [example]) == [example]

    def name(self, type_: Descriptor | EnumDescriptor) -> str:
        """The type's name in its package, prefixed with the area if two areas have it."""
        full_name: str = type_.full_name
        package: str = type_.file.package
        name = full_name.removeprefix(f"{package}.").replace(".", "")
        if self._components.names.setdefault(name, full_name) != full_name:
            name = package.split(".")[-2].capitalize() + name
        is_input = self._is_request and isinstance(type_, Descriptor) and self._differs(type_)
        return f"{name}Input" if is_input else name

    def field(self, field: FieldDescriptor) -> Schema:
        rules = rules_of.field_rules(field)
        text = self._comments.get(field.full_name, "")
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            value = field.message_type.fields_by_name["value"]
            schema: Schema = {"type": "object", "additionalProperties": self._single(value)}
            if rules.map.HasField("max_pairs"):
                schema["maxProperties"] = rules.map.max_pairs
        elif field.is_repeated:
            schema = {"type": "array", "items": self._single(field, rules.repeated.items)}
            if rules.repeated.HasField("min_items"):
                schema["minItems"] = rules.repeated.min_items
            if rules.repeated.HasField("max_items"):
                schema["maxItems"] = rules.repeated.max_items
            if rules.repeated.unique:
                schema["uniqueItems"] = True
        else:
            schema = self._single(field, rules)
            typed = rules_of.typed_example(example(text), schema)
            if typed is not None:
                schema["examples"] = [typed]
        description = self._description(field.full_name, rules)
        if "examples" in schema:
            description = without_example(description)
        if description:
            schema["description"] = description
        if rules_of.is_set_by_server(field):
            schema["readOnly"] = True
        return schema

    def _object(self, message: Descriptor, without: frozenset[str] = frozenset()) -> Schema:
        fields = {
            field.name: field
            for field in message.fields
            if field.name not in without
            and not (self._is_request and rules_of.is_set_by_server(field))
        }
        rules = rules_of.message_rules(message)
        schema: Schema = {
            "type": "object",
            "description": self._description(message.full_name, rules),
        }
        alternatives = self._alternatives(message, fields)
        if alternatives:
            return schema | {"oneOf": alternatives}
        return schema | self._members(message, fields)

    def _members(self, message: Descriptor, fields: Mapping[str, FieldDescriptor]) -> Schema:
        """The keywords of an object with some of a message's fields."""
        combinations = Combinations(message)
        members: Schema = {
            "properties": {field.json_name: self.field(field) for field in fields.values()}
        }
        required = [field.json_name for field in fields.values() if self._is_required(field)]
        if required:
            members["required"] = required
        needs = {
            fields[name].json_name: [fields[needed].json_name]
            for name, needed in combinations.needs
            if name in fields and needed in fields
        }
        if needs:
            members["dependentRequired"] = needs
        for pair in combinations.not_both:
            if fields.keys() >= set(pair):
                members["not"] = {"required": [fields[name].json_name for name in pair]}
        if self._is_request and (message.full_name not in self._shared or self._differs(message)):
            members["additionalProperties"] = False
        return members

    def _alternatives(
        self, message: Descriptor, fields: Mapping[str, FieldDescriptor]
    ) -> list[Schema]:
        """One object per field of which exactly one is given; none if there are no such fields."""
        combinations = Combinations(message)
        choices = [list(pair) for pair in combinations.one_of]
        choices += [
            [field.name for field in oneof.fields]
            for oneof in message.oneofs
            if len(oneof.fields) > 1
        ]
        if len(choices) != 1 or not fields.keys() >= set(choices[0]):
            return []
        alternatives = []
        for chosen in choices[0]:
            absent = {*choices[0], *combinations.excluded_by(chosen)} - {chosen}
            members = self._members(
                message, {name: field for name, field in fields.items() if name not in absent}
            )
            members.pop("dependentRequired", None)
            needed = [fields[name].json_name for name in combinations.needed_by(chosen)]
            members["required"] = [
                *members.get("required", []),
                fields[chosen].json_name,
                *needed,
            ]
            name = self.name(message) + _capitalised(fields[chosen].json_name)
            self._components.schemas[name] = {"type": "object", **members}
            alternatives.append({"$ref": f"#/components/schemas/{name}"})
        return alternatives

    def _single(
        self, field: FieldDescriptor, rules: "validate_pb2.FieldRules | None" = None
    ) -> Schema:
        rules = rules or validate_pb2.FieldRules()
        if field.message_type is not None:
            return self.of(field.message_type)
        if field.enum_type is not None:
            return self._enum(field.enum_type)
        schema = {**_SCALARS[field.type], **rules_of.constraints(field, rules)}
        may_be_empty = rules.ignore == validate_pb2.IGNORE_IF_ZERO_VALUE
        if may_be_empty and schema["type"] == "string" and len(schema) > 1:
            return {"type": "string", "anyOf": [{"maxLength": 0}, schema]}
        return schema

    def _enum(self, enum: EnumDescriptor) -> Schema:
        values = [value for value in enum.values if value.number != 0]
        listed = [
            f"- `{value.name}`: {paragraphs(self._comments.get(f'{enum.full_name}.{value.name}', ''))}"
            for value in values
        ]
        name = self.name(enum)
        self._components.schemas.setdefault(
            name,
            {
                "type": "string",
                "enum": [value.name for value in values],
                "description": "\n\n".join(
                    [paragraphs(self._comments.get(enum.full_name, "")), "\n".join(listed)]
                ),
            },
        )
        return {"$ref": f"#/components/schemas/{name}"}

    def _is_required(self, field: FieldDescriptor) -> bool:
        if self._is_request:
            return rules_of.is_required(field)
        return rules_of.is_always_answered(field)

    def _differs(self, message: Descriptor, above: frozenset[str] = frozenset()) -> bool:
        """Whether a message that requests and answers have differs between them."""
        if message.full_name not in self._shared or message.full_name in above:
            return False
        above |= {message.full_name}
        return any(
            rules_of.is_set_by_server(field)
            or rules_of.is_required(field) != rules_of.is_always_answered(field)
            or (field.message_type is not None and self._differs(field.message_type, above))
            for field in message.fields
        )

    def _description(
        self, name: str, rules: "validate_pb2.FieldRules | validate_pb2.MessageRules"
    ) -> str:
        text = paragraphs(self._comments.get(name, ""))
        listed = [f"Rule: {rule}." for rule in rules_of.descriptions(rules)]
        return "\n\n".join([text, *listed]).strip()


def _capitalised(name: str) -> str:
    return name[:1].upper() + name[1:]
