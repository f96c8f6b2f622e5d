"""Page tokens: opaque, and valid only for the list that they were created for."""

import base64

import pytest

from mesh import paging
from mesh.errors import DomainError, Reason
from mesh.ids import new_id


def test_a_token_contains_its_key() -> None:
    key = ("2026-03-01T12:00:00+00:00", "01932c07-5e0a-7cc0-b3a5-d3a1b3c0ffee", "ü, \x00 and 🙂")
    token = paging.to_token(*key)
    assert paging.from_token(token, 3) == key
    assert token.isascii()
    assert "=" not in token


def test_no_token_is_the_first_page() -> None:
    assert paging.from_token("", 2) is None


@pytest.mark.parametrize(
    "token",
    [
        pytest.param(paging.to_token("one"), id="one value"),
        pytest.param(paging.to_token("one", "two", "three"), id="three values"),
        "x",
        "%%%",
        "ü",
        "bm8ganNvbg",
        "e30",
        "WzEsMl0",
        "//79",
        "bnVsbA",
    ],
)
def test_an_invalid_token_is_refused(token: str) -> None:
    with pytest.raises(DomainError) as refused:
        paging.from_token(token, 2)
    assert refused.value.reason is Reason.VALIDATION_FAILED
    assert [violation.field for violation in refused.value.violations] == ["page_token"]


def test_a_token_is_invalid_with_other_filters() -> None:
    token = paging.to_token("one", "two", scope="events of May")
    assert paging.from_token(token, 2, scope="events of May") == ("one", "two")
    with pytest.raises(DomainError):
        paging.from_token(token, 2, scope="events of June")


def test_a_forged_token_is_refused() -> None:
    signed = base64.urlsafe_b64decode(paging.to_token("one") + "==")
    forged = base64.urlsafe_b64encode(signed.replace(b"one", b"two")).decode().rstrip("=")
    with pytest.raises(DomainError):
        paging.from_token(forged, 1)


def test_processes_with_the_same_secret_accept_each_others_tokens() -> None:
    before = paging._signer.key
    try:
        paging.sign_with("shared")
        token = paging.to_token("one")
        paging.sign_with("another")
        with pytest.raises(DomainError):
            paging.from_token(token, 1)
        paging.sign_with("shared")
        assert paging.from_token(token, 1) == ("one",)
    finally:
        paging._signer.key = before


def test_a_token_contains_its_id() -> None:
    some_id = new_id()
    assert paging.id_from_token(paging.to_token(str(some_id))) == some_id
    assert paging.id_from_token("") is None


@pytest.mark.parametrize(
    "token",
    ["x", paging.to_token("x"), paging.to_token("a", "b")],
    ids=["no token", "no id", "two values"],
)
def test_a_token_without_an_id_is_refused(token: str) -> None:
    with pytest.raises(DomainError) as refused:
        paging.id_from_token(token)
    assert refused.value.reason is Reason.VALIDATION_FAILED
    assert [violation.field for violation in refused.value.violations] == ["page_token"]


def test_the_default_size_is_twenty() -> None:
    assert paging.page_size(0) == 20
    assert paging.page_size(7) == 7
    assert paging.page_size(0, default=50) == 50
