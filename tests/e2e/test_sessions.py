"""Sessions through the gateway: carried on, reused, and what is no refresh token."""

from typing import Any

import pytest

from tests.e2e.conftest import Api, reason, violated_fields

REFRESH = "/api/v1/auth/refresh"


def test_a_refreshed_session_goes_on(api: Api) -> None:
    session = api.sign_up().session
    renewed = api.post(REFRESH, {"refreshToken": session["refreshToken"]})
    assert renewed.status_code == 200, renewed.text
    body = renewed.json()
    assert set(body) == set(session)
    assert (body["tokenType"], body["expiresIn"], body["refreshExpiresIn"]) == (
        "bearer",
        900,
        604_800,
    )
    assert body["user"] == session["user"]
    me = Api(api.client, body["accessToken"]).get("/api/v1/auth/me")
    assert me.json() == session["user"]
    # The reply was lost: the same again, in snake_case and without a good access token.
    again = Api(api.client, "nonsense").post(REFRESH, {"refresh_token": session["refreshToken"]})
    assert again.json()["refreshToken"] == body["refreshToken"]


@pytest.mark.parametrize("token", ["x", "A" * 43, "🎟" * 9])
def test_what_is_no_refresh_token(api: Api, token: str) -> None:
    refused = api.post(REFRESH, {"refreshToken": token})
    assert (refused.status_code, reason(refused)) == (401, "TOKEN_INVALID")


def test_an_access_token_is_no_refresh_token(customer: Api) -> None:
    refused = customer.post(REFRESH, {"refreshToken": customer.token})
    assert (refused.status_code, reason(refused)) == (401, "TOKEN_INVALID")


@pytest.mark.parametrize("body", [{}, {"refreshToken": ""}, {"refreshToken": "x" * 4097}])
def test_a_refresh_without_a_token(api: Api, body: Any) -> None:
    refused = api.post(REFRESH, body)
    assert (refused.status_code, reason(refused)) == (400, "VALIDATION_FAILED")
    assert violated_fields(refused) == {"refresh_token"}
