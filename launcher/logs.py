"""`make logs`: prints the JSON logs of all processes, merged by time, in a readable format."""

import json
import sys
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

_POLL_SECONDS = 0.3
_REQUEST_ID_LENGTH = 8
# Fields that the readable text already contains, or that are equal on all lines.
_NOT_REPEATED = frozenset(
    [
        "time",
        "level",
        "logger",
        "message",
        "service",
        "replica",
        "process",
        "request_id",
        "trace_id",
        "method",
        "code",
        "duration_ms",
        "caller",
        "reason",
        "exc_info",
        "rpc",
        "status",
        "path",
    ]
)
_COLOURS = {"WARNING": "\033[33m", "ERROR": "\033[31m", "CRITICAL": "\033[31m", "DEBUG": "\033[2m"}
_END = "\033[0m"


def show(home: Path, *, follow: bool, only: str = "", text: str = "", lines: int = 200) -> None:
    """Prints the last `lines` lines of all logs; with `follow` also new lines, until interrupted.

    `only` selects a process, e.g. `stock_svc`; `text` selects lines that contain it.
    """
    readers = [
        _Reader(path) for path in sorted((home / "logs").glob("*.log")) if only in ("", path.stem)
    ]
    _print(_new_lines(readers, text)[-lines:])
    while follow:
        time.sleep(_POLL_SECONDS)
        _print(_new_lines(readers, text))


def _new_lines(readers: "Iterable[_Reader]", text: str) -> "list[_Line]":
    lines = (line for reader in readers for line in reader.read() if text in line.raw)
    return sorted(lines, key=lambda line: line.time)


class _Line:
    __slots__ = ("fields", "process", "raw", "time")

    def __init__(self, process: str, raw: str, fields: Mapping[str, Any], previous: str) -> None:
        self.process = process
        self.raw = raw
        self.fields = fields
        # A line without a time, e.g. of PostgreSQL, gets the time of the previous line.
        self.time = str(fields.get("time") or previous)


class _Reader:
    """Reads the lines that were appended to a log since the last read."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._at = 0
        self._time = ""

    def read(self) -> list[_Line]:
        if self._path.stat().st_size < self._at:
            self._at = 0
        with self._path.open("rb") as log:
            log.seek(self._at)
            content = log.read()
        # An incomplete last line is read next time.
        whole = content.rpartition(b"\n")[0]
        self._at += len(whole) + 1 if whole else 0
        return list(self._lines(whole.decode(errors="replace").splitlines()))

    def _lines(self, texts: Iterable[str]) -> Iterator[_Line]:
        for raw in texts:
            line = _Line(self._path.stem, raw, _fields(raw), self._time)
            self._time = line.time
            yield line


def _fields(raw: str) -> Mapping[str, Any]:
    if raw.startswith("{"):
        try:
            parsed = json.loads(raw)
        except json.JSONDecodeError:
            return {}
        if isinstance(parsed, dict):
            return parsed
    return {}


def _print(lines: Iterable[_Line]) -> None:
    is_terminal = sys.stdout.isatty()
    for line in lines:
        text = readable(line.process, line.raw, line.fields)
        colour = _COLOURS.get(str(line.fields.get("level"))) if is_terminal else None
        print(f"{colour}{text}{_END}" if colour else text, flush=True)


def readable(process: str, raw: str, fields: Mapping[str, Any]) -> str:
    """A readable line: time, process, request, message, and other fields as name=value."""
    if not fields:
        return f"{'':12} {process:14} {'':8} {raw}"
    clock = str(fields.get("time", ""))[11:23]
    request = str(fields.get("request_id") or "")[-_REQUEST_ID_LENGTH:]
    more = " ".join(
        f"{name}={value}"
        for name, value in fields.items()
        if name not in _NOT_REPEATED and value not in (None, "", "-")
    )
    text = f"{clock:12} {process:14} {request:8} {_what(fields)} {more}".rstrip()
    trace = fields.get("exc_info")
    return f"{text}\n{trace}" if trace else text


def _what(fields: Mapping[str, Any]) -> str:
    if fields.get("message") == "rpc":
        method = str(fields.get("method", "")).rpartition(".")[2]
        result = fields.get("reason") or fields.get("code")
        return f"{method} ← {fields.get('caller', '?')}: {result} in {fields.get('duration_ms')} ms"
    if "rpc" in fields and "status" in fields:
        return (
            f"{fields.get('method')} {fields.get('path')}: {fields['status']} "
            f"in {fields.get('duration_ms')} ms"
        )
    return str(fields.get("message", ""))
