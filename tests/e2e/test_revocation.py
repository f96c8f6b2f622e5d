"""An access token that was revoked stops working in every service, soon."""

import time
from collections.abc import Callable
from typing import Any

import pytest

from mesh.ids import new_id
from testing.running_mesh import PASSWORD, Api, reason

# The promise is 60 s; a stream that works takes milliseconds.
PROMISED_SECONDS = 60.0

# One signed-in read of each service.
READS = {
    "auth_svc": "/api/v1/auth/me",
    "booking_svc": "/api/v1/bookings",
    "stock_svc": "/api/v1/events/{id}/stock/audit",
    "payment_svc": "/api/v1/payments/{id}",
}
LET_IN = {200, 403, 404}


def answers(one: Api) -> dict[str, int]:
    return {
        service: one.get(path.format(id=new_id())).status_code for service, path in READS.items()
    }


def wait_refused(one: Api) -> None:
    deadline = time.monotonic() + PROMISED_SECONDS
    while set(answers(one).values()) != {401}:
        assert time.monotonic() < deadline, answers(one)
        time.sleep(0.05)
    refused = one.get(READS["stock_svc"].format(id=new_id()))
    assert reason(refused) == "TOKEN_INVALID"


def log_out(one: Api, _: Api) -> Any:
    return one.post("/api/v1/auth/logout", {})


def log_out_here(one: Api, _: Api) -> Any:
    return one.post("/api/v1/auth/logout", {"scope": "CURRENT_SESSION"})


def deactivate(one: Api, admin: Api) -> Any:
    return admin.send("PATCH", f"/api/v1/users/{one.user_id}", {"isActive": False})


def promote(one: Api, admin: Api) -> Any:
    return admin.send("PATCH", f"/api/v1/users/{one.user_id}", {"role": "STAFF"})


def change_password_elsewhere(one: Api, _: Api) -> Any:
    other = one.sign_in(one.session["user"]["email"])
    changed = other.post(
        "/api/v1/auth/change-password",
        {"currentPassword": PASSWORD, "newPassword": "Curtain-Down-2026!"},
    )
    assert set(answers(other).values()) <= LET_IN
    return changed


@pytest.mark.parametrize(
    "revoke", [log_out, log_out_here, deactivate, promote, change_password_elsewhere]
)
def test_a_revoked_token_is_refused_everywhere(
    api: Api, admin: Api, revoke: Callable[[Api, Api], Any]
) -> None:
    one, bystander = api.sign_up(), api.sign_up()
    assert set(answers(one).values()) <= LET_IN
    assert revoke(one, admin).status_code == 200
    wait_refused(one)
    assert set(answers(bystander).values()) <= LET_IN
