"""What a caller knows of each call, and which calls count as failures."""

import io
import json
from typing import Any

from chaos.checks.history import History, Outcome, Window, label, outcome
from chaos.client import Attempt


def an_attempt(began: float, ended: float, status: int, reason: str = "") -> Attempt:
    return Attempt(1, "GET", "/api/v1/events", "", "http://a", began, ended, status, reason)


CALLS = [
    an_attempt(0.0, 0.5, 200),
    an_attempt(1.0, 1.5, 409, "SOLD_OUT"),
    an_attempt(2.0, 2.5, 503, "DEPENDENCY_UNAVAILABLE"),
    an_attempt(3.0, 18.0, 0, "ReadTimeout"),
    an_attempt(4.0, 4.1, 0, "left"),
]


def a_history(file: Any = None) -> History:
    history = History(file)
    for call in CALLS:
        history.record(call)
    return history


def test_outcomes() -> None:
    assert [outcome(call) for call in CALLS] == [
        Outcome.ANSWERED,
        Outcome.ANSWERED,
        Outcome.FAILED,
        Outcome.UNKNOWN,
        Outcome.LEFT,
    ]


def test_each_attempt_is_a_line_of_json() -> None:
    file = io.StringIO()
    a_history(file)
    lines = [json.loads(line) for line in file.getvalue().splitlines()]
    assert [line["outcome"] for line in lines] == [outcome(call) for call in CALLS]
    assert lines[1]["reason"] == "SOLD_OUT"


def test_calls_during_a_fault_are_not_counted_outside_of_it() -> None:
    history = a_history()
    assert history.failed_outside([]) == (4, 2)
    # The second failure began before the fault ended.
    assert history.failed_outside([Window(3.5, 5.0)]) == (3, 1)


def test_a_call_hangs_unless_the_way_in_was_broken() -> None:
    history = a_history()
    assert history.hung(14, []) == [CALLS[3]]
    assert history.hung(16, []) == []
    assert history.hung(14, [Window(10.0, 11.0)]) == []


def test_seconds_and_reasons() -> None:
    history = a_history()
    assert history.by_second(0.0)[Outcome.ANSWERED] == {0: 1, 1: 1}
    assert history.reasons() == {"503 DEPENDENCY_UNAVAILABLE": 1, "ReadTimeout": 1}


def test_a_label_has_no_ids() -> None:
    path = "/api/v1/bookings/019af6a0-1111-7222-8333-444455556666/cancel"
    assert label(Attempt(1, "POST", path, "", "", 0, 0, 200, "")) == (
        "POST /api/v1/bookings/…/cancel"
    )


def test_calls_that_hash_passwords_have_longer_deadlines() -> None:
    history = History()
    for seconds in (15.0, 28.0):
        history.record(
            Attempt(0, "POST", "/api/v1/auth/login", "", "", 0.0, seconds, 0, "ReadTimeout")
        )
    assert history.hung(14, []) == history.attempts[1:]


def test_faults_of_the_provider_are_not_those_of_the_mesh() -> None:
    history = History()
    for reason in ("PAYMENT_GATEWAY_ERROR", "DEPENDENCY_UNAVAILABLE", ""):
        status = 503 if reason else 200
        history.record(Attempt(0, "POST", "/api/v1/bookings", "", "", 0.0, 1.0, status, reason))
    assert history.failed_outside([]) == (2, 1)
