"""Logs, metrics, traces, errors and reports of a whole run contain no personal data or secret."""

import re
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from google.protobuf.descriptor_pb2 import DescriptorProto

from mesh.ids import new_id
from mesh.rpc.policy import PACKAGE
from mesh.settings import SERVICES
from testing.error_tracker import ErrorTracker
from testing.running_mesh import INBOUND_SECRET, Api, RunningMesh, items, until
from testing.smtp_server import MailServer
from tests.architecture.contract import contract
from tests.e2e.conftest import ADMIN_SECRET_CANARY, ObservedMesh
from tests.e2e.test_password_reset import SUBJECT, token_in

EMAIL = "canary.bird@canary-mail.example"
# Values for every field that can contain personal data or a secret.
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
    "admin secret": ADMIN_SECRET_CANARY,
    "wrong admin secret": "kanarie-geraden-geheim-van-een-ander",
    "inbound webhook": "kanarie in een bericht",
    "search": "kanariefokker",
    "ticket": "kanarie-volgnummer",
    "admission": "kanarie-toegangsbewijs",
    "captcha": "kanarie-is-geen-robot",
    "wrong reset token": "kanarie-geraden-token-voor-een-ander",
}
# Fields that the contract marks with debug_redact: each has a canary above, or is a secret that the
# run receives and searches for.
REDACTED = {
    *("email", "full_name", "phone", "address", "note", "attendees", "reason", "body", "text"),
    *("password", "current_password", "new_password", "confirm_password", "admin_secret", "token"),
    *("access_token", "refresh_token", "device_token", "secret", "key", "new_email"),
    *("query", "client_secret", "ticket_id", "admission_token", "captcha_token"),
}
# Part of invalid requests, which must not be repeated either.
UNREADABLE = "kanarie-onleesbaar"


def a_whole_run(
    mails: MailServer, reports: ErrorTracker, api: Api, admin: Api
) -> list[tuple[str, str]]:
    """Valid and invalid calls of a customer. Returns the secrets created, and all errors."""
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
    # The mail server refuses the mail for good, with the customer's name in its answer.
    mails.answers[EMAIL] = f"550 5.1.1 <{EMAIL}>: {CANARIES['full name']} is unknown"
    event = admin.create_event()
    booking = me.book({**items(event, 2), "checkout": {"provider": "sandbox"}}).json()
    me.post(f"/sandbox/pay/{booking['payment']['paymentId']}", {"outcome": "SUCCEEDED"})
    me.wait_for_status(booking["bookingId"], "CONFIRMED")
    embedded = {"checkout": {"provider": "sandbox", "flow": "EMBEDDED"}}
    opened = me.book({**items(event, 1), **embedded})
    seen.append(("secret", opened.json()["payment"]["clientSecret"]))
    search = f"/api/v1/bookings?query={CANARIES['search']}"
    assert admin.get(search).status_code == 200
    note(me.get(search))
    until(lambda: "a mail cannot be delivered" in reports.raw, "no report arrived", seconds=60)
    mails.answers.clear()
    path = f"/api/v1/bookings/{booking['bookingId']}"
    note(me.get(f"/api/v1/queue/{CANARIES['ticket']}"))
    captcha = {"captchaToken": CANARIES["captcha"]}
    note(me.post(f"/api/v1/events/{event['eventId']}/queue", captcha))
    placed = me.book({**items(event, 1), "admissionToken": CANARIES["admission"]})
    assert placed.status_code == 201, placed.text
    changes = {"note": CANARIES["note"], "attendees": [CANARIES["attendee"]] * 2}
    assert me.send("PATCH", path, changes).status_code == 200
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
    seen.append(("secret", an_api_key(admin)))
    inbound = {"Verification-Token": INBOUND_SECRET}
    crm = "/webhooks/inbound/crm"
    posted = api.client.post(crm, content=CANARIES["inbound webhook"], headers=inbound)
    assert posted.status_code == 200
    seen += [("secret", token) for token in a_forgotten_password(mails, api, note)]
    me = api.sign_in(EMAIL, CANARIES["password"])
    new_email = {"newEmail": f"new.{EMAIL}", "currentPassword": CANARIES["wrong password"]}
    note(me.post("/api/v1/auth/change-email", new_email))
    new_email["currentPassword"] = CANARIES["password"]
    assert me.post("/api/v1/auth/change-email", new_email).status_code == 200
    passwords = {
        "currentPassword": CANARIES["password"],
        "newPassword": CANARIES["new password"],
        "confirmPassword": CANARIES["wrong password"],
    }
    note(me.post("/api/v1/auth/change-password", passwords))
    passwords["confirmPassword"] = passwords["newPassword"]
    changed = me.post("/api/v1/auth/change-password", passwords)
    assert changed.status_code == 200, changed.text
    refreshed = me.post("/api/v1/auth/refresh", {"refreshToken": me.session["refreshToken"]}).json()
    note(admin.post(f"/api/v1/users/{me.user_id}/erase", {}))
    note(me.get("/api/v1/auth/me"))
    for session in (me.session, refreshed):
        seen.append(("secret", session["refreshToken"]))
        seen.append(("secret", session.get("deviceToken", session["refreshToken"])))
        # Only the signature: the rest of the token is not secret.
        seen.append(("secret", session["accessToken"].rpartition(".")[2]))
    return seen


