"""Profile updates through the gateway."""

from typing import Any

import pytest

from testing.running_mesh import Api, reason, violated_fields

PROFILE = "/api/v1/auth/profile"
ME = "/api/v1/auth/me"


@pytest.mark.parametrize("verb", ["PATCH", "PUT"])
def test_only_the_sent_fields_change(customer: Api, verb: str) -> None:
    before = customer.get(ME).json()
    changed = customer.send(verb, PROFILE, {"phone": "+919876543210", "address": "1 Road\nPune"})
    assert changed.status_code == 200, changed.text
    expected = {**before, "phone": "+919876543210", "address": "1 Road\nPune"}
    assert {**changed.json(), "updateTime": before["updateTime"]} == expected
    assert customer.get(ME).json() == changed.json()
    cleared = customer.send(verb, PROFILE, {"phone": "", "full_name": "Mira de la Rao"}).json()
    assert (cleared["phone"], cleared["fullName"]) == ("", "Mira de la Rao")
    assert cleared["address"] == "1 Road\nPune"


def test_users_cannot_change_their_email_role_or_activity(customer: Api) -> None:
    before = customer.get(ME).json()
    customer.send(
        "PATCH",
        PROFILE,
        {"email": "x@example.com", "role": "ADMIN", "isActive": False, "password": "Other-Pass-9!"},
    )
    assert customer.get(ME).json() == before
    customer.sign_in(before["email"])


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({"fullName": "-"}, {"fullName"}),
        ({"fullName": "  "}, {"fullName"}),
        (
            {"fullName": "", "phone": "0123", "address": "x" * 501},
            {"fullName", "phone", "address"},
        ),
        (
            {"fullName": "Mi\x00ra", "phone": "+1\n", "address": "a\x07"},
            {"fullName", "phone", "address"},
        ),
    ],
)
def test_all_invalid_fields_are_named_together(customer: Api, body: Any, fields: set[str]) -> None:
    before = customer.get(ME).json()
    refused = customer.send("PATCH", PROFILE, body)
    assert (refused.status_code, reason(refused)) == (400, "VALIDATION_FAILED")
    assert violated_fields(refused) == fields
    assert customer.get(ME).json() == before


def test_a_token_is_required(api: Api) -> None:
    refused = api.send("PATCH", PROFILE, {"address": "here"})
    assert (refused.status_code, reason(refused)) == (401, "TOKEN_INVALID")
