"""A revoked access token is refused by every service within 60 seconds."""

import time
from collections.abc import Callable
from typing import Any

import pytest

from mesh.ids import new_id
from testing.running_mesh import PASSWORD, Api, reason

# The documented limit is 60 s; a working stream takes milliseconds.
MAX_SECONDS = 60.0

# A call of each service that needs a token.
READS = {
    "auth_svc": "/api/v1/auth/me",
    "booking_svc": "/api/v1/bookings",
    "stock_svc": "/api/v1/events/{id}/stock/audit",
    "payment_svc": "/api/v1/payments/{id}",
    # A public read: a token is optional, but must be valid.
    "anyone": "/api/v1/events/{id}",
}
ACCEPTED = {200, 403, 404}


def answers(user: Api) -> dict[str, int]:
    return {
        service: user.get(path.format(id=new_id())).status_code for service, path in READS.items()
    }


def wait_refused(user: Api) -> None:
    deadline = time.monotonic() + MAX_SECONDS
    while set(answers(user).values()) != {401}:
        assert time.monotonic() < deadline, answers(user)
        time.sleep(0.05)
    refused = user.get(READS["stock_svc"].format(id=new_id()))
    assert reason(refused) == "TOKEN_INVALID"


def log_out(user: Api, _: Api) -> Any:
    return user.post("/api/v1/auth/logout", {})


def log_out_here(user: Api, _: Api) -> Any:
    return user.post("/api/v1/auth/logout", {"scope": "CURRENT_SESSION"})


def deactivate(user: Api, admin: Api) -> Any:
    return admin.send("PATCH", f"/api/v1/users/{user.user_id}", {"isActive": False})


def promote(user: Api, admin: Api) -> Any:
    return admin.send("PATCH", f"/api/v1/users/{user.user_id}", {"role": "STAFF"})


def change_password_elsewhere(user: Api, _: Api) -> Any:
    other = user.sign_in(user.session["user"]["email"])
    changed = other.post(
        "/api/v1/auth/change-password",
        {"currentPassword": PASSWORD, "newPassword": "Curtain-Down-2026!"},
    )
    assert set(answers(other).values()) <= ACCEPTED
    return changed


@pytest.mark.parametrize(
    "revoke", [log_out, log_out_here, deactivate, promote, change_password_elsewhere]
)
def test_a_revoked_token_is_refused_everywhere(
    api: Api, admin: Api, revoke: Callable[[Api, Api], Any]
) -> None:
    user, bystander = api.sign_up(), api.sign_up()
    assert set(answers(user).values()) <= ACCEPTED
    assert revoke(user, admin).status_code == 200
    wait_refused(user)
    assert set(answers(bystander).values()) <= ACCEPTED
