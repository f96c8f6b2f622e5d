"""Verifying and changing an e-mail address, through the gateway."""

import re
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default

import httpx
import pytest

from mesh.ids import new_id
from testing.running_mesh import (
    PASSWORD,
    Api,
    RunningMesh,
    items,
    reason,
    running_mesh,
    until,
    violated_fields,
)

CHANGE, CONFIRM = "/api/v1/auth/change-email", "/api/v1/auth/confirm-email"
RESEND = "/api/v1/auth/resend-verification"
LINK = re.compile(r"confirm-email#token=([\w-]{43})")


def token_to(mesh: RunningMesh, email: str) -> str:
    """The token in the newest mail with a link to an address."""

    def newest() -> str | None:
        for path in sorted((mesh.home / "mails").glob("*.eml"), reverse=True):
            mail = message_from_bytes(path.read_bytes(), policy=default)
            assert isinstance(mail, EmailMessage)
            body = mail.get_body(("plain",))
            link = None if body is None else LINK.search(body.get_content())
            if mail["To"] == email and link is not None:
                return link[1]
        return None

    return until(newest, "no mail arrived")


def test_a_new_address_is_verified(mesh: RunningMesh, customer: Api) -> None:
    email = customer.session["user"]["email"]
    assert "emailVerifyTime" not in {k: v for k, v in customer.session["user"].items() if v}
    token = token_to(mesh, email)
    confirmed = customer.post(CONFIRM, {"token": token})
    assert confirmed.status_code == 200, confirmed.text
    assert confirmed.json()["email"] == email
    user = customer.get("/api/v1/auth/me").json()
    assert user["emailVerifyTime"] == confirmed.json()["confirmTime"]
    assert customer.post(CONFIRM, {"token": token}).json() == confirmed.json()
    invalid = customer.post(CONFIRM, {"token": "nonsense"})
    assert (invalid.status_code, reason(invalid)) == (401, "TOKEN_INVALID")


def test_an_address_is_changed_with_proof(mesh: RunningMesh, customer: Api) -> None:
    new = f"{new_id()}@example.org"
    body = {"newEmail": f" {new}\n", "currentPassword": PASSWORD}
    wrong = customer.post(CHANGE, {**body, "currentPassword": "a guess"})
    assert (wrong.status_code, reason(wrong)) == (400, "CURRENT_PASSWORD_INCORRECT")
    started = customer.post(CHANGE, body)
    assert started.status_code == 200, started.text
    assert started.json().keys() == {"message", "expireTime"}
    assert customer.get("/api/v1/auth/me").json()["email"] == customer.session["user"]["email"]
    assert customer.post(CONFIRM, {"token": token_to(mesh, new)}).status_code == 200
    assert customer.sign_in(new).session["user"]["email"] == new


def test_an_admin_starts_the_change_for_a_user(
    mesh: RunningMesh, admin: Api, customer: Api
) -> None:
    new = f"{new_id()}@example.org"
    path = f"/api/v1/users/{customer.user_id}/change-email"
    assert reason(customer.post(path, {"newEmail": new})) == "ADMIN_REQUIRED"
    assert admin.post(path, {"newEmail": new}).status_code == 200
    assert customer.post(CONFIRM, {"token": token_to(mesh, new)}).json()["email"] == new


def test_addresses_that_are_taken_or_wrong(api: Api, customer: Api) -> None:
    other = api.sign_up().session["user"]["email"]
    taken = customer.post(CHANGE, {"newEmail": other, "currentPassword": PASSWORD})
    assert (taken.status_code, reason(taken)) == (409, "EMAIL_ALREADY_REGISTERED")
    wrong = customer.post(CHANGE, {"newEmail": "a@b", "currentPassword": PASSWORD})
    assert violated_fields(wrong) == {"newEmail"}
    anonymous = api.post(CHANGE, {"newEmail": other, "currentPassword": PASSWORD})
    assert (anonymous.status_code, reason(anonymous)) == (401, "TOKEN_INVALID")


def test_resending_answers_the_same_for_every_address(api: Api, customer: Api) -> None:
    known = api.post(RESEND, {"email": customer.session["user"]["email"]})
    unknown = api.post(RESEND, {"email": "nobody-at-all@example.com"})
    assert (known.status_code, known.json()) == (200, unknown.json())


@pytest.mark.parametrize("path", ["change-password", "reset-password/confirm"])
def test_the_second_entry_of_a_password_must_be_equal(customer: Api, path: str) -> None:
    new = "Quiet-Harbour-58"
    given = {"currentPassword": PASSWORD} if path == "change-password" else {"token": "nonsense"}
    body = {**given, "newPassword": new, "confirmPassword": f"{new} "}
    refused = customer.post(f"/api/v1/auth/{path}", body)
    assert (refused.status_code, reason(refused)) == (400, "VALIDATION_FAILED")
    assert violated_fields(refused) == {"confirmPassword"}
    assert "must equal newPassword" in refused.json()["message"]
    body["confirmPassword"] = new
    accepted = customer.post(f"/api/v1/auth/{path}", body)
    assert accepted.status_code == (200 if path == "change-password" else 401), accepted.text


@pytest.mark.timeout(400)
def test_verification_can_be_required_before_the_first_booking() -> None:
    with (
        running_mesh(BOXOFFICE_EMAIL_VERIFICATION="required") as mesh,
        httpx.Client(base_url=mesh.url, timeout=60) as client,
    ):
        from testing.running_mesh import ADMIN_SECRET

        api = Api(client)
        event = api.sign_up(admin_secret=ADMIN_SECRET).create_event()
        customer = api.sign_up()
        refused = customer.book(items(event))
        assert (refused.status_code, reason(refused)) == (403, "EMAIL_NOT_VERIFIED")
        token = token_to(mesh, customer.session["user"]["email"])
        assert customer.post(CONFIRM, {"token": token}).status_code == 200
        refreshed = customer.post(
            "/api/v1/auth/refresh", {"refreshToken": customer.session["refreshToken"]}
        ).json()
        verified = Api(client, refreshed["accessToken"])
        booked = verified.book(items(event))
        assert booked.status_code == 201, booked.text
