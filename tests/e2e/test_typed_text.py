"""Names, addresses and numbers as people type and paste them."""

from collections.abc import Callable
from typing import Any

import pytest

from mesh.ids import new_id
from testing.running_mesh import PASSWORD, Api, an_event, items, reason, violated_fields

REGISTER, LOGIN = "/api/v1/auth/register", "/api/v1/auth/login"
BAD_NAMES = ["   ", "\u3164", "a\u200bb", "a\u202eb", "a\ufeffb", "a\x07b", "a\nb"]
BAD_TEXTS = ["a\u202eb", "a\u200bb", "a\x07b"]


def an_account(**changes: str) -> dict[str, str]:
    return {"email": f"{new_id()}@example.com", "password": PASSWORD, "fullName": "Mira", **changes}


def test_white_space_around_an_address_and_a_name_is_removed(api: Api) -> None:
    email = f"{new_id()}@example.com"
    user = api.post(REGISTER, an_account(email=f" {email}\n", fullName="  Mira Rao\t")).json()
    assert (user["email"], user["fullName"]) == (email, "Mira Rao")
    for typed in (f"{email}\n", f" {email} ", email.upper()):
        assert api.post(LOGIN, {"email": typed, "password": PASSWORD}).status_code == 200
    assert api.post("/api/v1/auth/reset-password", {"email": f"{email} "}).status_code == 200


def test_white_space_is_part_of_a_password(api: Api) -> None:
    account = an_account(password=f" {PASSWORD} ")
    assert api.post(REGISTER, account).status_code == 201
    trimmed = api.post(LOGIN, {"email": account["email"], "password": PASSWORD})
    assert (trimmed.status_code, reason(trimmed)) == (401, "INVALID_CREDENTIALS")
    api.sign_in(account["email"], account["password"])


def test_one_letter_is_a_name_and_64_letters_are_a_local_part(api: Api) -> None:
    email = f"{new_id()!s:m<64}@example.com"
    user = api.post(REGISTER, an_account(email=email, fullName="M")).json()
    assert (user["email"], user["fullName"]) == (email, "M")


def test_an_internationalised_domain_is_shown_as_typed_and_is_one_address(api: Api) -> None:
    name = new_id()
    user = api.post(REGISTER, an_account(email=f"{name}@bücher.example")).json()
    assert user["email"] == f"{name}@bücher.example"
    again = api.post(REGISTER, an_account(email=f"{name}@xn--bcher-kva.example"))
    assert (again.status_code, reason(again)) == (409, "EMAIL_ALREADY_REGISTERED")
    api.sign_in(f"{name}@BÜCHER.example")


@pytest.mark.parametrize("email", ["a@b", "mira@localhost", "mira@127.0.0.1", f"{'m' * 65}@a.com"])
def test_no_address_is_refused(api: Api, email: str) -> None:
    refused = api.post(REGISTER, an_account(email=email))
    assert (refused.status_code, reason(refused)) == (400, "VALIDATION_FAILED")
    assert violated_fields(refused) == {"email"}


def test_phone_numbers_are_stored_as_e164(api: Api, customer: Api) -> None:
    user = api.post(REGISTER, an_account(phone="098765 43210")).json()
    assert user["phone"] == "+919876543210"
    changed = customer.send("PATCH", "/api/v1/auth/profile", {"phone": "+44 (0)20 7946-0018"})
    assert changed.json()["phone"] == "+442079460018"


@pytest.mark.parametrize("name", BAD_NAMES)
def test_every_name_is_checked(admin: Api, customer: Api, name: str) -> None:
    event = admin.create_event()
    booking = customer.book(items(event)).json()
    venue = admin.post("/api/v1/venues", {"name": "Hall", "timeZone": "UTC"}).json()
    a_row = {"label": "A", "seats": [{"number": "1", "seatType": "REGULAR"}]}
    rows = f"/api/v1/venues/{venue['venueId']}/auditoriums"
    offer = an_event()["offers"][0]
    answers = {
        "fullName": customer.send("PATCH", "/api/v1/auth/profile", {"fullName": name}),
        "attendees[0]": customer.send(
            "PATCH", f"/api/v1/bookings/{booking['bookingId']}", {"attendees": [name]}
        ),
        "name": admin.post("/api/v1/events", an_event(name=name)),
        "venueName": admin.send("PATCH", f"/api/v1/events/{event['eventId']}", {"venueName": name}),
        "offers[0].name": admin.post("/api/v1/events", an_event(offers=[{**offer, "name": name}])),
        "title": admin.post("/api/v1/productions", {"title": name}),
        "rows[0].label": admin.post(rows, {"name": "Screen", "rows": [{**a_row, "label": name}]}),
    }
    for field, refused in answers.items():
        assert (refused.status_code, reason(refused)) == (400, "VALIDATION_FAILED"), field
        assert violated_fields(refused) == {field}


@pytest.mark.parametrize("text", BAD_TEXTS)
def test_every_longer_text_is_checked(admin: Api, customer: Api, text: str) -> None:
    booking = customer.book(items(admin.create_event())).json()
    path = f"/api/v1/bookings/{booking['bookingId']}"
    calls: dict[str, Callable[[], Any]] = {
        "address": lambda: customer.send("PATCH", "/api/v1/auth/profile", {"address": text}),
        "note": lambda: customer.send("PATCH", path, {"note": text}),
        "reason": lambda: customer.post(f"{path}/cancel", {"reason": text}),
        "description": lambda: admin.post("/api/v1/events", an_event(description=text)),
    }
    for field, call in calls.items():
        refused = call()
        assert (refused.status_code, reason(refused)) == (400, "VALIDATION_FAILED"), field
        assert violated_fields(refused) == {field}
