"""Nothing personal and no secret is in any log, metric, trace, error or report of a whole run."""

import re
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from mesh.ids import new_id
from mesh.rpc.policy import PACKAGE
from mesh.settings import SERVICES
from testing.error_tracker import ErrorTracker, error_tracker
from testing.running_mesh import Api, RunningMesh, items, running_mesh, until
from testing.smtp_server import MailServer, mail_server_aside
from tests.architecture.contract import contract
from tests.e2e.test_password_reset import SUBJECT, token_in

EMAIL = "canary.bird@canary-mail.example"
ADMIN_SECRET = "kanarie-geheim-van-de-beheerder-0001"
# In every field that can hold something personal, or that opens something.
CANARIES = {
    "email": "canary.bird",
    "domain": "canary-mail",
    "password": "Kanarie-9-Wachtwoord",
    "wrong password": "Kanarie-8-Verkeerd",
    "new password": "Kanarie-7-Nieuw",
    "full name": "Tweety Kanariev",
    "phone": "919812345670",
    "address": "Vogelkooistraat",
    "note": "kanarie bij de deur",
    "reason": "kanarie is ziek",
    "attendee": "Sylvester Katerman",
    "admin secret": ADMIN_SECRET,
    "wrong admin secret": "kanarie-geraden-geheim-van-een-ander",
    "wrong reset token": "kanarie-geraden-token-voor-een-ander",
}
# What the contract marks with debug_redact: each has its canary above, or is a secret that
# the run is given and searches for.
REDACTED = {
    *("email", "full_name", "phone", "address", "note", "attendees", "reason"),
    *("password", "current_password", "new_password", "admin_secret", "token"),
    *("access_token", "refresh_token", "secret"),
}
# In what a client sends wrongly: nobody repeats it either.
UNREADABLE = "kanarie-onleesbaar"


class Traces(trace_service_pb2_grpc.TraceServiceServicer):
    """Takes every span, of the services and of the gateway, as text."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._texts: list[str] = []

    def Export(
        self, request: trace_service_pb2.ExportTraceServiceRequest, context: Any
    ) -> trace_service_pb2.ExportTraceServiceResponse:
        with self._lock:
            self._texts.append(str(request))
        return trace_service_pb2.ExportTraceServiceResponse()

    @property
    def text(self) -> str:
        with self._lock:
            return "\n".join(self._texts)


@pytest.fixture
def traces() -> Iterator[tuple[Traces, str]]:
    kept = Traces()
    server = grpc.server(futures.ThreadPoolExecutor(4))
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(kept, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield kept, f"http://127.0.0.1:{port}"
    server.stop(None)


@pytest.fixture
def mails() -> Iterator[MailServer]:
    with mail_server_aside() as server:
        yield server


@pytest.fixture
def reports() -> Iterator[ErrorTracker]:
    with error_tracker() as tracker:
        yield tracker


@pytest.fixture
def lonely(
    traces: tuple[Traces, str], mails: MailServer, reports: ErrorTracker
) -> Iterator[RunningMesh]:
    """A mesh of its own: what other tests log is not this test's."""
    with running_mesh(
        BOXOFFICE_SMTP_URL=f"smtp://127.0.0.1:{mails.port}",
        BOXOFFICE_SENTRY_DSN=reports.dsn,
        BOXOFFICE_LOG_LEVEL="DEBUG",
        BOXOFFICE_TRACE_ENDPOINT=traces[1],
        BOXOFFICE_TRACE_SAMPLE="1",
        BOXOFFICE_ADMIN_REGISTRATION_SECRET=ADMIN_SECRET,
    ) as running:
        yield running


