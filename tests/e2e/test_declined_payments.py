"""Declined, abandoned, replaced and impossible payments over REST, and prices as shown."""

from typing import Any

import httpx
import pytest

from mesh.ids import new_id
from testing.running_mesh import Api, an_event, items, reason, until, violated_fields

SANDBOX = {"provider": "sandbox"}
Json = dict[str, Any]


def place(customer: Api, event: Json, quantity: int = 1) -> Json:
    """A booking that is PENDING_PAYMENT."""
    placed = customer.book({**items(event, quantity), "checkout": SANDBOX})
    assert placed.status_code == 201, placed.text
    booking: Json = placed.json()
    return booking


def choose(customer: Api, payment: Json, outcome: str) -> httpx.Response:
    return customer.post(f"/sandbox/pay/{payment['paymentId']}", {"outcome": outcome})


def read(customer: Api, booking: Json) -> Json:
    answer: Json = customer.get(f"/api/v1/bookings/{booking['bookingId']}").json()
    return answer


def wait_for_payment(customer: Api, booking: Json, status: str) -> Json:
    """The booking once its payment has a status, which it learns by a webhook."""

    def reached() -> Json | None:
        now = read(customer, booking)
        return now if now["payment"]["status"] == status else None

    return until(reached, f"the payment did not become {status}")


def check_out(customer: Api, booking: Json, **checkout: str) -> httpx.Response:
    path = f"/api/v1/bookings/{booking['bookingId']}/checkout"
    return customer.post(path, {**SANDBOX, **checkout})


def test_a_declined_payment_is_noted_and_paid_at_the_second_try(admin: Api, customer: Api) -> None:
    event = admin.create_event()
    booking = place(customer, event, 10)
    payment = booking["payment"]
    declined = choose(customer, payment, "FAILED")
    assert (declined.status_code, declined.json()["outcome"]) == (200, "FAILED")
    waiting = wait_for_payment(customer, booking, "FAILED")
    assert waiting["status"] == "PENDING_PAYMENT"
    assert waiting["holdExpireTime"] == booking["holdExpireTime"]
    noted = waiting["timeline"][-1]
    assert (noted["reason"], noted["failureCode"]) == (
        "payment declined: card_declined",
        "card_declined",
    )
    attempts = customer.get(f"/api/v1/payments/{payment['paymentId']}").json()["declinedAttempts"]
    assert [attempt["failureCode"] for attempt in attempts] == ["card_declined"]
    # The places are not for sale, and the page can be paid.
    refused = customer.book(items(event))
    assert (refused.status_code, reason(refused)) == (409, "SOLD_OUT")
    page = customer.client.get(payment["paymentUrl"]).text
    assert "You can try again." in page
    assert 'data-outcome="SUCCEEDED"' in page
    assert choose(customer, payment, "SUCCEEDED").json()["outcome"] == "SUCCEEDED"
    confirmed = customer.wait_for_status(booking["bookingId"], "CONFIRMED")
    assert confirmed["payment"]["paymentId"] == payment["paymentId"]


def test_an_abandoned_page_is_closed_and_the_next_checkout_opens_another(
    admin: Api, customer: Api
) -> None:
    booking = place(customer, admin.create_event())
    assert choose(customer, booking["payment"], "ABANDONED").json()["outcome"] == "ABANDONED"
    closed = choose(customer, booking["payment"], "SUCCEEDED")
    assert (closed.status_code, reason(closed)) == (409, "PAYMENT_STATE_INVALID")
    waiting = wait_for_payment(customer, booking, "VOIDED")
    assert waiting["status"] == "PENDING_PAYMENT"
    again = check_out(customer, booking).json()
    assert again["payment"]["paymentId"] != booking["payment"]["paymentId"]
    choose(customer, again["payment"], "SUCCEEDED")
    customer.wait_for_status(booking["bookingId"], "CONFIRMED")


def test_another_address_opens_a_new_page_and_closes_the_first(admin: Api, customer: Api) -> None:
    booking = place(customer, admin.create_event())
    unknown = check_out(customer, booking, provider="nosuch")
    assert (unknown.status_code, reason(unknown)) == (404, "PROVIDER_NOT_FOUND")
    assert read(customer, booking)["payment"] == booking["payment"]
    address = {"successUrl": "https://shop.test/thanks"}
    again = check_out(customer, booking, **address).json()
    assert again["payment"]["paymentId"] != booking["payment"]["paymentId"]
    assert check_out(customer, booking, **address).json()["payment"] == again["payment"]
    first_page = f"/sandbox/pay/{booking['payment']['paymentId']}"
    until(
        lambda: "This payment was cancelled" in customer.client.get(first_page).text,
        "the first page was not closed",
    )
    assert choose(customer, booking["payment"], "SUCCEEDED").status_code == 409
    paid = choose(customer, again["payment"], "SUCCEEDED").json()
    assert paid["redirectUrl"] == "https://shop.test/thanks"
    customer.wait_for_status(booking["bookingId"], "CONFIRMED")


