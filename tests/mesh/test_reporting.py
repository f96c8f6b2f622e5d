"""Bugs reach the error tracker, refusals do not, and nobody's data goes with them."""

import gzip
import itertools
import json
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

# A process of its own: the tracker's client is one per process and stays.
_PROCESS = """
import logging, os, sys
from mesh import call, reporting, telemetry
from mesh.errors import DomainError, Reason
from mesh.settings import MeshSettings

settings = MeshSettings(sentry_dsn=sys.argv[1], release="4f2a", environment="development")
telemetry.configure("stock_svc", "INFO")
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
log.warning("the database is away")
reporting.shutdown()
"""


class Sink:
    """Takes what Sentry's client sends."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.raw = ""
        sink = self

        class Connection(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                sink.take(body.decode())
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *arguments: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Connection)

    @property
    def dsn(self) -> str:
        return f"http://key@127.0.0.1:{self.server.server_address[1]}/1"

    def take(self, envelope: str) -> None:
        self.raw += envelope
        lines = [json.loads(line) for line in envelope.splitlines() if line]
        for header, payload in itertools.pairwise(lines):
            if header.get("type") == "event":
                self.events.append(payload)


@pytest.fixture
def sink() -> Iterator[Sink]:
    sink = Sink()
    thread = threading.Thread(target=sink.server.serve_forever)
    thread.start()
    yield sink
    sink.server.shutdown()
    sink.server.server_close()
    thread.join()


def test_a_bug_is_reported_with_its_request_and_nobodys_data(sink: Sink) -> None:
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
    # The log keeps the user's id, which says nothing alone; the address is nowhere.
    assert "the-user" in completed.stdout
    assert "mira@example.com" not in completed.stdout


def test_without_a_dsn_nothing_is_imported() -> None:
    script = (
        "import sys; import mesh.server; from mesh import reporting, tracing;"
        "from mesh.settings import MeshSettings;"
        "reporting.configure('x', MeshSettings()); tracing.configure('x', MeshSettings());"
        "print([each for each in sys.modules if each.startswith(('sentry', 'opentelemetry'))])"
    )
    completed = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    assert completed.stdout.strip() == "[]"
