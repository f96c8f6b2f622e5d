"""Structured logs: one JSON object per line on standard output.

Tokens, passwords, cards, request bodies and personal data are never logged; user ids are.
mesh/observability/redaction.py removes such data from requests and error texts.
"""

import logging
import sys
from datetime import UTC, datetime
from typing import Any

from pythonjsonlogger.json import JsonFormatter

from mesh.observability import redaction, request_context, tracing


def configure(service: str, level: str, *, replica: int = 0) -> None:
    """Writes all logs of the process to standard output as JSON."""
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