def test_a_declined_difference_is_paid_at_the_second_try(admin: Api, customer: Api) -> None:
    production = admin.create_production()
    first = admin.create_event(productionId=production)
    dearer = admin.create_event(
        productionId=production,
        offers=[{**an_event()["offers"][0], "price": inr(200_000)}],
    )
    booking = place(customer, first)
    choose(customer, booking["payment"], "SUCCEEDED")
    customer.wait_for_status(booking["bookingId"], "CONFIRMED")
    path = f"/api/v1/bookings/{booking['bookingId']}"
    moving = customer.post(f"{path}/reschedule", {"eventId": dearer["eventId"]}).json()
    choose(customer, moving["change"]["payment"], "FAILED")
    until(
        lambda: read(customer, booking)["timeline"][-1].get("failureCode") == "card_declined",
        "the declined attempt was not noted",
    )
    waiting = read(customer, booking)
    assert (waiting["status"], waiting["change"]) == ("CONFIRMED", moving["change"])
    # With other addresses on a new page.
    again = check_out(customer, booking, cancelUrl="https://shop.test/back").json()["change"]
    assert again["payment"]["paymentId"] != moving["change"]["payment"]["paymentId"]
    choose(customer, again["payment"], "SUCCEEDED")
    until(lambda: read(customer, booking)["eventId"] == dearer["eventId"], "it was not rescheduled")


def test_what_cannot_be_paid_holds_nothing(admin: Api, customer: Api) -> None:
    event = admin.create_event()
    refused = customer.book({**items(event, 10), "checkout": {"provider": "paypal"}})
    assert (refused.status_code, reason(refused)) == (404, "PROVIDER_NOT_FOUND")
    assert customer.get("/api/v1/bookings").json()["totalSize"] == 0
    event_path = f"/api/v1/events/{event['eventId']}"
    pools = admin.get(f"{event_path}/stock/audit").json()["pools"]
    assert [(pool["held"], pool["sold"]) for pool in pools] == [(0, 0)]
    held = customer.book(items(event)).json()
    assert check_out(customer, held, provider="paypal").status_code == 404
    assert read(customer, held)["status"] == "HELD"


def inr(amount: int, currency: str = "INR") -> Json:
    return {"currencyCode": currency, "amountMinor": str(amount)}


@pytest.mark.parametrize(
    ("currency", "amount", "field", "text"),
    [
        ("ZZZ", 1_000, "currencyCode", "ISO 4217"),
        ("XXX", 1_000, "currencyCode", "ISO 4217"),
        ("USD", 30, "offers[0].price.amountMinor", "sandbox accepts 50 to "),
        ("KWD", 1_505, "offers[0].price.amountMinor", "in steps of 10"),
        ("INR", 1_000_000_000_000, "offers[0].price.amountMinor", "to 999999999999 minor units"),
    ],
)
def test_an_event_must_be_payable(
    admin: Api, currency: str, amount: int, field: str, text: str
) -> None:
    offer = {**an_event()["offers"][0], "price": inr(amount, currency)}
    refused = admin.post("/api/v1/events", an_event(currencyCode=currency, offers=[offer]))
    assert (refused.status_code, violated_fields(refused)) == (400, {field})
    assert text in refused.text
    if field == "currencyCode":
        return
    # The same price as a change of an event.
    payable = {**offer, "price": inr(10_000, currency)}
    event = admin.create_event(currencyCode=currency, offers=[payable])
    path = f"/api/v1/events/{event['eventId']}"
    change = {
        "offers": [{"offerId": event["offers"][0]["offerId"], "price": inr(amount, currency)}]
    }
    refused = admin.send("PATCH", path, change)
    assert (refused.status_code, violated_fields(refused)) == (400, {field})
    free = {"offers": [{"offerId": event["offers"][0]["offerId"], "price": inr(0, currency)}]}
    assert admin.send("PATCH", path, free).status_code == 200


def metadata(response: httpx.Response) -> Json:
    (info,) = [
        detail for detail in response.json()["details"] if detail["@type"].endswith("ErrorInfo")
    ]
    values: Json = info["metadata"]
    return values