def a_whole_run(
    mails: MailServer, reports: ErrorTracker, api: Api, admin: Api
) -> list[tuple[str, str]]:
    """What a customer does, well and badly. Returns secrets made on the way, and all errors."""
    account = {
        "email": EMAIL,
        "password": CANARIES["password"],
        "fullName": CANARIES["full name"],
        "phone": f"+{CANARIES['phone']}",
    }
    seen: list[tuple[str, str]] = []

    def note(answer: httpx.Response) -> httpx.Response:
        if answer.status_code >= 400:
            seen.append(("error", answer.text + str(answer.headers)))
        return answer

    assert api.post("/api/v1/auth/register", account).status_code == 201
    note(api.post("/api/v1/auth/register", account))
    note(api.post("/api/v1/auth/register", {**account, "phone": CANARIES["phone"] + "x"}))
    note(api.post("/api/v1/auth/register", {**account, "email": f"{EMAIL}@@"}))
    note(api.post("/api/v1/auth/register", {**account, "password": "Kanarie"}))
    guessed = {**account, "adminSecret": CANARIES["wrong admin secret"]}
    note(api.post("/api/v1/auth/admin/register", guessed))
    wrong = {"email": EMAIL, "password": CANARIES["wrong password"]}
    for _ in range(3):
        note(api.post("/api/v1/auth/login", wrong))
    me = api.sign_in(EMAIL, CANARIES["password"])
    profile = {"address": CANARIES["address"], "fullName": CANARIES["full name"]}
    assert me.send("PATCH", "/api/v1/auth/profile", profile).status_code == 200
    note(me.send("PATCH", "/api/v1/auth/profile", {"address": CANARIES["address"] + "\x00"}))
    # A mail server that names the customer in its answers, and takes nothing for good.
    mails.answers[EMAIL] = f"550 5.1.1 <{EMAIL}>: {CANARIES['full name']} is unknown"
    event = admin.create_event()
    booking = me.book({**items(event, 2), "checkout": {"provider": "sandbox"}}).json()
    me.post(f"/sandbox/pay/{booking['payment']['paymentId']}", {"outcome": "SUCCEEDED"})
    me.wait_for_status(booking["bookingId"], "CONFIRMED")
    until(lambda: "a mail cannot be delivered" in reports.raw, "no report came", seconds=60)
    mails.answers.clear()
    path = f"/api/v1/bookings/{booking['bookingId']}"
    told = {"note": CANARIES["note"], "attendees": [CANARIES["attendee"]] * 2}
    assert me.send("PATCH", path, told).status_code == 200
    note(me.post(f"{path}/cancel", {"reason": CANARIES["reason"]}))
    note(me.get(f"/api/v1/bookings/{UNREADABLE}?access_token={UNREADABLE}"))
    note(me.post("/api/v1/bookings", UNREADABLE))
    note(me.client.post("/api/v1/auth/login", content=f'{{"email": "{EMAIL}'.encode() + b"\xff"))
    forged = f"eyJhbGciOiJub25lIn0.{UNREADABLE}.x"
    note(Api(me.client, forged).get("/api/v1/auth/me"))
    note(me.post("/api/v1/auth/refresh", {"refreshToken": UNREADABLE}))
    note(me.post("/webhooks/sandbox", {"kanarie": UNREADABLE}))
    hook = admin.post("/api/v1/webhook-endpoints", {"url": f"{api.client.base_url}/hook"})
    seen.append(("secret", hook.json()["secret"]))
    seen += [("secret", token) for token in a_forgotten_password(mails, api, note)]
    me = api.sign_in(EMAIL, CANARIES["password"])
    changed = me.post(
        "/api/v1/auth/change-password",
        {"currentPassword": CANARIES["password"], "newPassword": CANARIES["new password"]},
    )
    assert changed.status_code == 200, changed.text
    refreshed = me.post("/api/v1/auth/refresh", {"refreshToken": me.session["refreshToken"]}).json()
    note(admin.post(f"/api/v1/users/{me.user_id}/erase", {}))
    note(me.get("/api/v1/auth/me"))
    for session in (me.session, refreshed):
        seen.append(("secret", session["refreshToken"]))
        # The signature: the rest of it is not secret, but the whole opens doors.
        seen.append(("secret", session["accessToken"].rpartition(".")[2]))
    return seen


def a_forgotten_password(
    mails: MailServer, api: Api, note: Callable[[httpx.Response], httpx.Response]
) -> list[str]:
    """Resets it to what it was, after a few wrong tries. Returns the tokens."""
    asked, confirmed = "/api/v1/auth/reset-password", "/api/v1/auth/reset-password/confirm"
    api.post(asked, {"email": EMAIL})

    def mailed() -> str | None:
        asked_for = (mail for mail in mails.mails if mail["Subject"] == SUBJECT)
        return next((token_in(mail, "plain") for mail in asked_for), None)

    token = until(mailed, "no mail came", seconds=60)
    reset = {"token": token, "newPassword": CANARIES["password"]}
    note(api.post(asked, {"email": f"{EMAIL}\x00"}))
    note(api.post(confirmed, {**reset, "token": CANARIES["wrong reset token"]}))
    note(api.post(confirmed, {**reset, "newPassword": "Kanarie"}))
    assert api.post(confirmed, reset).status_code == 200
    note(api.post(confirmed, reset))
    return [token]


