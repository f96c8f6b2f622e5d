"""The lines of a file as requests of the API, and their faults."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from google.protobuf import json_format
from google.protobuf.message import Message

from boxoffice.catalogue.v1 import (
    event_service_pb2,
    production_service_pb2,
    venue_service_pb2,
)
from mesh.errors import DomainError, FieldViolation
from mesh.ids import new_id
from mesh.rpc.validation import validate

MAX_LINES = 100_000
REFERRED_TO = ("venue", "auditorium", "production")
"""Kinds of lines that other lines refer to by id."""

_KINDS = (*REFERRED_TO, "event")


@dataclass(frozen=True, slots=True)
class Fault:
    """A fault of a line, which is counted from 1. `field` is empty for the whole line."""

    line: int
    field: str
    description: str

    def __str__(self) -> str:
        prefix = f"{self.field}: " if self.field else ""
        return f"line {self.line}: {prefix}{self.description}"


@dataclass(frozen=True, slots=True)
class Line:
    """A venue, an auditorium, a production or an event. `content` is its JSON, `ref` its id in the file."""

    number: int
    kind: str
    ref: str
    content: dict[str, Any]


def read(texts: Iterable[str]) -> tuple[list[Line], list[Fault]]:
    """The valid JSON lines, and the faults of all lines; empty lines are skipped."""
    lines: list[Line] = []
    faults: list[Fault] = []
    known: dict[str, set[str]] = {kind: set() for kind in _KINDS}
    for number, text in enumerate(texts, 1):
        if number > MAX_LINES:
            faults.append(Fault(number, "", f"a file has at most {MAX_LINES:,} lines"))
            break
        if not text.strip():
            continue
        try:
            line = _line(number, json.loads(text))
        except ValueError as error:
            faults.append(Fault(number, "", str(error)))
            continue
        faults += _faults(line, known)
        if line.ref:
            known[line.kind].add(line.ref)
        lines.append(line)
    return lines, faults


def _line(number: int, content: Any) -> Line:
    if not isinstance(content, dict) or len(content) != 1 or not content.keys() <= set(_KINDS):
        raise ValueError("must be an object with one of venue, auditorium, production, event")
    [(kind, inner)] = content.items()
    if not isinstance(inner, dict):
        raise ValueError(f"{kind} must be an object")
    inner = {json_format_name(name): value for name, value in inner.items()}
    return Line(number, kind, str(inner.get(f"{kind}Id", "")), inner)


def json_format_name(name: str) -> str:
    """The camelCase name: like the API, files may use snake_case or camelCase."""
    head, *tail = name.split("_")
    return head + "".join(part.capitalize() for part in tail)


def _faults(line: Line, known: dict[str, set[str]]) -> Iterator[Fault]:
    if line.kind != "event" and not line.ref:
        yield Fault(
            line.number, f"{line.kind}.{line.kind}Id", "is required: other lines refer to it"
        )
    if line.ref and line.ref in known[line.kind] and line.kind != "event":
        yield Fault(line.number, f"{line.kind}.{line.kind}Id", f"{line.ref!r} occurs twice")
    for kind in REFERRED_TO:
        if kind == line.kind:
            continue
        ref = line.content.get(f"{kind}Id")
        is_required = line.kind == "auditorium" and kind == "venue"
        if (ref is None and is_required) or (ref is not None and str(ref) not in known[kind]):
            # The server sets an event's venue from its auditorium.
            if line.kind == "event" and kind == "venue":
                continue
            yield Fault(
                line.number, f"{line.kind}.{kind}Id", f"no earlier line has the {kind} {ref!r}"
            )
    try:
        message = request_of(line, dict.fromkeys(REFERRED_TO, str(new_id())))
    except json_format.ParseError as error:
        yield Fault(line.number, line.kind, str(error))
        return
    for violation in _violations(message):
        yield Fault(line.number, violation.field, violation.description)


def request_of(line: Line, ids: dict[str, str]) -> Message:
    """The request that creates the content of a line; `ids` are the created ids it refers to.

    Raises json_format.ParseError, also for a field that the API does not have.
    """
    return json_format.ParseDict(body_of(line, ids), _request_type(line.kind)())


def body_of(line: Line, ids: dict[str, str]) -> dict[str, Any]:
    """The request as JSON."""
    content = {name: value for name, value in line.content.items() if name not in _OUTPUT_FIELDS}
    content.pop(f"{line.kind}Id", None)
    if line.kind in ("venue", "production"):
        return {line.kind: content}
    if line.kind == "auditorium":
        return {**content, "venueId": ids["venue"]}
    content.pop("venueId", None)
    if "auditoriumId" in content:
        content["auditoriumId"] = ids["auditorium"]
    if "productionId" in content:
        content["productionId"] = ids["production"]
    if content.get("status") != "DRAFT":
        content.pop("status", None)
    content["offers"] = [
        {
            name: value
            for name, value in offer.items()
            if json_format_name(name) not in ("offerId", "available")
        }
        if isinstance(offer, dict)
        else offer
        for offer in content.get("offers", [])
    ]
    return {"event": content}


# Fields of an exported resource that the server sets.
_OUTPUT_FIELDS = {
    "available",
    "createTime",
    "deleteTime",
    "hasWaitingRoom",
    "etag",
    "seatCount",
    "totalCapacity",
    "upcomingEvents",
    "updateTime",
}


def _request_type(kind: str) -> type[Message]:
    if kind == "venue":
        return venue_service_pb2.CreateVenueRequest
    if kind == "auditorium":
        return venue_service_pb2.CreateAuditoriumRequest
    if kind == "production":
        return production_service_pb2.CreateProductionRequest
    return event_service_pb2.CreateEventRequest


def _violations(message: Message) -> list[FieldViolation]:
    violations: list[FieldViolation] = []
    try:
        validate(message)
    except DomainError as refusal:
        violations += refusal.violations
    if isinstance(message, venue_service_pb2.CreateAuditoriumRequest):
        places = [(row.section, row.label) for row in message.rows]
        violations += _duplicates("rows", "label", places)
        for n, row in enumerate(message.rows):
            violations += _duplicates(
                f"rows[{n}].seats", "number", [("", seat.number) for seat in row.seats]
            )
    return violations


def _duplicates(field: str, name: str, values: list[tuple[str, str]]) -> list[FieldViolation]:
    """Values that occur twice, each with the section that it must be unique in."""
    counts = Counter(values)
    return [
        FieldViolation(f"{field}[{n}].{name}", f"{value[1]!r} occurs {counts[value]} times")
        for n, value in enumerate(values)
        if counts[value] > 1
    ]
