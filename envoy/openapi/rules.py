"""The buf.validate rules of fields and messages as keywords of JSON Schema."""

import re
from typing import Any

from buf.validate import validate_pb2
from google.api import field_behavior_pb2
from google.protobuf import descriptor_pb2
from google.protobuf.descriptor import Descriptor, FieldDescriptor

from boxoffice.options.v1 import text_pb2
from mesh.rpc.field_names import MARKED, json_name

Schema = dict[str, Any]

INT64, UINT64 = r"^-?[0-9]{1,19}$", r"^[0-9]{1,20}$"

_FORMATS = {"uuid": "uuid", "email": "email", "uri": "uri", "hostname": "hostname"}
_NUMBERS = {
    "gt": "exclusiveMinimum",
    "gte": "minimum",
    "lt": "exclusiveMaximum",
    "lte": "maximum",
}
_NUMERIC = ("int32", "int64", "uint32", "uint64", "double", "float")

# Few regex engines of clients support Unicode classes.
_CONTROLS = (r"\p{Cc}", r"\x00-\x1f\x7f-\x9f")
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


def field_rules(field: FieldDescriptor) -> validate_pb2.FieldRules:
    rules: validate_pb2.FieldRules = _options(field).Extensions[validate_pb2.field]
    return rules


def is_set_by_server(field: FieldDescriptor) -> bool:
    """Whether requests leave the field out: (google.api.field_behavior) = OUTPUT_ONLY."""
    behaviors = _options(field).Extensions[field_behavior_pb2.field_behavior]
    return field_behavior_pb2.OUTPUT_ONLY in behaviors


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


def is_always_answered(field: FieldDescriptor) -> bool:
    """Whether every answer has the field.

    ProtoJSON prints all fields without presence. Messages are set unless they are `optional`.
    """
    if field_rules(field).required or not field.has_presence:
        return True
    return field.message_type is not None and field.containing_oneof is None


def constraints(field: FieldDescriptor, rules: validate_pb2.FieldRules) -> Schema:
    """The keywords for a single value, from its rules and its kind of text."""
    text = _TEXTS.get(_options(field).Extensions[text_pb2.text], {})
    if "pattern" in text and not rules.string.min_len:
        text = {"pattern": f"^$|{text['pattern']}"}
    return _of_rules(rules) | text


def descriptions(rules: validate_pb2.FieldRules | validate_pb2.MessageRules) -> list[str]:
    """What the CEL expressions of rules ask for, with fields named as in JSON."""
    return [MARKED.sub(lambda name: f"`{json_name(name[1])}`", rule.message) for rule in rules.cel]


def message_rules(message: Descriptor) -> validate_pb2.MessageRules:
    options = descriptor_pb2.MessageOptions.FromString(message.GetOptions().SerializeToString())
    rules: validate_pb2.MessageRules = options.Extensions[validate_pb2.message]
    return rules


_ONE_OF = re.compile(r"has\(this\.(\w+)\) != has\(this\.(\w+)\)")
_NOT_BOTH = re.compile(r"!has\(this\.(\w+)\) \|\| !has\(this\.(\w+)\)")
_NEEDS = re.compile(r"!has\(this\.(\w+)\) \|\| has\(this\.(\w+)\)")


class Combinations:
    """Which fields of a message go together, from the CEL expressions of its rules.

    Three forms are understood: `has(this.a) != has(this.b)` (exactly one), `!has(this.a) ||
    !has(this.b)` (not both) and `!has(this.a) || has(this.b)` (a only with b).
    """

    def __init__(self, message: Descriptor) -> None:
        expressions = [rule.expression for rule in message_rules(message).cel]
        self.one_of = _pairs(_ONE_OF, expressions)
        self.not_both = _pairs(_NOT_BOTH, expressions)
        self.needs = _pairs(_NEEDS, expressions)

    def excluded_by(self, name: str) -> set[str]:
        """The fields that must not be given together with a field."""
        pairs = [*self.one_of, *self.not_both]
        return {other for pair in pairs if name in pair for other in pair if other != name}

    def needed_by(self, name: str) -> list[str]:
        """The fields that must be given together with a field."""
        return [needed for field, needed in self.needs if field == name]


def _pairs(form: "re.Pattern[str]", expressions: list[str]) -> list[tuple[str, str]]:
    matches = (form.fullmatch(expression) for expression in expressions)
    return [(match[1], match[2]) for match in matches if match is not None]


def typed_example(text: str | None, schema: Schema) -> object:
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


def _options(field: FieldDescriptor) -> descriptor_pb2.FieldOptions:
    # Options from another pool have other classes; parsing their bytes again gives ours.
    return descriptor_pb2.FieldOptions.FromString(field.GetOptions().SerializeToString())


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


def _of_rules(rules: validate_pb2.FieldRules) -> Schema:
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
        return {"pattern": UINT64.replace("20", "19"), "$comment": comment}
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


def _matches(pattern: str, text: str) -> bool:
    try:
        return re.search(pattern, text) is not None
    except re.error:
        # RE2 supports classes such as \p{L}, Python does not.
        return True
