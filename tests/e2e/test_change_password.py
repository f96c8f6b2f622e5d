"""Password changes through the gateway."""

from typing import Any

import pytest

from testing.running_mesh import PASSWORD, Api, reason, violated_fields

PATH = "/api/v1/auth/change-password"
NEXT_PASSWORD = "Encore-Please-27!"


def test_a_new_password_ends_the_other_sessions(customer: Api) -> None:
    email = customer.session["user"]["email"]
    other = customer.sign_in(email)
    answer = customer.post(PATH, {"currentPassword": PASSWORD, "newPassword": NEXT_PASSWORD})
    assert answer.status_code == 200, answer.text
    assert answer.json().keys() == {"message", "changeTime"}
    assert answer.json()["changeTime"] == customer.get("/api/v1/auth/me").json()["updateTime"]
    outcomes = [
        client.post("/api/v1/auth/refresh", {"refreshToken": client.session["refreshToken"]})
        for client in (other, customer)
    ]
    assert [outcome.status_code for outcome in outcomes] == [401, 200]
    old = customer.post("/api/v1/auth/login", {"email": email, "password": PASSWORD})
    assert (old.status_code, reason(old)) == (401, "INVALID_CREDENTIALS")
    customer.sign_in(email, NEXT_PASSWORD)


@pytest.mark.parametrize(
    ("current", "new", "why", "field"),
    [
        ("wrong", NEXT_PASSWORD, "CURRENT_PASSWORD_INCORRECT", "currentPassword"),
        (PASSWORD, PASSWORD, "PASSWORD_UNCHANGED", "newPassword"),
        (PASSWORD, "encore", "PASSWORD_TOO_WEAK", "newPassword"),
        (PASSWORD, "", "VALIDATION_FAILED", "newPassword"),
        ("x" * 1025, NEXT_PASSWORD, "VALIDATION_FAILED", "currentPassword"),
    ],
)
def test_a_refused_change_names_the_field(
    customer: Api, current: Any, new: Any, why: str, field: str
) -> None:
    refused = customer.post(PATH, {"currentPassword": current, "newPassword": new})
    assert (refused.status_code, reason(refused)) == (400, why)
    assert violated_fields(refused) == {field}
    customer.sign_in(customer.session["user"]["email"])


def test_a_token_is_required(api: Api) -> None:
    refused = api.post(PATH, {"currentPassword": PASSWORD, "newPassword": NEXT_PASSWORD})
    assert (refused.status_code, reason(refused)) == (401, "TOKEN_INVALID")
