"""Examples of request bodies, answers and parameters, from the files in examples/.

`examples/<area>.json` has the examples of a package, by message: of a request, the body without the
fields in the path; of an answer, the JSON that the gateway returns. `examples/parameters.json` has
those of path variables and of required query parameters, by name. `{"$example": "User"}` stands for
another example of the file.
"""

import json
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from google.protobuf.descriptor import Descriptor, MethodDescriptor

from mesh.rpc.field_names import json_name
from mesh.rpc.policy import MethodPolicy
from openapi import rules

FOLDER = Path(__file__).parent / "examples"
PARAMETERS = "parameters.json"
NOT_JSON = frozenset({"google.api.HttpBody"})


class Examples:
    """The examples in `folder`."""

    def __init__(self, folder: Path = FOLDER) -> None:
        self._by_file: dict[str, dict[str, Any]] = {}
        for path in folder.glob("*.json"):
            entries = json.loads(path.read_text())
            self._by_file[path.name] = _resolved(entries, entries)

    def of_message(self, message: Descriptor) -> Any:
        """The example of a request or an answer; None if there is none."""
        return self._by_file.get(_file(message), {}).get(_key(message))

    def of_parameter(self, name: str) -> Any:
        """The example of a parameter, named as in JSON; None if there is none."""
        return self._by_file.get(PARAMETERS, {}).get(name)

    def missing(self, methods: Collection[tuple[MethodDescriptor, MethodPolicy]]) -> Iterator[str]:
        """What the methods need and the files do not have: where to write it, and what."""
        for method, policy in methods:
            for message, what in needed(method, policy):
                if self.of_message(message) is None:
                    yield (
                        f'envoy/openapi/examples/{_file(message)}: add "{_key(message)}", {what} '
                        f"of {policy.name}"
                    )
            for name in _parameters(method, policy):
                if self.of_parameter(name) is None:
                    yield (
                        f'envoy/openapi/examples/{PARAMETERS}: add "{name}", a parameter '
                        f"of {policy.name}"
                    )

    def unused(self, methods: Collection[tuple[MethodDescriptor, MethodPolicy]]) -> list[str]:
        """The entries that no method needs, e.g. `bookings.json: Booking`."""
        used = {
            (_file(message), _key(message))
            for method, policy in methods
            for message, _ in needed(method, policy)
        }
        used |= {
            (PARAMETERS, name) for method, policy in methods for name in _parameters(method, policy)
        }
        return [
            f"{file}: {key}"
            for file, entries in self._by_file.items()
            for key in entries
            if (file, key) not in used
        ]


def _resolved(value: Any, entries: dict[str, Any]) -> Any:
    if isinstance(value, list):
        return [_resolved(item, entries) for item in value]
    if not isinstance(value, dict):
        return value
    if "$example" in value:
        return _resolved(entries[value["$example"]], entries)
    return {key: _resolved(item, entries) for key, item in value.items()}


def needed(method: MethodDescriptor, policy: MethodPolicy) -> Iterator[tuple[Descriptor, str]]:
    """The messages of a method that need an example, and what the example is."""
    if any(binding.body for binding in policy.bindings) and not _is_raw(method, policy):
        yield method.input_type, "the request body"
    if policy.success_status != 204 and method.output_type.full_name not in NOT_JSON:
        yield method.output_type, "the answer"


def _is_raw(method: MethodDescriptor, policy: MethodPolicy) -> bool:
    """Whether the body is not JSON."""
    body = method.input_type.fields_by_name.get(policy.body_field)
    return (
        body is not None
        and body.message_type is not None
        and body.message_type.full_name in NOT_JSON
    )


def _parameters(method: MethodDescriptor, policy: MethodPolicy) -> Iterator[str]:
    for binding in policy.bindings:
        yield from map(json_name, binding.variables)
        if not binding.body:
            yield from (
                field.json_name
                for field in method.input_type.fields
                if rules.is_required(field) and field.name not in binding.variables
            )


def _file(message: Descriptor) -> str:
    return f"{message.file.package.split('.')[-2]}.json"


def _key(message: Descriptor) -> str:
    key: str = message.full_name.removeprefix(f"{message.file.package}.")
    return key
