"""Bugs are reported to the error tracker without personal data; DomainErrors are not reported."""

import subprocess
import sys
from collections.abc import Iterator

import pytest

from testing.error_tracker import ErrorTracker, error_tracker

# In a separate process, because Sentry's client is global and stays active.
_PROCESS = """
import logging, os, sys
from mesh.observability import logs, reporting
from mesh.rpc import call
from mesh.errors import DomainError, Reason
from mesh.observability import logs, reporting
from mesh.rpc import call
from mesh.settings import MeshSettings

settings = MeshSettings(sentry_dsn=sys.argv[1], release="4f2a", environment="development")
logs.configure("stock_svc", "INFO")
reporting.configure("stock_svc", settings)
call.begin(request_id="the-request", idempotency_key=None)
log = logging.getLogger("mesh.rpc")

def fail(error):
    password = "hunter2-in-a-local"
    try:
        raise error
    except Exception:
        log.exception("a call failed", extra={"method": "/Reserve", "user_id": "the-user"})

fail(DomainError(Reason.SOLD_OUT, "a refusal"))
fail(ValueError("no room for mira@example.com"))
log.warning("the database is unavailable")
reporting.shutdown()
"""


@pytest.fixture
def sink() -> Iterator[ErrorTracker]:
    with error_tracker() as tracker:
        yield tracker


def test_a_bug_is_reported_with_its_request_and_without_personal_data(sink: ErrorTracker) -> None:
    completed = subprocess.run(
        [sys.executable, "-c", _PROCESS, sink.dsn], capture_output=True, text=True, check=True
    )
    [event] = sink.events
    assert event["exception"]["values"][0]["type"] == "ValueError"
    assert event["tags"]["request_id"] == "the-request"
    assert event["release"] == "4f2a"
    assert event["extra"]["method"] == "/Reserve"
    assert event["server_name"] == "stock_svc"
    for private in ("mira@example.com", "hunter2", "the-user", "SOLD_OUT"):
        assert private not in sink.raw
    # The log keeps the user's id, which identifies nobody by itself, but not the address.
    assert "the-user" in completed.stdout
    assert "mira@example.com" not in completed.stdout


def test_without_a_dsn_nothing_is_imported() -> None:
    script = (
        "import sys; import mesh.rpc.server; from mesh.observability import reporting, tracing;"
        "from mesh.settings import MeshSettings;"
        "reporting.configure('x', MeshSettings()); tracing.configure('x', MeshSettings());"
        "print([name for name in sys.modules if name.startswith(('sentry', 'opentelemetry'))])"
    )
    completed = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert completed.stdout.strip() == "[]"
