"""The `boxoffice` command line and `make sample-data`, against the running mesh."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mesh.ids import new_id
from testing.running_mesh import ADMIN_SECRET, PASSWORD, RunningMesh, until
from tools.boxoffice.__main__ import main

Run = Callable[..., str]


@pytest.fixture
def run(
    mesh: RunningMesh,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Run:
    """Runs a command that succeeds; returns what it prints."""
    monkeypatch.setenv("BOXOFFICE_HOME", str(tmp_path))
    monkeypatch.setenv("BOXOFFICE_PASSWORD", PASSWORD)
    monkeypatch.setenv("BOXOFFICE_ADMIN_REGISTRATION_SECRET", ADMIN_SECRET)

    def run(*arguments: str, exit_code: int = 0) -> str:
        assert main(["--url", mesh.url, *arguments]) == exit_code
        printed = capsys.readouterr()
        return printed.out if exit_code == 0 else printed.err

    return run


def test_the_first_booking_by_commands(run: Run, tmp_path: Path) -> None:
    assert "ADMIN" in run("register", f"{new_id()}@example.com", "--admin")
    assert (tmp_path / "boxoffice-session.json").stat().st_mode & 0o777 == 0o600
    event = answer(run("create-event", "Jazz", "--offer", "Floor,150000,INR,500"))
    key = answer(run("create-key", "Till 3"))
    assert key["role"] == "STAFF"
    assert answer(run("keys"))[0]["apiKeyId"] == key["apiKeyId"]
    assert run("revoke-key", key["apiKeyId"]) == "Revoked.\n"

    email = f"{new_id()}@example.com"
    run("register", email)
    assert "CUSTOMER" in run("login", email)
    assert "STAFF" in run("create-event", "Jazz", "--offer", "Floor,1,INR,5", exit_code=1)
    assert "must be one of: Floor" in run("book", event["eventId"], "--offer", "A", exit_code=1)
    booking = answer(run("book", event["eventId"], "--quantity", "2"))
    assert booking["total"]["amountMinor"] == "300000"
    paid = answer(run("pay", booking["bookingId"]))
    assert paid["status"] == "CONFIRMED"
    assert answer(run("booking", booking["bookingId"])) == paid

    # The money of other events, which other tests have sold, is not this event's.
    report = ("on-sale-report", event["eventId"], "--folder", str(tmp_path / "report"))
    assert "STAFF" in run(*report, exit_code=1)
    run("register", f"{new_id()}@example.com", "--admin")
    until(lambda: "Unexplained differences: 0" in run(*report), "the ledgers do not agree")
    assert "<h1>Jazz</h1>" in (tmp_path / "report" / "report.html").read_text()


def test_sample_data_is_created_once(run: Run) -> None:
    summary = run("sample-data")
    assert len([line for line in summary.splitlines() if line.startswith("event ")]) == 3
    assert "CONFIRMED" in summary
    assert run("sample-data") == summary


def answer(printed: str) -> Any:
    return json.loads(printed)
