"""The protos' leading comments, by full name of the element."""

import re
from collections.abc import Iterator

from google.protobuf import descriptor_pb2

from mesh.rpc.field_names import MARKED, json_name

_MESSAGE, _ENUM, _SERVICE = 4, 5, 6
_NESTED, _NESTED_ENUM, _MEMBER = 3, 4, 2

_EXAMPLE = re.compile(r"[Ee]\.g\. `([^`]+)`")


def comments(contract: descriptor_pb2.FileDescriptorSet) -> dict[str, str]:
    """Leading comments by full name, e.g. `boxoffice.types.v1.Money.amount_minor`.

    Fields in backticks are named as in JSON, e.g. `amountMinor`.
    """
    files = [file for file in contract.file if file.package.startswith("boxoffice.")]
    fields = {
        field for file in files for message in file.message_type for field in _fields(message)
    }

    def renamed(name: "re.Match[str]") -> str:
        parts = re.findall(r"[a-z]\w*", name[1])
        return f"`{json_name(name[1])}`" if fields.issuperset(parts) else name[0]

    return {name: MARKED.sub(renamed, text) for file in files for name, text in _of_file(file)}


def paragraphs(text: str) -> str:
    """A comment as Markdown: joins lines, keeps paragraphs."""
    return "\n\n".join(
        " ".join(line.strip() for line in part.splitlines()) for part in text.strip().split("\n\n")
    )


def summary(text: str) -> str:
    """The first sentence, without its full stop."""
    return _first(paragraphs(text)).replace("`", "")


def after_summary(text: str) -> str:
    """The text without its first sentence, which is the summary."""
    whole = paragraphs(text)
    return re.sub(rf"^{re.escape(_first(whole))}[.:]?\s*", "", whole)


def example(text: str) -> str | None:
    """The example in a comment: 42 of "Units, e.g. `42`"."""
    match = _EXAMPLE.search(" ".join(text.split()))
    return match.group(1) if match else None


def without_example(text: str) -> str:
    """A description without the example that stands beside it: "Units." of "Units, e.g. `42`."."""
    return re.sub(r", e\.g\. `[^`]+`(?=[.;,)]|$)", "", text, count=1)


def _first(text: str) -> str:
    return re.split(r"\.(?:\s|$)|: ", text.split("\n\n", maxsplit=1)[0], maxsplit=1)[0]


def _fields(message: descriptor_pb2.DescriptorProto) -> Iterator[str]:
    yield from (field.name for field in message.field)
    for nested in message.nested_type:
        yield from _fields(nested)


def _of_file(file: descriptor_pb2.FileDescriptorProto) -> Iterator[tuple[str, str]]:
    names = dict(_names(file))
    for location in file.source_code_info.location:
        name = names.get(tuple(location.path))
        if name is not None and location.leading_comments:
            yield name, location.leading_comments


def _names(
    file: descriptor_pb2.FileDescriptorProto,
) -> Iterator[tuple[tuple[int, ...], str]]:
    for index, message in enumerate(file.message_type):
        yield from _of_message(message, file.package, (_MESSAGE, index))
    for index, enum in enumerate(file.enum_type):
        yield from _of_enum(enum, file.package, (_ENUM, index))
    for index, service in enumerate(file.service):
        name = f"{file.package}.{service.name}"
        yield (_SERVICE, index), name
        for number, method in enumerate(service.method):
            yield (_SERVICE, index, _MEMBER, number), f"{name}.{method.name}"


def _of_message(
    message: descriptor_pb2.DescriptorProto, scope: str, path: tuple[int, ...]
) -> Iterator[tuple[tuple[int, ...], str]]:
    name = f"{scope}.{message.name}"
    yield path, name
    for index, field in enumerate(message.field):
        yield (*path, _MEMBER, index), f"{name}.{field.name}"
    for index, nested in enumerate(message.nested_type):
        yield from _of_message(nested, name, (*path, _NESTED, index))
    for index, enum in enumerate(message.enum_type):
        yield from _of_enum(enum, name, (*path, _NESTED_ENUM, index))


def _of_enum(
    enum: descriptor_pb2.EnumDescriptorProto, scope: str, path: tuple[int, ...]
) -> Iterator[tuple[tuple[int, ...], str]]:
    name = f"{scope}.{enum.name}"
    yield path, name
    for index, value in enumerate(enum.value):
        yield (*path, _MEMBER, index), f"{name}.{value.name}"
