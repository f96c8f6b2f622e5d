"""Return addresses of a checkout through the gateway; the rules: booking_svc's return_addresses."""

import pytest

from testing.running_mesh import Api, items, violated_fields


@pytest.mark.parametrize(
    "url",
    [
        "https://shop.example/ok?s={CHECKOUT_SESSION_ID}&a[]=1",
        "HTTPS://shop.example/été",
        "myapp://paid",
        "http://localhost:3000/paid",
    ],
)
def test_a_return_address_is_passed_on_as_given(admin: Api, customer: Api, url: str) -> None:
    order = items(admin.create_event())
    placed = customer.book({**order, "checkout": {"provider": "sandbox", "successUrl": url}})
    assert placed.status_code == 201, placed.text
    payment_id = placed.json()["payment"]["paymentId"]
    paid = customer.post(f"/sandbox/pay/{payment_id}", {"outcome": "SUCCEEDED"})
    assert paid.json()["redirectUrl"] == url


@pytest.mark.parametrize("url", ["https://u:p@shop.example/", "javascript://x/%0aalert(1)"])
def test_an_unsafe_return_address_is_refused(admin: Api, customer: Api, url: str) -> None:
    order = items(admin.create_event())
    refused = customer.book({**order, "checkout": {"provider": "sandbox", "cancelUrl": url}})
    assert violated_fields(refused) == {"checkout.cancelUrl"}
    booking = customer.book(order).json()
    path = f"/api/v1/bookings/{booking['bookingId']}/checkout"
    refused = customer.post(path, {"provider": "sandbox", "cancelUrl": url})
    assert violated_fields(refused) == {"cancelUrl"}
