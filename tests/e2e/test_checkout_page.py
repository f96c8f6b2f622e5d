"""Payments and declines in a real browser, on the running mesh, change the booking."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from testing.browser import ARGUMENTS, CHROMIUM, HAS_NO_SIDE_SCROLL, PHONE, needs_chromium, picture
from testing.running_mesh import Api, items

pytestmark = needs_chromium


@pytest.fixture
def page() -> Iterator[Page]:
    """A page on a phone. Script errors and blocked sources fail the test."""
    problems: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        opened = browser.new_page(
            viewport=PHONE,  # type: ignore[arg-type] # a dict of its own
            device_scale_factor=2,
            has_touch=True,
        )
        # Browsers request a favicon, which the gateway does not have.
        opened.route("**/favicon.ico", lambda route: route.fulfill(status=204))
        opened.on("pageerror", lambda error: problems.append(str(error)))
        opened.on(
            "console",
            lambda message: problems.append(message.text) if message.type == "error" else None,
        )
        yield opened
        browser.close()
    assert problems == []


def shot(page: Page, folder: Path, name: str) -> None:
    page.screenshot(path=picture(folder, f"mesh-{name}"), full_page=True)
    assert page.evaluate(HAS_NO_SIDE_SCROLL)


def place(admin: Api, customer: Api) -> dict[str, Any]:
    """A booking of two places that is PENDING_PAYMENT."""
    order = {**items(admin.create_event(), 2), "checkout": {"provider": "sandbox"}}
    placed = customer.book(order)
    assert placed.status_code == 201, placed.text
    booking: dict[str, Any] = placed.json()
    return booking


def ledger_of(admin: Api, booking: dict[str, Any]) -> list[str]:
    """The sandbox's ledger entries for a booking."""
    entries = admin.get("/sandbox/ledger?page_size=1000").json()["entries"]
    payment_id = booking["payment"]["paymentId"]
    return [entry["kind"] for entry in entries if entry["paymentId"] == payment_id]


def wait_until_voided(page: Page) -> None:
    """A saga step voids the payment of a booking that ends unpaid."""
    voided = page.get_by_text("This payment was cancelled. Nothing was charged.")
    for _ in range(60):
        page.reload()
        if voided.is_visible():
            break
        page.wait_for_timeout(250)
    expect(voided).to_be_visible()
    expect(page.get_by_role("button")).to_have_count(0)


def test_paying_confirms_the_booking(admin: Api, customer: Api, page: Page, tmp_path: Path) -> None:
    booking = place(admin, customer)
    page.goto(booking["payment"]["paymentUrl"])
    expect(page.locator("#amount")).to_have_text("₹ 3,000.00")
    shot(page, tmp_path, "open")
    page.get_by_role("button", name="Pay ₹ 3,000.00").tap()
    expect(page.get_by_role("status")).to_have_text("Paid. Thank you!")
    customer.wait_for_status(booking["bookingId"], "CONFIRMED")
    assert ledger_of(admin, booking) == ["CAPTURE"]
    page.reload()
    expect(page.get_by_role("status")).to_have_text("This payment is complete. Thank you!")
    expect(page.get_by_role("button")).to_have_count(0)
    shot(page, tmp_path, "paid")


def test_a_declined_payment_is_paid_at_the_second_try(
    admin: Api, customer: Api, page: Page, tmp_path: Path
) -> None:
    booking = place(admin, customer)
    page.goto(booking["payment"]["paymentUrl"])
    page.get_by_role("button", name="Decline").tap()
    expect(page.get_by_role("status")).to_have_text(
        "The payment was declined. Nothing was charged. You can try again."
    )
    shot(page, tmp_path, "declined")
    assert ledger_of(admin, booking) == []
    page.get_by_role("button", name="Pay ₹ 3,000.00").tap()
    expect(page.get_by_role("status")).to_have_text("Paid. Thank you!")
    customer.wait_for_status(booking["bookingId"], "CONFIRMED")
    assert ledger_of(admin, booking) == ["CAPTURE"]


def test_a_cancelled_booking_cannot_be_paid(
    admin: Api, customer: Api, page: Page, tmp_path: Path
) -> None:
    booking = place(admin, customer)
    page.goto(booking["payment"]["paymentUrl"])
    cancelled = customer.post(f"/api/v1/bookings/{booking['bookingId']}/cancel", {})
    assert cancelled.status_code == 200, cancelled.text
    wait_until_voided(page)
    shot(page, tmp_path, "voided")
    assert ledger_of(admin, booking) == []
