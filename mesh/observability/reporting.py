"""Reports bugs to Sentry, or a server with the same protocol, when a DSN is set.

A bug is a log record of level ERROR. DomainErrors are answers to clients and not reported.
A report has the traceback and the request's id, but no user and no content of the request.
"""

import logging
import sys
from typing import TYPE_CHECKING, Any, cast

from mesh.errors import DomainError
from mesh.observability import redaction, request_context, tracing
from mesh.settings import MeshSettings

if TYPE_CHECKING:
    from sentry_sdk.types import Event, Hint

_MAX_BREADCRUMBS = 20
_FLUSH_SECONDS = 2

# Fields of a log line that a report keeps: our own names, and ids that identify no person.
_KEPT = ("method", "loop", "step", "stream", "booking_id", "event_id", "reason", "attempts")


def configure(service: str, settings: MeshSettings) -> None:
    """Starts reporting if a DSN is set; otherwise does not import Sentry."""
    if settings.sentry_dsn is None:
        return
    import sentry_sdk
    from sentry_sdk.integrations.logging import LoggingIntegration

    sentry_sdk.init(
        dsn=settings.sentry_dsn.get_secret_value(),
        release=settings.release or None,
        environment=settings.environment,
        server_name=service,
        # The defaults would hook into every library that Sentry knows.
        default_integrations=False,
        auto_enabling_integrations=False,
        integrations=[
            LoggingIntegration(level=None, event_level=logging.ERROR, capture_sentry_logs=False)
        ],
        send_default_pii=False,
        include_local_variables=False,
        max_breadcrumbs=_MAX_BREADCRUMBS,
        shutdown_timeout=_FLUSH_SECONDS,
        before_send=_before_send,
    )


def shutdown() -> None:
    """Sends pending reports."""
    if "sentry_sdk" in sys.modules:
        import sentry_sdk

        sentry_sdk.flush(timeout=_FLUSH_SECONDS)


def _before_send(event: "Event", hint: "Hint") -> "Event | None":
    """Drops DomainErrors, and removes personal data from other reports."""
    if isinstance((hint.get("exc_info") or (None, None, None))[1], DomainError):
        return None
    report: dict[str, Any] = {**event}
    for name in ("user", "request", "breadcrumbs", "contexts", "modules"):
        report.pop(name, None)
    extra = report.get("extra") or {}
    report["extra"] = {name: extra[name] for name in _KEPT if name in extra}
    report["tags"] = {"request_id": request_context.request_id(), "trace_id": _trace_id()}
    if entry := report.pop("logentry", None):
        report["logentry"] = {"message": redaction.text(str(entry.get("message", "")))}
    for exception in (report.get("exception") or {}).get("values", ()):
        exception["value"] = redaction.text(str(exception.get("value", "")))
    return cast("Event", report)


def _trace_id() -> str:
    parent = tracing.parent()
    return parent.split("-")[1] if parent else ""
