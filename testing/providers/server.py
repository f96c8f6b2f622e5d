"""Base of the stand-ins for payment providers: an HTTP server, faults, webhooks, a ledger.

A stand-in runs in threads and keeps its state in memory. Tests compare payment_svc with its
append-only ledger.
"""

import json
import random
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import Enum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, ClassVar
from urllib.parse import parse_qsl, urlsplit

import httpx

_HANG_SECONDS = 30.0

Objects = dict[str, dict[str, Any]]
"""A provider's objects of one kind, by their ids."""


class Fault(Enum):
    """A fault of a call. With AFTER the call is carried out and its answer is lost."""

    ERROR = "error"
    ERROR_AFTER = "error after"
    TIMEOUT_AFTER = "timeout after"
    THROTTLE = "throttle"
    GARBAGE_AFTER = "garbage after"


@dataclass(frozen=True)
class Entry:
    """Money that the stand-in moved. `amount` is in the provider's units."""

    kind: str
    payment: str
    reference: str
    amount: int
    currency: str


@dataclass(frozen=True)
class Request:
    method: str
    path: str
    query: dict[str, str]
    body: dict[str, Any]
    headers: dict[str, str]


class Answer(Exception):  # noqa: N818 - not always an error
    """The answer to a call."""

    def __init__(self, status: int, body: dict[str, Any]) -> None:
        super().__init__(status)
        self.status = status
        self.body = body


@dataclass
class Chances:
    """Probabilities of random faults."""

    faults: dict[Fault, float] = field(default_factory=dict)
    webhook_lost: float = 0.0
    webhook_twice: float = 0.0


class StandIn(ABC):
    """Base of the stand-ins. `url` is the value of the SDK's base-URL setting."""

    opening_path: ClassVar[str]
    """The path of the call that opens a payment."""
    closed_status: ClassVar[str]
    """The status of a payment that was closed unpaid."""

    def __init__(self) -> None:
        self.refunds: dict[str, dict[str, Any]] = {}
        self.has_slow_refunds = False
        """Whether new refunds are pending until `finish_refunds`."""
        self.ledger: list[Entry] = []
        self.events: list[tuple[str, bytes]] = []
        self.requests: list[Request] = []
        self.violations: list[str] = []
        """Violations of the provider's API by the client."""
        self.connections = 0
        """The number of open connections."""
        self.faults: deque[tuple[str, Fault]] = deque()
        self.chances = Chances()
        self.random = random.Random(7)
        self.lock = threading.RLock()
        self.stopping = threading.Event()
        self.webhook_url: str | None = None
        self.clock = time.time
        self._outgoing: deque[tuple[str, bytes]] = deque()
        self.url = ""

    @abstractmethod
    def answer(self, request: Request) -> dict[str, Any]:
        """Carries out a request. Raises Answer for a status other than 200."""

    @abstractmethod
    def parse(self, body: bytes, content_type: str) -> dict[str, Any]:
        """A request's body as fields."""

    @abstractmethod
    def throttled(self) -> dict[str, Any]:
        """The body of a 429."""

    @abstractmethod
    def headers_for(
        self, event_id: str, body: bytes, *, secret: str | None = None
    ) -> dict[str, str]:
        """The headers of a webhook that is sent now, signed with its secret or another."""

    @property
    @abstractmethod
    def opened(self) -> dict[str, dict[str, Any]]:
        """All payments that were opened, by the provider's ids."""

    @abstractmethod
    def pay(self, reference: str, *, declined: str | None = None) -> object:
        """The customer pays, or is declined with a code."""

    @abstractmethod
    def finish_refunds(self, *, succeed: bool) -> None:
        """Completes or fails the pending refunds."""

    @abstractmethod
    def return_refunds(self) -> None:
        """The customers' banks send all completed refunds back."""

    @abstractmethod
    def inquire(self, reference: str, *, is_closed: bool = False) -> None:
        """The customer's bank only asks about a payment, or closes its inquiry."""

    @abstractmethod
    def refund_in_dashboard(self, reference: str, amount: int) -> None:
        """A refund in the provider's dashboard, without a request of payment_svc."""

    @abstractmethod
    def dispute(self, reference: str, *, reason: str, end: str | None = None) -> None:
        """The customer's bank opens a dispute, or ends it: `won` or `lost`."""

    @abstractmethod
    def forget_keys(self) -> None:
        """Deletes all idempotency keys."""

    def fail_next(self, part_of_path: str, *faults: Fault) -> None:
        """Scripts faults of the next calls whose path contains a text, one fault per call."""
        self.faults.extend((part_of_path, fault) for fault in faults)

    def emit(self, event_id: str, event: dict[str, Any]) -> None:
        body = json.dumps(event, indent=2).encode()
        self.events.append((event_id, body))
        if self.random.random() < self.chances.webhook_lost:
            return
        twice = self.random.random() < self.chances.webhook_twice
        self._outgoing.extend([(event_id, body)] * (2 if twice else 1))

    def called(self, part_of_path: str, method: str = "POST") -> list[Request]:
        return [
            request
            for request in self.requests
            if part_of_path in request.path and request.method == method
        ]

    @contextmanager
    def running(self, *, webhook_url: str | None = None) -> Iterator["StandIn"]:
        """Serves until the block ends. Sends webhooks when there is a URL for them."""
        self.webhook_url = webhook_url
        stand_in = self

        class Handler(_Handler):
            owner = stand_in

        server = _Server(self, Handler)
        server.daemon_threads = True
        self.url = f"http://127.0.0.1:{server.server_address[1]}"
        threads = [threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)]
        if webhook_url is not None:
            threads += [threading.Thread(target=self._deliver, daemon=True) for _ in range(4)]
        for thread in threads:
            thread.start()
        try:
            yield self
        finally:
            self.stopping.set()
            server.shutdown()
            server.server_close()
            for thread in threads:
                thread.join(10)

    def _deliver(self) -> None:
        with httpx.Client(trust_env=False, timeout=8) as client:
            while not self.stopping.is_set():
                try:
                    event_id, body = self._outgoing.popleft()
                except IndexError:
                    self.stopping.wait(0.02)
                    continue
                headers = {"content-type": "application/json", **self.headers_for(event_id, body)}
                try:
                    answer = client.post(str(self.webhook_url), content=body, headers=headers)
                    is_received = answer.is_success
                except httpx.HTTPError:
                    is_received = False
                if not is_received:
                    self._outgoing.append((event_id, body))
                    self.stopping.wait(0.3)

    def serve(self, request: Request) -> tuple[int, bytes]:
        """The answer to a call, or that of its fault."""
        fault = self._fault(request)
        if fault is Fault.ERROR:
            return 500, b'{"error": {"message": "internal error", "type": "api_error"}}'
        if fault is Fault.THROTTLE:
            return 429, json.dumps(self.throttled()).encode()
        try:
            with self.lock:
                self.requests.append(request)
                status, body = 200, self.answer(request)
        except Answer as refusal:
            status, body = refusal.status, refusal.body
        if fault is Fault.ERROR_AFTER:
            return 500, b'{"error": {"message": "internal error", "type": "api_error"}}'
        if fault is Fault.GARBAGE_AFTER:
            return 502, b"<html>Bad Gateway</html>"
        if fault is Fault.TIMEOUT_AFTER:
            self.stopping.wait(_HANG_SECONDS)
        return status, json.dumps(body).encode()

    def _fault(self, request: Request) -> Fault | None:
        with self.lock:
            if self.faults and self.faults[0][0] in request.path:
                return self.faults.popleft()[1]
            for fault, chance in self.chances.faults.items():
                if self.random.random() < chance:
                    return fault
        return None


