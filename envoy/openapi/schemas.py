"""Messages as JSON Schema in ProtoJSON's format, with their buf.validate rules.

Messages in requests require the fields that their rules require. Messages only in responses
require all fields that ProtoJSON always prints.
"""

import re
from collections.abc import Mapping
from typing import Any

from buf.validate import validate_pb2
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from boxoffice.options.v1 import text_pb2
from openapi.comments import example, paragraphs

Schema = dict[str, Any]

_INT64 = r"^-?[0-9]{1,19}$"
_UINT64 = r"^[0-9]{1,20}$"
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
    _F.TYPE_INT64: {"type": "string", "format": "int64", "pattern": _INT64},
    _F.TYPE_SINT64: {"type": "string", "format": "int64", "pattern": _INT64},
    _F.TYPE_SFIXED64: {"type": "string", "format": "int64", "pattern": _INT64},
    _F.TYPE_UINT64: {"type": "string", "format": "uint64", "pattern": _UINT64},
    _F.TYPE_FIXED64: {"type": "string", "format": "uint64", "pattern": _UINT64},
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
_FORMATS = {"uuid": "uuid", "email": "email", "uri": "uri", "hostname": "hostname"}
_NUMBERS = {
    "gt": "exclusiveMinimum",
    "gte": "minimum",
    "lt": "exclusiveMaximum",
    "lte": "maximum",
}


