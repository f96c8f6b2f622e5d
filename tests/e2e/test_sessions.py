"""Sessions through the gateway: refreshed, listed, ended; and refused calls."""

from typing import Any

import pytest

from mesh.ids import new_id
from testing.running_mesh import PASSWORD, Api, reason, violated_fields

REFRESH = "/api/v1/auth/refresh"
LOGOUT = "/api/v1/auth/logout"
SESSIONS = "/api/v1/auth/sessions"


def is_alive(client: Api) -> bool:
    """Whether the session can be refreshed. The used refresh token still works during GRACE."""
    answer = client.post(REFRESH, {"refreshToken": client.session["refreshToken"]})
    if answer.status_code != 200:
        assert (answer.status_code, reason(answer)) == (401, "TOKEN_INVALID")
    return answer.status_code == 200


def another_session(client: Api) -> Api:
    """Another session of the same user."""
    return client.sign_in(client.session["user"]["email"])


def test_a_refresh_continues_the_session(api: Api) -> None:
    session = api.sign_up().session
    renewed = api.post(REFRESH, {"refreshToken": session["refreshToken"]})
    assert renewed.status_code == 200, renewed.text
    body = renewed.json()
    assert set(body) == set(session) - {"deviceToken"}
    assert (body["tokenType"], body["expiresIn"], body["refreshExpiresIn"]) == (
        "bearer",
        900,
        604_800,
    )
    assert body["user"] == session["user"]
    me = Api(api.client, body["accessToken"]).get("/api/v1/auth/me")
    assert me.json() == session["user"]
    # After a lost reply: the same call, in snake_case and with an invalid access token.
    repeated = Api(api.client, "nonsense").post(REFRESH, {"refresh_token": session["refreshToken"]})
    assert repeated.json()["refreshToken"] == body["refreshToken"]


@pytest.mark.parametrize("token", ["x", "A" * 43, "🎟" * 9])
def test_an_invalid_refresh_token_is_refused(api: Api, token: str) -> None:
    refused = api.post(REFRESH, {"refreshToken": token})
    assert (refused.status_code, reason(refused)) == (401, "TOKEN_INVALID")


def test_an_access_token_is_refused_as_refresh_token(customer: Api) -> None:
    refused = customer.post(REFRESH, {"refreshToken": customer.token})
    assert (refused.status_code, reason(refused)) == (401, "TOKEN_WRONG_TYPE")


@pytest.mark.parametrize("body", [{}, {"refreshToken": ""}, {"refreshToken": "x" * 4097}])
def test_a_refresh_needs_a_token(api: Api, body: Any) -> None:
    refused = api.post(REFRESH, body)
    assert (refused.status_code, reason(refused)) == (400, "VALIDATION_FAILED")
    assert violated_fields(refused) == {"refreshToken"}


def test_signing_out_everywhere(api: Api) -> None:
    first = api.sign_up()
    second, stranger = another_session(first), api.sign_up()
    answer = first.post(LOGOUT, {})
    assert (answer.status_code, answer.json()) == (
        200,
        {"message": "signed out", "tokensInvalidated": 2},
    )
    assert not is_alive(first)
    assert not is_alive(second)
    assert is_alive(stranger)
    fresh = another_session(first)
    assert fresh.post(LOGOUT, {"scope": "ALL_SESSIONS"}).json()["tokensInvalidated"] == 1


def test_signing_out_of_the_current_session(customer: Api) -> None:
    other = another_session(customer)
    answer = customer.post(LOGOUT, {"scope": "CURRENT_SESSION"})
    assert answer.json()["tokensInvalidated"] == 1
    assert not is_alive(customer)
    assert is_alive(other)


def test_an_unknown_scope_is_refused(customer: Api) -> None:
    refused = customer.post(LOGOUT, {"scope": 7})
    assert (refused.status_code, reason(refused)) == (400, "VALIDATION_FAILED")
    assert is_alive(customer)