def test_another_price_than_the_customer_was_shown_is_refused(admin: Api, customer: Api) -> None:
    event = admin.create_event()
    shown = {"expectedTotal": inr(300_000), "eventEtag": event["etag"]}
    path = f"/api/v1/events/{event['eventId']}"
    change = {"offers": [{"offerId": event["offers"][0]["offerId"], "price": inr(160_000)}]}
    assert admin.send("PATCH", path, change).status_code == 200
    for claim in ({"expectedTotal": shown["expectedTotal"]}, {"eventEtag": shown["eventEtag"]}):
        refused = customer.book({**items(event, 2), **claim})
        assert (refused.status_code, reason(refused)) == (409, "PRICE_CHANGED")
        now = metadata(refused)
        assert (now["total"], now["currencyCode"]) == ("320000", "INR")
    assert customer.get("/api/v1/bookings").json()["totalSize"] == 0
    shown = {"expectedTotal": inr(int(now["total"])), "eventEtag": now["etag"]}
    held = customer.book({**items(event, 2), **shown})
    assert held.status_code == 201, held.text
    booking = f"/api/v1/bookings/{held.json()['bookingId']}"
    three = {"items": items(event, 3)["items"]}
    refused = customer.send("PATCH", booking, {**three, **shown})
    assert (refused.status_code, reason(refused)) == (409, "PRICE_CHANGED")
    assert metadata(refused)["total"] == "480000"
    updated = customer.send("PATCH", booking, {**three, "expectedTotal": inr(480_000)})
    assert updated.json()["total"] == inr(480_000)


def test_who_pays_while_the_event_is_cancelled_gets_the_money_back(
    admin: Api, customer: Api
) -> None:
    event = admin.create_event()
    bookings = [place(customer, event) for _ in range(8)]
    path = f"/api/v1/events/{event['eventId']}"
    cancelled = admin.send("PUT", f"{path}/status", {"status": "CANCELLED", "reason": "Monsoon"})
    assert cancelled.status_code == 200, cancelled.text
    paid = [
        booking
        for booking in bookings
        if choose(customer, booking["payment"], "SUCCEEDED").status_code == 200
    ]
    for booking in bookings:
        ended = customer.wait_for_status(booking["bookingId"], "CANCELLED")
        entry = next(e for e in ended["timeline"] if e["status"] == "CANCELLED")
        assert (entry["actor"], entry["reason"]) == ("ORGANISER", "Monsoon")
    for booking in paid:
        until(
            lambda booking=booking: (
                (read(customer, booking).get("refund") or {}).get("status")  # type: ignore[misc]
                == "PROCESSED"
            ),
            "the money was not paid back",
        )
        assert read(customer, booking)["refund"]["amount"] == booking["total"]
    progress = admin.get(f"{path}/cancellation").json()
    assert (progress["bookingsFound"], progress["bookingsCancelled"]) == (8, 8)


def test_a_promised_refund_can_be_read(admin: Api, customer: Api) -> None:
    booking = place(customer, admin.create_event())
    choose(customer, booking["payment"], "SUCCEEDED")
    customer.wait_for_status(booking["bookingId"], "CONFIRMED")
    cancelled = customer.post(f"/api/v1/bookings/{booking['bookingId']}/cancel", {}).json()
    refund = customer.get(f"/api/v1/refunds/{cancelled['refund']['refundId']}")
    assert refund.status_code == 200, refund.text
    assert refund.json()["amount"] == cancelled["refund"]["amount"]


def test_an_embedded_payment_is_confirmed_as_always(admin: Api, customer: Api) -> None:
    number = "+919876543210"
    assert customer.send("PATCH", "/api/v1/auth/profile", {"phone": number}).status_code == 200
    event = admin.create_event()
    # The default provider.
    hosted = customer.book({**items(event), "checkout": {}}).json()
    assert hosted["payment"]["provider"] == "sandbox"
    assert hosted["payment"]["expireTime"] == hosted["holdExpireTime"]

    def page_with_phone() -> bool:
        # The number reaches booking_svc by auth_svc's stream; each address is a page of its own.
        url = f"https://shop.test/{new_id()}"
        opened = check_out(customer, hosted, successUrl=url).json()["payment"]
        return number in customer.get(f"/sandbox/pay/{opened['paymentId']}").text

    until(page_with_phone, "the page does not show the customer's phone number")
    embedded = check_out(customer, hosted, flow="EMBEDDED").json()["payment"]
    assert embedded["clientSecret"]
    assert embedded["paymentUrl"] == ""
    known = customer.get(f"/api/v1/payments/{embedded['paymentId']}").json()
    assert (known["clientSecret"], known["expireTime"]) == (
        embedded["clientSecret"],
        embedded["expireTime"],
    )
    choose(customer, embedded, "SUCCEEDED")
    paid = wait_for_payment(customer, hosted, "CAPTURED")
    assert "clientSecret" not in paid["payment"]
