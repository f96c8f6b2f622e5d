"""The page at /docs in a real browser shows the API, and "Try it" places a booking."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from mesh.ids import new_id
from testing.browser import ARGUMENTS, CHROMIUM, needs_chromium, picture
from testing.running_mesh import Api, RunningMesh, items

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


def test_try_it_places_a_booking(
    mesh: RunningMesh, admin: Api, customer: Api, page: Page, tmp_path: Path
) -> None:
    order = items(admin.create_event(), 2)
    page.goto(f"{mesh.url}/docs")
    bookings = page.locator("h3[data-tag=BookingService]")
    expect(bookings).to_be_visible(timeout=60_000)
    page.screenshot(path=picture(tmp_path, "docs"))

    page.get_by_role("button", name="Authorize").first.click()
    page.get_by_label("auth-bearer-value").fill(str(customer.token))
    page.get_by_role("button", name="Apply credentials").click()
    page.get_by_role("button", name="Close").last.click()

    operation = page.locator("[id$=PlaceBooking].opblock")
    bookings.click()
    operation.locator(".opblock-summary-control").click(no_wait_after=True)
    operation.locator("tr[data-param-name=Idempotency-Key] input").fill(str(new_id()))
    operation.locator("textarea.body-param__text").fill(json.dumps(order))
    operation.get_by_role("button", name="Execute").click()
    status = operation.locator(".live-responses-table tbody .response-col_status").first
    expect(status).to_contain_text("201", timeout=60_000)
    operation.locator(".live-responses-table").scroll_into_view_if_needed()
    page.screenshot(path=picture(tmp_path, "docs-booked"))

    [booking] = customer.get("/api/v1/bookings").json()["bookings"]
    assert (booking["eventId"], booking["status"]) == (order["eventId"], "HELD")
