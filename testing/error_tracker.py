"""A server with Sentry's protocol for tests, which records the received events."""

import gzip
import itertools
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class ErrorTracker:
    """Records the events of Sentry's client, and all envelopes as text in `raw`."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.raw = ""
        tracker = self

        class Connection(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["content-length"]))
                if self.headers.get("content-encoding") == "gzip":
                    body = gzip.decompress(body)
                tracker.record(body.decode())
                self.send_response(200)
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *arguments: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Connection)

    @property
    def dsn(self) -> str:
        return f"http://key@127.0.0.1:{self.server.server_address[1]}/1"

    def record(self, envelope: str) -> None:
        self.raw += envelope
        lines = [json.loads(line) for line in envelope.splitlines() if line]
        for header, payload in itertools.pairwise(lines):
            if header.get("type") == "event":
                self.events.append(payload)


@contextmanager
def error_tracker() -> Iterator[ErrorTracker]:
    tracker = ErrorTracker()
    thread = threading.Thread(target=tracker.server.serve_forever)
    thread.start()
    try:
        yield tracker
    finally:
        tracker.server.shutdown()
        tracker.server.server_close()
        thread.join()
