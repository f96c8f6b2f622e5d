"""Rules for text that people type: names, titles, e-mail addresses and longer text.

Each rule returns what is wrong, or an empty text. mesh/rpc/text_fields.py applies them to requests.
"""

import re
import unicodedata

import idna

MAX_EMAIL_LENGTH = 254
"""RFC 5321, with the domain as A-labels."""

# Code points that show nothing although their category is that of a letter or a mark.
_FILLERS = frozenset("\u034f\u115f\u1160\u17b4\u17b5\u3164\uffa0")
# Format characters that are visible: signs above or before Arabic, Syriac and Kaithi digits.
_VISIBLE_FORMATS = frozenset(
    "\u0600\u0601\u0602\u0603\u0604\u0605\u06dd\u070f\u0890\u0891\u08e2\U000110bd\U000110cd"
)
_JOINERS = frozenset("\u200c\u200d")
# A blank that is categorised as a symbol.
_BLANK_SYMBOL = "\u2800"
# Embeddings, overrides and isolates change the order of the text after them. Single marks
# (U+200E, U+200F, U+061C) do not, and people paste them with Hebrew and Arabic text.
_REORDERING = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
_DIRECTION_MARKS = frozenset("\u200e\u200f\u061c")
# The emoji of a region's flag ends in these.
_TAGS = frozenset(chr(number) for number in range(0xE0020, 0xE0080))
_LINE_BREAKS = frozenset("\n\r\t")

_PHONE = re.compile(r"\+?[\d\s()./-]{5,40}")
_MIN_PHONE_DIGITS = 5
_LOCAL = re.compile(r"[a-zA-Z0-9.!#$%&'*+/=?^_`{|}~-]{1,64}")
_LINK = re.compile(r"://|@|\bwww\.|[^\s.]\.[^\W\d_]{2}", re.IGNORECASE)


def fault_of_name(text: str) -> str:
    """A person's name."""
    if any(_is_hidden(character) for character in text):
        return "must not contain control, bidirectional or zero-width characters"
    if not any(unicodedata.category(character)[0] in "LN" for character in text):
        return "must contain a letter or digit"
    return ""


def fault_of_title(text: str) -> str:
    """The name of a thing."""
    if any(
        _is_hidden(character) and character not in _TAGS and not _joins(text, place)
        for place, character in enumerate(text)
    ):
        return "must not contain control, bidirectional or zero-width characters"
    if not any(
        unicodedata.category(character)[0] in "LNPS" and character != _BLANK_SYMBOL
        for character in text
    ):
        return "must contain a visible character"
    return ""


def fault_of_text(text: str) -> str:
    """Text in one or more lines."""
    allowed = _LINE_BREAKS | _JOINERS | _DIRECTION_MARKS | _TAGS
    if any(_is_hidden(character) and character not in allowed for character in text):
        return (
            "must not contain zero-width characters, characters that reorder text, or control"
            " characters other than line breaks and tabs"
        )
    return ""


def fault_of_line(text: str) -> str:
    """Text in one line."""
    if any(_is_hidden(character) for character in text):
        return "must not contain control, bidirectional or zero-width characters"
    return ""


def fault_of_phone(text: str) -> str:
    """A phone number; auth_svc/phone.py checks whether it is one of its country."""
    digits = sum(character.isdecimal() for character in text)
    if not _PHONE.fullmatch(text) or digits < _MIN_PHONE_DIGITS:
        return "must be a phone number such as +91 98765 43210"
    return ""


def fault_of_email(text: str) -> str:
    """An e-mail address: an ASCII local part of 1–64 characters and a domain with a dot."""
    local, at, domain = text.rpartition("@")
    if not at:
        return "must be an e-mail address such as mira@example.com"
    if not _LOCAL.fullmatch(local):
        return "must have 1–64 ASCII letters, digits or signs and no spaces before the @"
    ascii_domain = to_a_labels(domain)
    if ascii_domain is None:
        return "must have a domain such as example.com after the @"
    if len(local) + 1 + len(ascii_domain) > MAX_EMAIL_LENGTH:
        return f"must have at most {MAX_EMAIL_LENGTH} characters"
    return ""


def to_a_labels(domain: str) -> str | None:
    """A domain in the form for DNS, e.g. `xn--bcher-kva.example`; None if it is no public domain.

    Lower case, after the mapping of UTS 46. A public domain has a dot and a last label that is no
    number.
    """
    try:
        encoded = idna.encode(domain, uts46=True).decode()
    except (idna.IDNAError, UnicodeError):
        return None
    labels = encoded.split(".")
    if len(labels) < 2 or not all(labels) or labels[-1].isdigit():
        return None
    return encoded.lower()


def email_key(email: str) -> str:
    """The form in which addresses are compared: lower case, the domain as A-labels."""
    local, _, domain = email.rpartition("@")
    encoded = to_a_labels(domain)
    return email.casefold() if encoded is None else f"{local.casefold()}@{encoded}"


def looks_like_link(text: str) -> bool:
    """Whether mail programs may show a part of the text as a link or a mail address."""
    return _LINK.search(text) is not None


def _is_hidden(character: str) -> bool:
    if character.isascii():
        return not character.isprintable()
    category = unicodedata.category(character)
    return (
        category in ("Cc", "Cs", "Zl", "Zp")
        or (category == "Cf" and character not in _VISIBLE_FORMATS)
        or character in _FILLERS
    )


def _joins(text: str, place: int) -> bool:
    """Whether the character joins two others, e.g. those of an emoji."""
    return (
        text[place] in _JOINERS
        and 0 < place < len(text) - 1
        and not (_is_hidden(text[place - 1]) or text[place - 1].isspace())
        and not (_is_hidden(text[place + 1]) or text[place + 1].isspace())
    )
