"""The sandbox's payment page."""

import base64
import hashlib
import re
from datetime import UTC, datetime

import pytest

from mesh.ids import new_id
from mesh.money import Money
from payment_svc.providers.sandbox import pages
from payment_svc.providers.sandbox.bank import SandboxSession, State


def a_page(
    *,
    state: State = State.OPEN,
    amount: Money = Money(150_000, "INR"),  # noqa: B008 - frozen
    description: str = "2 × North Stand, Monsoon Nights",
    decline_time: datetime | None = None,
) -> str:
    return pages.checkout(
        SandboxSession("cs_1", new_id(), state, amount, description, "", "", decline_time)
    )


def test_the_page_shows_the_customers_contact() -> None:
    session = SandboxSession(
        "cs_1", new_id(), State.OPEN, Money(1, "INR"), "", "", "", None, "m&m@example.com", "+911"
    )
    page = pages.checkout(session)
    assert "m&amp;m@example.com" in page
    assert "+911" in page


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (Money(150_000, "INR"), "₹ 1,500.00"),
        (Money(1_500, "JPY"), "¥ 1,500"),
        (Money(1_500, "KWD"), "KWD 1.500"),
        (Money(1_999, "EUR"), "€ 19.99"),
    ],
)
def test_the_page_shows_the_description_and_the_amount(amount: Money, text: str) -> None:
    page = a_page(amount=amount)
    assert f"Pay {text}</button>" in page
    assert "2 × North Stand, Monsoon Nights" in page
    assert "no real money" in page


def choices(page: str) -> list[str]:
    """The outcomes of the page's buttons."""
    return re.findall(r'data-outcome="(\w+)"', page)


def test_an_open_payment_can_be_paid_declined_or_left() -> None:
    assert choices(a_page()) == ["SUCCEEDED", "FAILED", "ABANDONED"]


@pytest.mark.parametrize(
    ("state", "text"),
    [(State.PAID, "This payment is complete"), (State.VOIDED, "This payment was cancelled")],
)
def test_a_closed_payment_has_no_buttons(state: State, text: str) -> None:
    page = a_page(state=state)
    assert "data-outcome=" not in page
    assert f">{text}" in page


def test_a_declined_payment_has_a_message_and_can_be_tried_again() -> None:
    page = a_page(decline_time=datetime(2026, 11, 21, tzinfo=UTC))
    assert choices(page) == ["SUCCEEDED", "FAILED", "ABANDONED"]
    assert ">The payment was declined. Nothing was charged. You can try again." in page
    assert ">Amount due</p>" in page


def test_a_description_is_escaped() -> None:
    page = a_page(description="<script>alert(1)</script>\" onload='x'")
    assert "<script>alert" not in page
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&#34; onload=&#39;x&#39;" in page


def test_the_policy_allows_only_the_pages_own_script_and_style() -> None:
    page = a_page()
    for tag in ("script", "style"):
        (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
        digest = base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()
        assert f"{tag}-src 'sha256-{digest}'" in pages.CONTENT_SECURITY_POLICY
    assert "unsafe" not in pages.CONTENT_SECURITY_POLICY
    # Nothing that the policy blocks: no event handlers, inline styles or external resources.
    assert not re.search(r"\son\w+=|\sstyle=|src=|href=", page)
