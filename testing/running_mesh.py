"""A complete mesh, started with `make up`'s command, and REST clients of its gateway."""

import json
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import httpx

from mesh.ids import new_id
from mesh.paths import ROOT
from mesh.settings import SERVICES
from testing.ports import mesh_ports

ADMIN_SECRET = "the-admin-secret-of-the-end-to-end-tests"
PASSWORD = "Curtain-Up-2026!"
INBOUND_SECRET = "agreed-with-the-crm"
SANDBOX_SECRET = "whsec_the_real_one"
T = TypeVar("T")

_START_SECONDS = 240
_STOP_SECONDS = 60


@dataclass(frozen=True)
class RunningMesh:
    """A mesh with its gateway at `url`. `variables` are the environment of its processes."""

    url: str
    home: Path
    port_base: int
    variables: dict[str, str]

    def port(self, service: str) -> int:
        return self.port_base + SERVICES.index(service) + 1

    def pid(self, process: str) -> int:
        pid: int = json.loads((self.home / "run" / f"{process}.pid").read_text())["pid"]
        return pid


@contextmanager
def running_mesh(checkout: Path = ROOT, /, **settings: str) -> Iterator[RunningMesh]:
    """Starts a mesh with additional settings, e.g. `running_mesh(BOXOFFICE_REPLICAS="2")`.

    `checkout` is a folder with another version of the code and its virtual environment.
    """
    # Not pytest's tmp_path, which PostgreSQL's user cannot access when tests run as root.
    with tempfile.TemporaryDirectory(prefix="boxoffice-", ignore_cleanup_errors=True) as folder:
        gateway, admin, base = mesh_ports()
        variables = {
            "BOXOFFICE_HOME": folder,
            "BOXOFFICE_GATEWAY_PORT": str(gateway),
            "BOXOFFICE_ENVOY_ADMIN_PORT": str(admin),
            "BOXOFFICE_PORT_BASE": str(base),
            "BOXOFFICE_RATE_LIMIT_SCALE": "1000",
            "BOXOFFICE_PASSWORD_COST": "4",
            "BOXOFFICE_ADMIN_REGISTRATION_SECRET": ADMIN_SECRET,
            "BOXOFFICE_SANDBOX_WEBHOOK_SECRET": SANDBOX_SECRET,
            "BOXOFFICE_INBOUND_WEBHOOK_SECRETS": f"crm={INBOUND_SECRET}",
            **settings,
        }
        log = Path(folder) / "up.log"
        with log.open("wb") as output:
            process = subprocess.Popen(
                [python_of(checkout), "-m", "launcher", "up"],
                cwd=checkout,
                env={**clean_environment(), **variables},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        home = Path(variables["BOXOFFICE_HOME"])
        running = RunningMesh(f"http://127.0.0.1:{gateway}", home, base, variables)
        try:
            _wait_until_healthy(running.url, process, log)
            yield running
        finally:
            process.send_signal(signal.SIGTERM)
            assert process.wait(_STOP_SECONDS) == 0, log.read_text()


def python_of(checkout: Path) -> str:
    """The Python interpreter of a checkout."""
    return sys.executable if checkout == ROOT else str(checkout / ".venv" / "bin" / "python")


@dataclass(frozen=True)
class Api:
    """A REST client, with or without a token. `session` is Login's response."""

    client: httpx.Client
    token: str | None = None
    user_id: str = ""
    session: dict[str, Any] = field(default_factory=dict)

    def sign_up(self, *, admin_secret: str | None = None) -> "Api":
        """Registers an account and returns its client."""
        account = {
            "email": f"{new_id()}@example.com",
            "password": PASSWORD,
            "fullName": "Mira Rao",
        }
        if admin_secret is None:
            user = self.post("/api/v1/auth/register", account)
        else:
            user = self.post(
                "/api/v1/auth/admin/register", {**account, "adminSecret": admin_secret}
            )
        assert user.status_code == 201, user.text
        return self.sign_in(account["email"])

    def sign_in(self, email: str, password: str = PASSWORD) -> "Api":
        """Logs in and returns a client with the new session."""
        answer = self.post("/api/v1/auth/login", {"email": email, "password": password})
        assert answer.status_code == 200, answer.text
        session = answer.json()
        return Api(self.client, session["accessToken"], session["user"]["userId"], session)

    def get(self, path: str, **headers: str) -> httpx.Response:
        return self.client.get(path, headers=self._headers(headers))

    def post(self, path: str, body: Any, **headers: str) -> httpx.Response:
        return self.client.post(path, json=body, headers=self._headers(headers))

    def send(self, verb: str, path: str, body: Any) -> httpx.Response:
        return self.client.request(verb, path, json=body, headers=self._headers({}))

    def delete(self, path: str, **headers: str) -> httpx.Response:
        return self.client.delete(path, headers=self._headers(headers))

    def book(self, body: Any, *, key: str | None = None) -> httpx.Response:
        return self.post("/api/v1/bookings", body, idempotency_key=key or str(new_id()))

    def create_production(self, **changes: Any) -> str:
        """The id of a new production."""
        created = self.post("/api/v1/productions", {"title": "Monsoon Nights", **changes})
        assert created.status_code == 201, created.text
        return str(created.json()["productionId"])

    def create_event(self, **changes: Any) -> dict[str, Any]:
        created = self.post("/api/v1/events", an_event(**changes))
        assert created.status_code == 201, created.text
        event: dict[str, Any] = created.json()
        return event

    def wait_for_status(self, booking_id: str, *statuses: str) -> dict[str, Any]:
        """Waits until the booking has one of the states; fails after a minute."""
        deadline = time.monotonic() + 60
        while True:
            booking: dict[str, Any] = self.get(f"/api/v1/bookings/{booking_id}").json()
            if booking["status"] in statuses:
                return booking
            assert time.monotonic() < deadline, booking
            time.sleep(0.05)

    def _headers(self, headers: dict[str, str]) -> dict[str, str]:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        if self.token is not None:
            named.setdefault("authorization", f"Bearer {self.token}")
        return named


def an_event(**changes: Any) -> dict[str, Any]:
    """The body of CreateEvent: a concert on sale with 10 places at ₹ 1,500."""
    return {
        "name": "Monsoon Nights",
        "timeZone": "Asia/Kolkata",
        "startTime": "2099-07-04T14:00:00Z",
        "saleStartTime": "2020-01-01T00:00:00Z",
        "offers": [
            {
                "name": "Floor",
                "price": {"currencyCode": "INR", "amountMinor": "150000"},
                "capacity": 10,
            }
        ],
        **changes,
    }


def items(event: dict[str, Any], quantity: Any = 1) -> dict[str, Any]:
    """The body of PlaceBooking for the event's first offer."""
    return {
        "eventId": event["eventId"],
        "items": [{"offerId": event["offers"][0]["offerId"], "quantity": quantity}],
    }


def until(condition: Callable[[], T | None], what: str, *, seconds: float = 60) -> T:
    """Calls `condition` until its result is true and returns that; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while not (result := condition()):
        assert time.monotonic() < deadline, what
        time.sleep(0.2)
    return result


@contextmanager
def event_stream(mesh: RunningMesh, path: str) -> Iterator["queue.Queue[Any]"]:
    """The messages of a stream over text/event-stream, as they come; None at its end."""
    updates: queue.Queue[Any] = queue.Queue()
    client = httpx.Client(base_url=mesh.url, timeout=60)
    context = client.stream("GET", path)
    response = context.__enter__()

    def read() -> None:
        try:
            for line in response.iter_lines():
                if line.startswith("data:"):
                    updates.put(json.loads(line.removeprefix("data:")))
        except (httpx.HTTPError, httpx.StreamError):
            updates.put(None)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    try:
        assert response.status_code == 200
        assert response.headers["content-type"] == "text/event-stream"
        yield updates
    finally:
        # Wakes the reader, which closing the client does not.
        stream = response.extensions["network_stream"]
        with suppress(OSError):
            stream.get_extra_info("socket").shutdown(socket.SHUT_RDWR)
        reader.join(60)
        client.close()


def reason(response: httpx.Response) -> str:
    """Asserts the common error format and returns the reason."""
    error = response.json()
    assert set(error) == {"code", "message", "details"}, error
    info = next(detail for detail in error["details"] if detail["@type"].endswith("ErrorInfo"))
    assert info["domain"] == "boxoffice"
    return str(info["reason"])


def violated_fields(response: httpx.Response) -> set[str]:
    """The fields in an error's BadRequest."""
    return {
        violation["field"]
        for detail in response.json()["details"]
        if detail["@type"].endswith("BadRequest")
        for violation in detail["fieldViolations"]
    }


def clean_environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith("BOXOFFICE_")}


def _wait_until_healthy(url: str, process: "subprocess.Popen[bytes]", log: Path) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while True:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        try:
            if httpx.get(f"{url}/health", timeout=60).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