class Schemas:
    """The component schemas of a document."""

    def __init__(
        self, comments: Mapping[str, str], requested: frozenset[str], answered: frozenset[str]
    ) -> None:
        self._comments = comments
        self._requested = requested
        self._answered = answered
        self._names: dict[str, str] = {}
        self.components: dict[str, Schema] = {}

    def of(self, message: Descriptor) -> Schema:
        """A reference to a message, which is added, or the schema of a well-known type."""
        if message.full_name in _WELL_KNOWN:
            return dict(_WELL_KNOWN[message.full_name])
        name = self._name(message)
        if name not in self.components:
            self.components[name] = {}  # ends the recursion for messages that contain themselves
            self.components[name] = self.object(message)
        return {"$ref": f"#/components/schemas/{name}"}

    def object(self, message: Descriptor, without: frozenset[str] = frozenset()) -> Schema:
        """A message as an object without the fields in `without`, e.g. those in the path."""
        fields = [field for field in message.fields if field.name not in without]
        schema: Schema = {
            "type": "object",
            "description": self._description(message.full_name, _message_rules(message)),
            "properties": {field.json_name: self.field(field) for field in fields},
        }
        required = [field.json_name for field in fields if self._is_required(field)]
        if required:
            schema["required"] = required
        return schema

    def field(self, field: FieldDescriptor) -> Schema:
        rules = field_rules(field)
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
            typed = _typed_example(example(text), schema)
            if typed is not None:
                schema["examples"] = [typed]
        description = self._description(field.full_name, [rule.message for rule in rules.cel])
        if description:
            schema["description"] = description
        return schema

    def _single(
        self, field: FieldDescriptor, rules: "validate_pb2.FieldRules | None" = None
    ) -> Schema:
        rules = rules or validate_pb2.FieldRules()
        if field.message_type is not None:
            return self.of(field.message_type)
        if field.enum_type is not None:
            return self._enum(field.enum_type)
        schema = {**_SCALARS[field.type], **_constraints(rules)}
        schema |= _TEXTS.get(_options(field).Extensions[text_pb2.text], {})
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
        name = self._name(enum)
        self.components.setdefault(
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

    def _name(self, type_: Descriptor | EnumDescriptor) -> str:
        """The type's name in its package, prefixed with the area if two areas have it."""
        full_name: str = type_.full_name
        package: str = type_.file.package
        name = full_name.removeprefix(f"{package}.")
        if self._names.setdefault(name, full_name) == full_name:
            return name
        return f"{package.split('.')[-2]}.{name}"

    def _is_required(self, field: FieldDescriptor) -> bool:
        message = _message_of(field)
        if message in self._answered and message not in self._requested:
            return not field.has_presence
        return is_required(field)

    def _description(self, name: str, rules: list[str]) -> str:
        text = paragraphs(self._comments.get(name, ""))
        return "\n\n".join([text, *(f"Rule: {rule}." for rule in rules)]).strip()


def _message_of(field: FieldDescriptor) -> str:
    message = field.containing_type
    # None for extensions, which the contract does not use.
    return message.full_name if message is not None else ""


def field_rules(field: FieldDescriptor) -> validate_pb2.FieldRules:
    rules: validate_pb2.FieldRules = _options(field).Extensions[validate_pb2.field]
    return rules


def _options(field: FieldDescriptor) -> descriptor_pb2.FieldOptions:
    # Options from another pool have other classes; parsing their bytes again gives ours.
    return descriptor_pb2.FieldOptions.FromString(field.GetOptions().SerializeToString())


def is_required(field: FieldDescriptor) -> bool:
    """Whether a request without the field violates the field's rules."""
    rules = field_rules(field)
    if rules.required:
        return True
    if field.has_presence or rules.ignore == validate_pb2.IGNORE_IF_ZERO_VALUE:
        return False
    if field.is_repeated:
        return bool(rules.repeated.min_items)
    return _refuses_zero(field, rules)


def _refuses_zero(field: FieldDescriptor, rules: validate_pb2.FieldRules) -> bool:
    """Whether "", 0 or the zero value of an enum violates the rules."""
    if field.enum_type is not None:
        return 0 in rules.enum.not_in
    if field.type == FieldDescriptor.TYPE_STRING:
        text = rules.string
        refused = text.pattern and not _matches(text.pattern, "")
        return bool(text.min_len or text.len or text.uuid or text.email or text.uri or refused)
    kind = rules.WhichOneof("type")
    if kind in _NUMERIC:
        number = getattr(rules, kind)
        return bool(number.HasField("gt") and number.gt >= 0) or bool(
            number.HasField("gte") and number.gte > 0
        )
    return False


_NUMERIC = ("int32", "int64", "uint32", "uint64", "double", "float")


def _constraints(rules: validate_pb2.FieldRules) -> Schema:
    kind = rules.WhichOneof("type")
    if kind == "string":
        return _of_text(rules.string)
    if kind not in _NUMERIC:
        return {}
    number = getattr(rules, kind)
    bounds = {
        keyword: getattr(number, rule)
        for rule, keyword in _NUMBERS.items()
        if number.HasField(rule)
    }
    if kind not in ("int64", "uint64"):
        return bounds
    # A string in JSON, for which JSON Schema has no numeric bounds: they become a comment.
    comment = ", ".join(f"{keyword} {value}" for keyword, value in bounds.items())
    if number.HasField("gte") and number.gte >= 0:
        return {"pattern": _UINT64.replace("20", "19"), "$comment": comment}
    return {"$comment": comment} if comment else {}


def _of_text(rules: validate_pb2.StringRules) -> Schema:
    schema: Schema = {}
    if rules.HasField("len"):
        schema |= {"minLength": rules.len, "maxLength": rules.len}
    if rules.HasField("min_len"):
        schema["minLength"] = rules.min_len
    if rules.HasField("max_len"):
        schema["maxLength"] = rules.max_len
    if rules.HasField("max_bytes"):
        schema["maxLength"] = min(schema.get("maxLength", rules.max_bytes), rules.max_bytes)
    if rules.HasField("pattern"):
        schema["pattern"] = rules.pattern.replace(*_CONTROLS)
    if getattr(rules, "in"):
        schema["enum"] = list(getattr(rules, "in"))
    well_known = rules.WhichOneof("well_known")
    if well_known in _FORMATS and getattr(rules, well_known):
        schema["format"] = _FORMATS[well_known]
    return schema


def _message_rules(message: Descriptor) -> list[str]:
    options = descriptor_pb2.MessageOptions.FromString(message.GetOptions().SerializeToString())
    return [rule.message for rule in options.Extensions[validate_pb2.message].cel]


def _typed_example(text: str | None, schema: Schema) -> object:
    """The example as a JSON value; None if it does not match the schema."""
    kind = schema.get("type")
    if text is None or kind not in ("string", "integer", "number"):
        return None
    if kind == "string":
        return text if _matches(schema.get("pattern", ""), text) else None
    try:
        return int(text) if kind == "integer" else float(text)
    except ValueError:
        return None


# Characters that show nothing, without those that join others.
_HIDDEN = r"\x00-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff"


def _one_line(hidden: str) -> str:
    """A pattern for text in one line with a visible character; stricter rules are in comments."""
    return rf"^[^{hidden}]*[^\s{hidden}][^{hidden}]*$"


_TEXTS: dict[int, Schema] = {
    text_pb2.TEXT_NAME: {"pattern": _one_line(rf"{_HIDDEN}\u200c\u200d")},
    text_pb2.TEXT_TITLE: {"pattern": _one_line(_HIDDEN)},
    text_pb2.TEXT_EMAIL: {"format": "email"},
}

# Few regex engines of clients support Unicode classes.
_CONTROLS = (r"\p{Cc}", r"\x00-\x1f\x7f-\x9f")


def _matches(pattern: str, text: str) -> bool:
    try:
        return re.search(pattern, text) is not None
    except re.error:
        # RE2 supports classes such as \p{L}, Python does not.
        return True
