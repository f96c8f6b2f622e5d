"""The sandbox's payment page in a real browser of a phone's size.

A minimal HTTP server stands in for the gateway and sends the page's content security policy.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from google.protobuf import json_format
from playwright.async_api import Page, async_playwright, expect

from boxoffice.payments.v1 import sandbox_service_pb2
from mesh.db.jobs import Wakeup
from payment_svc.payments import Status
from payment_svc.providers.sandbox import bank, pages
from payment_svc.servicers.sandbox import SandboxServicer
from testing.browser import ARGUMENTS, CHROMIUM, HAS_NO_SIDE_SCROLL, PHONE, needs_chromium, picture
from testing.payment_harness import SandboxHarness

pytestmark = needs_chromium

# A slow machine needs more than the default of five seconds.
expect.set_options(timeout=60_000)


@asynccontextmanager
async def serving(harness: SandboxHarness) -> AsyncIterator[str]:
    """The page and the calls of its buttons, over HTTP."""
    servicer = SandboxServicer(harness.database, harness.clock, Wakeup())

    async def answer(verb: str, path: str, body: bytes) -> tuple[str, bytes]:
        payment_id = path.removeprefix("/sandbox/pay/")
        if verb == "GET":
            async with harness.database.transaction() as connection:
                session = await bank.find(connection, payment_id=UUID(payment_id))
            return pages.CONTENT_TYPE, pages.checkout(session).encode()
        request = sandbox_service_pb2.CompleteCheckoutRequest(payment_id=payment_id)
        json_format.Parse(body, request)
        context: Any = None
        message = await servicer.CompleteCheckout(request, context)
        return "application/json", json_format.MessageToJson(message).encode()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
        verb, path, _ = head[0].split(" ")
        headers = dict(line.lower().split(": ", 1) for line in head[1:] if line)
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        if path == "/favicon.ico":
            status, kind, content = "204 No Content", "text/plain", b""
        else:
            status, (kind, content) = "200 OK", await answer(verb, path, body)
        writer.write(
            f"HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {len(content)}\r\n"
            f"content-security-policy: {pages.CONTENT_SECURITY_POLICY}\r\n"
            "connection: close\r\n\r\n".encode()
            + content
        )
        await writer.drain()
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.fixture
async def page() -> AsyncIterator[Page]:
    """A page of a phone's size. Fails on script errors and blocked resources."""
    problems: list[str] = []
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        context = await browser.new_context(
            viewport=PHONE,  # type: ignore[arg-type] # a dict of its own
            device_scale_factor=2,
            has_touch=True,
        )
        context.set_default_timeout(60_000)
        opened = await context.new_page()
        opened.on("pageerror", lambda error: problems.append(str(error)))
        opened.on(
            "console",
            lambda message: problems.append(message.text) if message.type == "error" else None,
        )
        yield opened
        await browser.close()
    assert problems == []


async def shot(page: Page, tmp_path: Path, name: str) -> None:
    """Stores a screenshot, and checks that the page does not scroll sideways."""
    await page.screenshot(path=picture(tmp_path, name), full_page=True)
    assert await page.evaluate(HAS_NO_SIDE_SCROLL)


async def test_a_customer_pays_on_a_phone(
    page: Page, harness: SandboxHarness, tmp_path: Path
) -> None:
    payment = await harness.open()
    async with serving(harness) as url:
        await page.goto(f"{url}/sandbox/pay/{payment.payment_id}")
        await expect(page.locator("#amount")).to_have_text("₹ 1,500.00")
        pay = page.get_by_role("button", name="Pay ₹ 1,500.00")
        box = await pay.bounding_box()
        assert box is not None
        # Large enough for a thumb, and visible without scrolling.
        assert box["height"] >= 44
        assert box["y"] + box["height"] <= PHONE["height"]
        await shot(page, tmp_path, "open")
        await page.emulate_media(color_scheme="dark")
        await shot(page, tmp_path, "open-dark")
        await pay.tap()
        await expect(page.get_by_role("status")).to_have_text("Paid. Thank you!")
        await expect(pay).to_be_hidden()
        await expect(page.locator("#label")).to_have_text("Paid")
        await shot(page, tmp_path, "paid-dark")
        await page.emulate_media(color_scheme="light")
        await shot(page, tmp_path, "paid")
        await page.reload()
        await expect(page.get_by_role("status")).to_have_text(
            "This payment is complete. Thank you!"
        )
        await shot(page, tmp_path, "done")
    await harness.deliver()
    assert (await harness.find(payment)).status is Status.CAPTURED


async def test_a_declined_payment_is_paid_at_the_second_try(
    page: Page, harness: SandboxHarness, tmp_path: Path
) -> None:
    payment = await harness.open()
    declined = "The payment was declined. Nothing was charged. You can try again."
    async with serving(harness) as url:
        await page.goto(f"{url}/sandbox/pay/{payment.payment_id}")
        decline = page.get_by_role("button", name="Decline")
        await decline.tap()
        await expect(page.get_by_role("status")).to_have_text(declined)
        await expect(decline).to_be_enabled()
        await expect(page.locator("#label")).to_have_text("Amount due")
        await shot(page, tmp_path, "declined")
        await page.emulate_media(color_scheme="dark")
        await shot(page, tmp_path, "declined-dark")
        await page.reload()
        await expect(page.get_by_role("status")).to_have_text(declined)
        await page.get_by_role("button", name="Pay ₹ 1,500.00").tap()
        await expect(page.get_by_role("status")).to_have_text("Paid. Thank you!")
    await harness.deliver()
    assert (await harness.find(payment)).status is Status.CAPTURED


async def test_a_customer_leaves_for_good(page: Page, harness: SandboxHarness) -> None:
    payment = await harness.open()
    async with serving(harness) as url:
        await page.goto(f"{url}/sandbox/pay/{payment.payment_id}")
        leave = page.get_by_role("button", name="Leave without paying")
        await leave.tap()
        await expect(page.get_by_role("status")).to_have_text(
            "This payment was cancelled. Nothing was charged."
        )
        await expect(leave).to_be_hidden()
    await harness.deliver()
    assert (await harness.find(payment)).status is Status.VOIDED


async def test_a_voided_payment_has_a_message_in_dark_mode(
    page: Page, harness: SandboxHarness, tmp_path: Path
) -> None:
    payment = await harness.open()
    await harness.calls.void(payment.payment_id)
    await page.emulate_media(color_scheme="dark")
    async with serving(harness) as url:
        await page.goto(f"{url}/sandbox/pay/{payment.payment_id}")
        await expect(page.get_by_role("status")).to_have_text(
            "This payment was cancelled. Nothing was charged."
        )
        background = "getComputedStyle(document.body).backgroundColor"
        assert await page.evaluate(background) == "rgb(16, 18, 26)"
        assert await page.get_by_role("button").count() == 0
        await expect(page.locator("#label")).to_have_text("Not charged")
        await shot(page, tmp_path, "voided-dark")
        await page.emulate_media(color_scheme="light")
        await shot(page, tmp_path, "voided")
