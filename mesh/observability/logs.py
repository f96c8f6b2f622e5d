"""Structured logs: one JSON object per line on standard output.

Tokens, passwords, cards, request bodies and personal data are never logged; user ids are.
mesh/observability/redaction.py removes such data from requests and error texts.
"""

import asyncio
import logging
import sys
from datetime import UTC, datetime
from typing import Any, BinaryIO

from pydantic_core import to_json

from mesh.observability import redaction, request_context, tracing

CALLS = "mesh.rpc"
"""The logger of the lines about calls, one for each."""

_PAUSE_SECONDS = 0.02

# The attributes that every record has; all others are fields of the line.
_STANDARD = frozenset((*vars(logging.makeLogRecord({})), "message", "asctime", "taskName"))


def configure(service: str, level: str, *, replica: int = 0) -> None:
    """Writes all logs of the process to standard output as JSON."""
    # No line shows the place in the code, thread or process: looking them up costs more than
    # writing the line ("Optimization" in Python's logging how-to).
    logging._srcfile = None
    logging.logThreads = logging.logProcesses = logging.logMultiprocessing = False
    root = logging.getLogger()
    root.handlers[:] = [_JsonLines(sys.stdout.buffer, service=service, replica=replica)]
    root.setLevel(level)
    logging.getLogger("opentelemetry").setLevel(logging.ERROR)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)


class _JsonLines(logging.Handler):
    """Writes the lines of the successful calls of 20 ms together, and other lines at once.

    A system call for each line costs a twentieth of a call. A process that is killed loses the lines
    of the successful calls of its last 20 ms.
    """

    def __init__(self, output: BinaryIO, **fields: object) -> None:
        super().__init__()
        self._output = output
        self._fields = fields
        self._lines: list[bytes] = []
        self._is_scheduled = False

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._lines.append(to_json(self._line(record), fallback=str))
            is_call = record.name == CALLS and vars(record).get("code") == "OK"
            if not (is_call and self._schedule()):
                self.flush()
        except (OSError, ValueError, TypeError):
            self.handleError(record)

    def flush(self) -> None:
        """Writes the pending lines. Python's logging calls it at exit, too."""
        self.acquire()
        try:
            lines, self._lines = self._lines, []
            self._is_scheduled = False
            if lines:
                self._output.write(b"\n".join((*lines, b"")))
                self._output.flush()
        finally:
            self.release()

    def _schedule(self) -> bool:
        """Schedules the next write. Returns whether this thread has an event loop that does it."""
        if self._is_scheduled:
            return True
        try:
            loop = asyncio.get_running_loop()
        except RuntimeError:
            return False
        loop.call_later(_PAUSE_SECONDS, self.flush)
        self._is_scheduled = True
        return True

    def _line(self, record: logging.LogRecord) -> dict[str, Any]:
        time = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line: dict[str, Any] = {
            "time": time,
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **self._fields,
        }
        for name, value in vars(record).items():
            if name not in _STANDARD:
                line[name] = value
        if record.exc_info:
            error = logging.Formatter().formatException(record.exc_info)
            line["exc_info"] = redaction.text(error)
        if request_id := request_context.request_id():
            line["request_id"] = request_id
        if parent := tracing.parent():
            line["trace_id"] = parent.split("-")[1]
        return line