def an_api_key(admin: Api) -> str:
    """The secret part of a key that was used."""
    end = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    made = admin.post("/api/v1/api-keys", {"name": "Till", "role": "STAFF", "expireTime": end})
    key = made.json()
    assert Api(admin.client, key["key"]).get("/api/v1/bookings").status_code == 200
    return str(key["key"]).removeprefix(key["keyStart"])


def a_forgotten_password(
    mails: MailServer, api: Api, note: Callable[[httpx.Response], httpx.Response]
) -> list[str]:
    """Resets the password to the same one, after invalid attempts. Returns the tokens."""
    request, confirm = "/api/v1/auth/reset-password", "/api/v1/auth/reset-password/confirm"
    api.post(request, {"email": EMAIL})

    def mailed() -> str | None:
        matching = (mail for mail in mails.mails if mail["Subject"] == SUBJECT)
        return next((token_in(mail, "plain") for mail in matching), None)

    token = until(mailed, "no mail arrived", seconds=60)
    reset = {"token": token, "newPassword": CANARIES["password"]}
    note(api.post(request, {"email": f"{EMAIL}\x00"}))
    note(api.post(confirm, {**reset, "token": CANARIES["wrong reset token"]}))
    note(api.post(confirm, {**reset, "newPassword": "Kanarie"}))
    assert api.post(confirm, reset).status_code == 200
    note(api.post(confirm, reset))
    return [token]


def test_every_redacted_field_has_a_canary() -> None:
    """For a new field, send a canary in it in `a_whole_run`, and add it to REDACTED."""

    def hidden(message: DescriptorProto) -> Iterator[str]:
        yield from (field.name for field in message.field if field.options.debug_redact)
        for inner in message.nested_type:
            yield from hidden(inner)

    files = [file for file in contract().file if file.package.startswith(PACKAGE)]
    redacted = {name for file in files for message in file.message_type for name in hidden(message)}
    assert redacted == REDACTED


@pytest.mark.timeout(400)
def test_no_canary_is_in_logs_metrics_traces_errors_or_reports(
    observed: ObservedMesh,
) -> None:
    mesh, traces, reports = observed.mesh, observed.traces, observed.reports
    with httpx.Client(base_url=mesh.url, timeout=60) as client:
        api = Api(client)
        admin = api.sign_up(admin_secret=ADMIN_SECRET_CANARY)
        seen = a_whole_run(observed.mails, reports, api, admin)
        metrics = "".join(_metrics(mesh))
        # Spans are sent in batches: those of the last calls arrive last.
        paths = ("/api/v1/auth/me", "/api/v1/events")
        last = [admin.get(path).headers["x-request-id"] for path in paths]
        until(
            # A span of the gateway and one of the service.
            lambda: all(traces.text.count(request_id) > 1 for request_id in last),
            "the spans have not arrived",
        )
    errors = [text for kind, text in seen if kind == "error"]
    assert len(errors) > 17
    secrets = [text for kind, text in seen if kind == "secret"]
    places = {"errors": "\n".join(errors), "metrics": metrics, "traces": traces.text}
    places["reports"] = reports.raw
    places |= _logs(mesh.home)
    for service in (*SERVICES, "SELECT"):
        assert service in places["traces"]
    # Control: the logs exist and name the calls.
    assert "AuthService/Login" in "".join(places.values())
    assert len(places) > 6
    needles = [*CANARIES.values(), UNREADABLE, *secrets]
    leaks = [
        (place, needle, line.strip()[:300])
        for place, text in places.items()
        for needle in needles
        for line in text.splitlines()
        if needle in line and not _is_own_query(line, needle)
    ]
    assert leaks == []


def _is_own_query(line: str, needle: str) -> bool:
    """The log contains the requested path of a call, without its query."""
    return needle == UNREADABLE and f"/api/v1/bookings/{UNREADABLE}" in line and "?" not in line


def _logs(home: Path) -> dict[str, str]:
    logs = {
        str(path.relative_to(home)): path.read_text(errors="replace")
        for path in sorted((home / "logs").rglob("*"))
        if path.is_file()
    }
    return {**logs, "up.log": (home / "up.log").read_text(errors="replace")}


def _metrics(mesh: RunningMesh) -> Iterator[str]:
    """The metrics pages of all processes."""
    settings: dict[str, Any] = {}
    for name, value in mesh.variables.items():
        settings[name.removeprefix("BOXOFFICE_").lower()] = value
    from mesh.settings import MeshSettings

    mesh_settings = MeshSettings.model_validate(settings)
    for service in SERVICES:
        answer = httpx.get(f"http://127.0.0.1:{mesh_settings.metrics_port(service, 0)}/metrics")
        assert answer.status_code == 200
        assert re.search(r"^boxoffice_", answer.text, re.MULTILINE), service
        yield answer.text
    admin = mesh.variables["BOXOFFICE_ENVOY_ADMIN_PORT"]
    yield httpx.get(f"http://127.0.0.1:{admin}/stats/prometheus").text


def test_control_a_logged_canary_is_found(tmp_path: Path) -> None:
    """The search finds a canary in a log."""
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "auth_svc.log").write_text(f'{{"email": "{EMAIL}", "id": "{new_id()}"}}')
    (tmp_path / "up.log").write_text("")
    assert any(CANARIES["email"] in text for text in _logs(tmp_path).values())
