"""Nothing personal and no secret is in any log, metric, trace or error of a whole run."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from mesh.ids import new_id
from mesh.settings import SERVICES
from tests.e2e.conftest import Api, RunningMesh, items, running_mesh

EMAIL = "canary.bird@canary-mail.example"
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
}
# In what a client sends wrongly: nobody repeats it either.
UNREADABLE = "kanarie-onleesbaar"


@pytest.fixture
def lonely() -> Iterator[RunningMesh]:
    """A mesh of its own: what other tests log is not this test's."""
    with running_mesh(BOXOFFICE_LOG_LEVEL="DEBUG") as running:
        yield running


def a_whole_run(api: Api, admin: Api) -> list[tuple[str, str]]:
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
    wrong = {"email": EMAIL, "password": CANARIES["wrong password"]}
    for _ in range(3):
        note(api.post("/api/v1/auth/login", wrong))
    me = api.sign_in(EMAIL, CANARIES["password"])
    profile = {"address": CANARIES["address"], "fullName": CANARIES["full name"]}
    assert me.send("PATCH", "/api/v1/auth/profile", profile).status_code == 200
    note(me.send("PATCH", "/api/v1/auth/profile", {"address": CANARIES["address"] + "\x00"}))
    event = admin.create_event()
    booking = me.book({**items(event, 2), "checkout": {"provider": "sandbox"}}).json()
    me.post(f"/sandbox/pay/{booking['payment']['paymentId']}", {"outcome": "SUCCEEDED"})
    me.wait_for_status(booking["bookingId"], "CONFIRMED")
    path = f"/api/v1/bookings/{booking['bookingId']}"
    note(me.send("PATCH", path, {"note": CANARIES["note"]}))
    note(me.post(f"{path}/cancel", {"reason": CANARIES["reason"]}))
    note(me.get(f"/api/v1/bookings/{UNREADABLE}?access_token={UNREADABLE}"))
    note(me.post("/api/v1/bookings", UNREADABLE))
    note(me.client.post("/api/v1/auth/login", content=f'{{"email": "{EMAIL}'.encode() + b"\xff"))
    forged = f"eyJhbGciOiJub25lIn0.{UNREADABLE}.x"
    note(Api(me.client, forged).get("/api/v1/auth/me"))
    note(me.post("/api/v1/auth/refresh", {"refreshToken": UNREADABLE}))
    note(me.post("/webhooks/sandbox", {"kanarie": UNREADABLE}))
    api.post("/api/v1/auth/reset-password", {"email": EMAIL})
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


def test_no_canary_sings(lonely: RunningMesh) -> None:
    with httpx.Client(base_url=lonely.url, timeout=20) as client:
        api = Api(client)
        admin = api.sign_up(admin_secret=lonely.variables["BOXOFFICE_ADMIN_REGISTRATION_SECRET"])
        seen = a_whole_run(api, admin)
        metrics = "".join(_metrics(lonely))
    errors = [text for kind, text in seen if kind == "error"]
    assert len(errors) > 12
    secrets = [text for kind, text in seen if kind == "secret"]
    places = {"errors": "\n".join(errors), "metrics": metrics, **_logs(lonely.home)}
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
        for folder in ("logs", "traces")
        for path in sorted((home / folder).rglob("*"))
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