def test_every_field_that_the_contract_hides_has_a_canary() -> None:
    """A new one: put something into it in `a_whole_run`, then name it here."""

    def hidden(message: DescriptorProto) -> Iterator[str]:
        yield from (field.name for field in message.field if field.options.debug_redact)
        for inner in message.nested_type:
            yield from hidden(inner)

    files = [file for file in contract().file if file.package.startswith(PACKAGE)]
    found = {name for file in files for one in file.message_type for name in hidden(one)}
    assert found == REDACTED


@pytest.mark.timeout(400)
def test_no_canary_sings(
    lonely: RunningMesh, traces: tuple[Traces, str], mails: MailServer, reports: ErrorTracker
) -> None:
    with httpx.Client(base_url=lonely.url, timeout=20) as client:
        api = Api(client)
        admin = api.sign_up(admin_secret=lonely.variables["BOXOFFICE_ADMIN_REGISTRATION_SECRET"])
        seen = a_whole_run(mails, reports, api, admin)
        metrics = "".join(_metrics(lonely))
        # Spans are sent in batches; those of the last calls show that all have come.
        paths = ("/api/v1/auth/me", "/api/v1/events")
        last = [admin.get(path).headers["x-request-id"] for path in paths]
        until(
            # Of the gateway and of the service.
            lambda: all(traces[0].text.count(each) > 1 for each in last),
            "the spans have not come",
        )
    errors = [text for kind, text in seen if kind == "error"]
    assert len(errors) > 17
    secrets = [text for kind, text in seen if kind == "secret"]
    places = {"errors": "\n".join(errors), "metrics": metrics, "traces": traces[0].text}
    places["reports"] = reports.raw
    places |= _logs(lonely.home)
    for service in (*SERVICES, "SELECT"):
        assert service in places["traces"]
    # Else the search would prove nothing: the logs are there and name what was done.
    assert "AuthService/Login" in "".join(places.values())
    assert len(places) > 6
    needles = [*CANARIES.values(), UNREADABLE, *secrets]
    found = [
        (place, needle, line.strip()[:300])
        for place, text in places.items()
        for needle in needles
        for line in text.splitlines()
        if needle in line and not _is_own_query(line, needle)
    ]
    assert found == []


def _is_own_query(line: str, needle: str) -> bool:
    """The path of a call that found nothing is logged as it was asked for, without its query."""
    return needle == UNREADABLE and f"/api/v1/bookings/{UNREADABLE}" in line and "?" not in line


def _logs(home: Path) -> dict[str, str]:
    found = {
        str(path.relative_to(home)): path.read_text(errors="replace")
        for path in sorted((home / "logs").rglob("*"))
        if path.is_file()
    }
    return {**found, "up.log": (home / "up.log").read_text(errors="replace")}


def _metrics(mesh: RunningMesh) -> Iterator[str]:
    """The metrics pages of all processes, at the ports that their logs tell or the run folder."""
    settings: dict[str, Any] = {}
    for name, value in mesh.variables.items():
        settings[name.removeprefix("BOXOFFICE_").lower()] = value
    from mesh.settings import MeshSettings

    known = MeshSettings.model_validate(settings)
    for service in SERVICES:
        answer = httpx.get(f"http://127.0.0.1:{known.metrics_port(service, 0)}/metrics")
        assert answer.status_code == 200
        assert re.search(r"^boxoffice_", answer.text, re.MULTILINE), service
        yield answer.text
    admin = mesh.variables["BOXOFFICE_ENVOY_ADMIN_PORT"]
    yield httpx.get(f"http://127.0.0.1:{admin}/stats/prometheus").text


def test_a_canary_would_be_heard(tmp_path: Path) -> None:
    """Control: what is logged is found."""
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "auth_svc.log").write_text(f'{{"email": "{EMAIL}", "id": "{new_id()}"}}')
    (tmp_path / "up.log").write_text("")
    assert any(CANARIES["email"] in text for text in _logs(tmp_path).values())
