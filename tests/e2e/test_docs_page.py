"""The page at /docs in a real browser: "Execute" works without filling anything in."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from testing.browser import ARGUMENTS, CHROMIUM, needs_chromium, picture
from testing.running_mesh import Api, RunningMesh

UNTOUCHED = {
    "VenueService": ["CreateVenue", "CreateAuditorium", "AddSeats", "GetAuditorium", "UpdateVenue"],
    "ProductionService": ["CreateProduction", "UpdateProduction", "ListProductions"],
    "EventService": ["CreateEvent", "UpdateEvent", "GetEvent", "GetAvailability"],
    "FavouriteService": ["AddFavourite", "RemoveFavourite"],
    "BookingService": ["PlaceBooking", "GetBooking", "UpdateBooking", "CheckoutBooking"],
    "SandboxService": ["CompleteCheckout"],
    "PaymentService": ["GetPayment"],
    "StockService": ["Restock", "Audit"],
    "WebhookEndpointService": ["CreateWebhookEndpoint", "RotateWebhookSecret"],
    "AccountService": ["GetMe", "ListSessions"],
}
"""By service, methods that need only what those before them have created."""

pytestmark = [needs_chromium, pytest.mark.timeout(300)]


@pytest.fixture
def page() -> Iterator[Page]:
    """A page. Script errors and blocked or external sources fail the test."""
    problems: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        opened = browser.new_page(viewport={"width": 1280, "height": 1000})
        opened.set_default_timeout(100_000)
        opened.on("pageerror", lambda error: problems.append(str(error)))
        opened.on(
            "console",
            lambda message: problems.append(message.text) if message.type == "error" else None,
        )
        yield opened
        browser.close()
    assert problems == []


def executed(page: Page, method: str) -> None:
    """Executes a method as the page shows it; fails unless the answer is a success."""
    operation = page.locator(f"[id$={method}].opblock")
    operation.locator(".opblock-summary-control").click(no_wait_after=True)
    operation.get_by_role("button", name="Execute").click()
    status = operation.locator(".live-responses-table tbody .response-col_status").first
    expect(status).to_contain_text(re.compile("^20[014]"), timeout=60_000)
    operation.locator(".opblock-summary-control").click(no_wait_after=True)


def test_execute_works_untouched(mesh: RunningMesh, admin: Api, page: Page, tmp_path: Path) -> None:
    page.goto(f"{mesh.url}/docs")
    expect(page.locator("h3[data-tag=BookingService]")).to_be_visible(timeout=60_000)
    page.screenshot(path=picture(tmp_path, "docs"))
    page.get_by_role("button", name="Authorize").first.click()
    page.get_by_label("auth-bearer-value").fill(str(admin.token))
    page.get_by_role("button", name="Apply credentials").click()
    page.get_by_role("button", name="Close").last.click()
    for service, methods in UNTOUCHED.items():
        page.locator(f"h3[data-tag={service}]").click()
        for method in methods:
            executed(page, method)
    page.screenshot(path=picture(tmp_path, "docs-executed"))
    [booking] = admin.get("/api/v1/bookings").json()["bookings"]
    assert booking["items"][0]["quantity"] == 2