class _Server(ThreadingHTTPServer):
    # Room for the connections of clients that are killed and started again.
    request_queue_size = 128

    def __init__(self, owner: StandIn, handler: type["_Handler"]) -> None:
        super().__init__(("127.0.0.1", 0), handler)
        self._owner = owner

    def process_request(self, request: object, client_address: object) -> None:
        with self._owner.lock:
            self._owner.connections += 1
        super().process_request(request, client_address)  # type: ignore[arg-type]

    def shutdown_request(self, request: object) -> None:
        super().shutdown_request(request)  # type: ignore[arg-type]
        with self._owner.lock:
            self._owner.connections -= 1

    def handle_error(self, request: object, client_address: object) -> None:
        """Ignores connections that the client closed."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


class _Handler(BaseHTTPRequestHandler):
    owner: StandIn
    protocol_version = "HTTP/1.1"
    # Small answers are sent at once.
    disable_nagle_algorithm = True

    def do_GET(self) -> None:
        self._serve()

    def do_POST(self) -> None:
        self._serve()

    def _serve(self) -> None:
        split = urlsplit(self.path)
        length = int(self.headers.get("content-length") or 0)
        raw = self.rfile.read(length)
        if len(raw) < length:
            # The client was killed while it sent: an incomplete call is not carried out.
            self.close_connection = True
            return
        headers = {name.lower(): value for name, value in self.headers.items()}
        request = Request(
            self.command,
            split.path,
            dict(parse_qsl(split.query)),
            self.owner.parse(raw, headers.get("content-type", "")) if raw else {},
            headers,
        )
        status, body = self.owner.serve(request)
        try:
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)
        except (BrokenPipeError, ConnectionResetError):
            # The client has timed out.
            self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base's name
        """Logs nothing."""