def test_sessions_are_listed_and_ended_one_by_one(customer: Api) -> None:
    other = another_session(customer)
    listed = customer.get(SESSIONS).json()
    assert (listed["totalSize"], listed["nextPageToken"]) == (2, "")
    assert [session["isCurrent"] for session in listed["sessions"]] == [False, True]
    page = customer.get(f"{SESSIONS}?page_size=1").json()
    rest = customer.get(f"{SESSIONS}?page_size=1&page_token={page['nextPageToken']}").json()
    assert page["sessions"] + rest["sessions"] == listed["sessions"]
    others_id = listed["sessions"][0]["sessionId"]
    for _ in range(2):
        ended = customer.delete(f"{SESSIONS}/{others_id}")
        assert (ended.status_code, ended.content) == (204, b"")
    assert not is_alive(other)
    [remaining] = customer.get(SESSIONS).json()["sessions"]
    assert remaining["isCurrent"]
    assert is_alive(customer)


def test_ending_sessions_with_a_key_is_idempotent(customer: Api) -> None:
    other, third = another_session(customer), another_session(customer)
    listed = customer.get(SESSIONS).json()["sessions"]
    paths = [f"{SESSIONS}/{session['sessionId']}" for session in listed]
    for _ in range(2):
        ended = customer.delete(paths[0], idempotency_key="end-one")
        assert (ended.status_code, ended.content) == (204, b"")
    reused = customer.delete(paths[1], idempotency_key="end-one")
    assert (reused.status_code, reason(reused)) == (409, "IDEMPOTENCY_KEY_REUSED")
    assert not is_alive(third)
    assert is_alive(other)
    first = customer.post(LOGOUT, {}, idempotency_key="sign-out")
    assert first.json()["tokensInvalidated"] == 2
    # The token was revoked with its session; gateway and service may not know it yet.
    repeated = customer.post(LOGOUT, {}, idempotency_key="sign-out")
    assert repeated.status_code == 401 or repeated.json() == first.json()
    fresh = another_session(customer)
    assert fresh.post(LOGOUT, {}, idempotency_key="sign-out").json() == first.json()
    assert is_alive(fresh)


def test_a_session_of_another_user_is_not_found(api: Api) -> None:
    mine, stranger = api.sign_up(), api.sign_up()
    [session] = mine.get(SESSIONS).json()["sessions"]
    for path in (session["sessionId"], new_id()):
        refused = stranger.delete(f"{SESSIONS}/{path}")
        assert (refused.status_code, reason(refused)) == (404, "SESSION_NOT_FOUND")
    refused = stranger.delete(f"{SESSIONS}/mine")
    assert (refused.status_code, reason(refused)) == (400, "VALIDATION_FAILED")
    assert is_alive(mine)


def test_an_invalid_page_token_is_refused(customer: Api) -> None:
    refused = customer.get(f"{SESSIONS}?page_token=WyJ4Il0")
    assert (refused.status_code, reason(refused)) == (400, "VALIDATION_FAILED")
    assert violated_fields(refused) == {"pageToken"}


def test_a_token_is_required(api: Api) -> None:
    for refused in (
        api.get(SESSIONS),
        api.post(LOGOUT, {}),
        api.delete(f"{SESSIONS}/{new_id()}"),
    ):
        assert (refused.status_code, reason(refused)) == (401, "TOKEN_INVALID")


def test_repeated_wrong_passwords_are_throttled(api: Api) -> None:
    mira, login = api.sign_up(), "/api/v1/auth/login"
    for email in (mira.session["user"]["email"], f"{new_id()}@example.com"):
        for _ in range(5):
            wrong = api.post(login, {"email": email, "password": "wrong"})
            assert (wrong.status_code, reason(wrong)) == (401, "INVALID_CREDENTIALS")
        refused = api.post(login, {"email": email, "password": PASSWORD})
        assert (refused.status_code, reason(refused)) == (429, "LOGIN_THROTTLED")
        assert int(refused.headers["retry-after"]) == 1
    assert is_alive(mira)


def test_signing_out_with_an_ended_token_is_answered(customer: Api) -> None:
    for scope, ended in (("CURRENT_SESSION", 1), ("CURRENT_SESSION", 0), ("ALL_SESSIONS", 0)):
        answer = customer.post(LOGOUT, {"scope": scope})
        assert answer.status_code == 200, answer.text
        assert answer.json()["tokensInvalidated"] == ended


def test_a_token_of_an_ended_session_does_not_end_the_others(customer: Api) -> None:
    other = another_session(customer)
    customer.post(LOGOUT, {"scope": "CURRENT_SESSION"})
    answer = customer.post(LOGOUT, {})
    assert (answer.status_code, answer.json()["tokensInvalidated"]) == (200, 0)
    assert is_alive(other)
