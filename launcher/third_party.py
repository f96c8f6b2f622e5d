"""Writes `third_party/`: the .proto files that the contract imports, from installed packages.

With them `buf lint`, editors and other languages' compilers work in a plain checkout. The file of
buf/validate is printed from its descriptor, because its package has no .proto file: without
comments, and without the CEL expressions of its standard rules, which every protovalidate has
built in.
"""

import shutil
import sysconfig
from collections.abc import Iterator
from pathlib import Path

from google.protobuf import descriptor_pb2

from mesh.paths import ROOT

FOLDER = ROOT / "third_party"
COPIED = (
    "google/api/annotations.proto",
    "google/api/field_behavior.proto",
    "google/api/http.proto",
    "google/api/httpbody.proto",
    "google/rpc/status.proto",
)
VALIDATE = "buf/validate/validate.proto"

_F = descriptor_pb2.FieldDescriptorProto
_LABELS = {_F.LABEL_OPTIONAL: "optional", _F.LABEL_REPEATED: "repeated"}


def write(folder: Path = FOLDER) -> None:
    """Writes the files below `folder`, which is replaced."""
    shutil.rmtree(folder, ignore_errors=True)
    for name in COPIED:
        target = folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(Path(sysconfig.get_path("purelib")) / name, target)
    target = folder / VALIDATE
    target.parent.mkdir(parents=True)
    target.write_text("\n".join(_file(validate_descriptor())) + "\n")


def validate_descriptor() -> descriptor_pb2.FileDescriptorProto:
    from protovalidate._gen.buf.validate import validate_pb

    descriptor = descriptor_pb2.FileDescriptorProto()
    descriptor.ParseFromString(validate_pb.desc().proto.to_binary())
    return descriptor


def _file(file: descriptor_pb2.FileDescriptorProto) -> Iterator[str]:
    yield "// Printed from the descriptor of the package protovalidate (Apache-2.0); see"
    yield "// launcher/third_party.py. Do not edit."
    yield ""
    syntax = file.syntax or "proto2"
    yield f'syntax = "{syntax}";'
    yield f"package {file.package};"
    yield from (f'import "{name}";' for name in file.dependency)
    yield f'option go_package = "{file.options.go_package}";'
    for extended in dict.fromkeys(field.extendee for field in file.extension):
        fields = [field for field in file.extension if field.extendee == extended]
        yield f"extend {extended} {{"
        yield from (f"  {_field(field)}" for field in fields)
        yield "}"
    for message in file.message_type:
        yield from _message(message, "")
    for enum in file.enum_type:
        yield from _enum(enum, "")


def _message(message: descriptor_pb2.DescriptorProto, indent: str) -> Iterator[str]:
    yield f"{indent}message {message.name} {{"
    inner = indent + "  "
    for enum in message.enum_type:
        yield from _enum(enum, inner)
    for nested in message.nested_type:
        yield from _message(nested, inner)
    for field in message.field:
        if not field.HasField("oneof_index"):
            yield f"{inner}{_field(field)}"
    for index, oneof in enumerate(message.oneof_decl):
        yield f"{inner}oneof {oneof.name} {{"
        for field in message.field:
            if field.HasField("oneof_index") and field.oneof_index == index:
                yield f"{inner}  {_field(field, label=False)}"
        yield f"{inner}}}"
    for extensions in message.extension_range:
        end = "max" if extensions.end > 536_870_911 else extensions.end - 1
        yield f"{inner}extensions {extensions.start} to {end};"
    for reserved in message.reserved_range:
        yield f"{inner}reserved {reserved.start} to {reserved.end - 1};"
    for name in message.reserved_name:
        yield f'{inner}reserved "{name}";'
    yield f"{indent}}}"


def _enum(enum: descriptor_pb2.EnumDescriptorProto, indent: str) -> Iterator[str]:
    yield f"{indent}enum {enum.name} {{"
    yield from (f"{indent}  {value.name} = {value.number};" for value in enum.value)
    for reserved in enum.reserved_range:
        yield f"{indent}  reserved {reserved.start} to {reserved.end};"
    yield f"{indent}}}"


def _field(field: descriptor_pb2.FieldDescriptorProto, *, label: bool = True) -> str:
    kind = field.type_name or _F.Type.Name(field.type).removeprefix("TYPE_").lower()
    words = [_LABELS[field.label]] * label + [kind, field.name, "=", str(field.number)]
    return " ".join(words) + ";"
