"""Texts that people type."""

import pytest

from mesh import text

ZWSP, ZWNJ, ZWJ, RLO, RLM, FILLER = "\u200b", "\u200c", "\u200d", "\u202e", "\u200f", "\u3164"


@pytest.mark.parametrize(
    "name", ["M", "李", "Mira Rao", "O’Brien-Smith", "Ибрагим", "मीरा", "7", "X Æ A-12", "J.R.R."]
)
def test_names_of_people(name: str) -> None:
    assert text.fault_of_name(name) == ""


@pytest.mark.parametrize(
    "name",
    [
        *("!!!", "–", "🎭", "\u2800", FILLER, f"{FILLER} {FILLER}", "\u0301"),
        *(f"Mira{sign}Rao" for sign in ("\n", "\t", "\x00", "\x1b[31m", "\x85", "\u2028")),
        *(f"Mira{sign}" for sign in (ZWSP, ZWJ, RLO, RLM, "\ufeff", "\u00ad", "\u2066", "\u034f")),
    ],
)
def test_no_names_of_people(name: str) -> None:
    assert text.fault_of_name(name)


@pytest.mark.parametrize(
    "title",
    [
        "!!!",
        "AC/DC",
        "P!nk",
        "👨‍👩‍👧 day",
        f"می{ZWNJ}خواهم",
        "東京事変ライブ",
        "+/-",
        "F",
        "🏴󠁧󠁢󠁥󠁮󠁧󠁿 cup",
    ],
)
def test_titles(title: str) -> None:
    assert text.fault_of_title(title) == ""


@pytest.mark.parametrize(
    "title", ["\u2800", FILLER, f"a{ZWSP}b", f"a{ZWJ}", f"{ZWNJ}a", f"a{RLO}b", "a\nb", "\u0301"]
)
def test_no_titles(title: str) -> None:
    assert text.fault_of_title(title)


def test_longer_text() -> None:
    assert text.fault_of_text(f"Line 1\r\n\tline 2 {RLM}עברית 👨{ZWJ}👩 می{ZWNJ}خواهم") == ""
    for sign in ("\x00", "\x07", ZWSP, RLO, "\u2069", "\ufeff"):
        assert text.fault_of_text(f"a{sign}b")


@pytest.mark.parametrize(
    "email",
    [
        "mira@example.com",
        f"{'m' * 64}@example.com",
        "mira+tickets@sub.example.co.in",
        "o'brien@example.com",
        "a..b@docomo.example",
        "mira@bücher.example",
        "mira@例え.テスト",
        "mira@xn--bcher-kva.example",
    ],
)
def test_addresses(email: str) -> None:
    assert text.fault_of_email(email) == ""


@pytest.mark.parametrize(
    "email",
    [
        *("mira", "@", "@example.com", "mira@", "a@b", "mira@localhost", "mira@127.0.0.1"),
        *("mira@exam ple.com", "mi ra@example.com", "mira@.example.com", "mira@example..com"),
        *(f"{'m' * 65}@example.com", f"m@{'a.' * 130}com", "mira@[127.0.0.1]", "mira@-a.com"),
        *("mira@example.com, noor@example.com", "Mira <mira@example.com>", "मीरा@example.com"),
        *("mira@example.com\r\nBcc: noor@example.com", f"mira@exam{ZWSP}ple.c{RLO}om", "mira@a.1"),
    ],
)
def test_no_addresses(email: str) -> None:
    assert text.fault_of_email(email)


@pytest.mark.parametrize(
    ("typed", "key"),
    [
        ("Mira@Example.COM", "mira@example.com"),
        ("mira@BÜCHER.example", "mira@xn--bcher-kva.example"),
        ("mira@faß.de", "mira@xn--fa-hia.de"),
        ("no address", "no address"),
    ],
)
def test_addresses_are_compared_in_one_form(typed: str, key: str) -> None:
    assert text.email_key(typed) == key


@pytest.mark.parametrize("phone", ["+91 98765-43210", "(022) 2778.1234", "0044 20 7946 0018"])
def test_phone_numbers(phone: str) -> None:
    assert text.fault_of_phone(phone) == ""


@pytest.mark.parametrize(
    "phone", ["+0", "call me", "+91 98765 43210 ext. 7", "12\x0034567", "--------"]
)
def test_no_phone_numbers(phone: str) -> None:
    assert text.fault_of_phone(phone)


@pytest.mark.parametrize(
    ("name", "is_link"),
    [
        ("Mira Rao", False),
        ("J. R. R. Tolkien", False),
        ("win at evil.example", True),
        ("https://evil", True),
        ("WWW.evil", True),
        ("mira@evil", True),
    ],
)
def test_names_that_mail_programs_turn_into_links(name: str, is_link: bool) -> None:
    assert text.looks_like_link(name) is is_link
