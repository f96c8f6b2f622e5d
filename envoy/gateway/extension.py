"""Builds Envoy's extension messages as plain dicts."""

import json
from typing import Any

Config = dict[str, Any]
"""A message of Envoy's API as JSON."""

_TYPES = "type.googleapis.com/"


def extension(name: str, message: str, **fields: Any) -> Config:
    """An extension called `name`, configured by a `message` of Envoy's v3 API with `fields`."""
    return {"name": name, "typed_config": typed(message, **fields)}


def typed(message: str, **fields: Any) -> Config:
    """A message in an Any, e.g. `typed("envoy.extensions.filters.http.router.v3.Router")`."""
    return {"@type": _TYPES + message, **fields}


def seconds(duration: float) -> str:
    """A protobuf Duration as JSON, to the microsecond: 0.05 is "0.050000s"."""
    return f"{duration:.6f}s"


def percent(value: int) -> Config:
    """A RuntimeFractionalPercent without a runtime key."""
    return {"default_value": {"numerator": value, "denominator": "HUNDRED"}}


def first_of(*commands: tuple[str, str]) -> str:
    """The parameter of COALESCE in a format: the first command with a value."""
    operators = [{"command": command, "param": param} for command, param in commands]
    return json.dumps({"operators": operators})
