"""Structured logs: one JSON object a line, on standard output.

Never logged: tokens, passwords, cards, bodies, personal data. User ids are; they say
nothing without the database. What the contract marks `debug_redact` is left out even of
what DEBUG shows of requests, and error texts lose what looks like personal data.
"""

import logging
import sys
from datetime import UTC, datetime
from typing import Any

from pythonjsonlogger.json import JsonFormatter

from mesh.observability import redaction, request_context, tracing


def configure(service: str, level: str, *, replica: int = 0) -> None:
    """Sends all logs of the process to standard output as JSON."""
    formatter = _Formatter("%(message)s", static_fields={"service": service, "replica": replica})
    output = logging.StreamHandler(sys.stdout)
    output.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers[:] = [output]
    root.setLevel(level)
    logging.getLogger("opentelemetry").setLevel(logging.ERROR)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)


class _Formatter(JsonFormatter):
    def add_fields(
        self, log_data: dict[str, Any], record: logging.LogRecord, message_dict: dict[str, Any]
    ) -> None:
        log_data["time"] = datetime.fromtimestamp(record.created, UTC).isoformat(
            timespec="milliseconds"
        )
        log_data["level"] = record.levelname
        log_data["logger"] = record.name
        super().add_fields(log_data, record, message_dict)
        if request_id := request_context.request_id():
            log_data["request_id"] = request_id
        if parent := tracing.parent():
            log_data["trace_id"] = parent.split("-")[1]

    def formatException(self, ei: Any) -> str:
        return redaction.text(logging.Formatter.formatException(self, ei))
