"""A confirmed booking is reduced, rescheduled twice and cancelled, over REST."""

from typing import Any

import grpc

from boxoffice.bookings.v1 import booking_pb2, booking_service_pb2
from testing.running_mesh import Api, RunningMesh, items, reason, until


def an_event(admin: Api, production: str, price: int, **changes: Any) -> dict[str, Any]:
    offer = {
        "name": "Floor",
        "price": {"currencyCode": "INR", "amountMinor": str(price)},
        "capacity": 10,
    }
    return admin.create_event(productionId=production, offers=[offer], **changes)


def pay(customer: Api, payment: dict[str, Any]) -> None:
    paid = customer.post(f"/sandbox/pay/{payment['paymentId']}", {"outcome": "SUCCEEDED"})
    assert paid.status_code == 200, paid.text


def confirmed(customer: Api, event: dict[str, Any], quantity: int) -> dict[str, Any]:
    placed = customer.book({**items(event, quantity), "checkout": {"provider": "sandbox"}})
    assert placed.status_code == 201, placed.text
    pay(customer, placed.json()["payment"])
    return customer.wait_for_status(placed.json()["bookingId"], "CONFIRMED")


def amounts(refunds: list[dict[str, Any]]) -> list[str]:
    return [refund["amount"]["amountMinor"] for refund in refunds]


def kept(admin: Api, payment_ids: set[str]) -> int:
    """Captures minus refunds of the payments, from the provider's ledger."""
    total, token = 0, ""
    while True:
        page = admin.get(f"/sandbox/ledger?page_size=1000&page_token={token}").json()
        for entry in page["entries"]:
            if entry["paymentId"] in payment_ids:
                sign = 1 if entry["kind"] == "CAPTURE" else -1
                total += sign * int(entry["amount"]["amountMinor"])
        if not (token := page["nextPageToken"]):
            return total


def test_a_booking_is_reduced_rescheduled_and_cancelled(admin: Api, customer: Api) -> None:
    production = admin.create_production()
    first = an_event(admin, production, 150_000)
    costlier = an_event(admin, production, 200_000, startTime="2099-08-04T14:00:00Z")
    cheaper = an_event(admin, production, 100_000, startTime="2099-09-04T14:00:00Z")
    booking = confirmed(customer, first, 3)
    path = f"/api/v1/bookings/{booking['bookingId']}"
    payments = {booking["payment"]["paymentId"]}

    preview = customer.get(f"{path}/cancellation").json()
    assert (preview["refundable"], preview["percent"]) == (True, 97)
    assert preview["amount"] == {"currencyCode": "INR", "amountMinor": "436500"}
    assert preview["deadline"]

    fewer = customer.send("PATCH", path, {"items": items(first, 2)["items"]})
    assert fewer.status_code == 200, fewer.text
    assert fewer.json()["total"]["amountMinor"] == "300000"
    assert amounts(fewer.json()["refunds"]) == ["145500"]

    # Without `checkout`, the price difference is paid with the booking's provider.
    pending = customer.post(f"{path}/reschedule", {"eventId": costlier["eventId"]}).json()
    assert (pending["eventId"], pending["status"]) == (first["eventId"], "CONFIRMED")
    difference = pending["change"]["payment"]
    payments.add(difference["paymentId"])
    pay(customer, difference)
    moved = _wait_until_at(customer, path, costlier)
    assert moved["total"]["amountMinor"] == "400000"

    rescheduled = customer.post(f"{path}/reschedule", {"event_id": cheaper["eventId"]})
    assert rescheduled.status_code == 200, rescheduled.text
    moved = _wait_until_at(customer, path, cheaper)
    assert moved["total"]["amountMinor"] == "200000"

    cancelled = customer.post(f"{path}/cancel", {"reason": "a change of plans"})
    assert cancelled.status_code == 200, cancelled.text
    assert cancelled.json()["status"] == "CANCELLED"
    repeated = customer.post(f"{path}/cancel", {})
    assert (repeated.status_code, reason(repeated)) == (409, "ALREADY_CANCELLED")

    # 4,500 and 1,000 paid; 97 % of 1,500, 2,000 and 2,000 refunded.
    expected = 450_000 + 100_000 - 145_500 - 194_000 - 194_000
    until(lambda: kept(admin, payments) == expected, "the provider keeps another amount")
    for event in (first, costlier, cheaper):
        audit = admin.get(f"/api/v1/events/{event['eventId']}/stock/audit").json()
        assert audit["differences"] == []
        assert [(pool["sold"], pool["held"]) for pool in audit["pools"]] == [(0, 0)]
    refund = customer.get(path).json()["refund"]
    assert customer.get(f"/api/v1/refunds/{refund['refundId']}").json()["status"] == "PROCESSED"


def _wait_until_at(customer: Api, path: str, event: dict[str, Any]) -> dict[str, Any]:
    return until(lambda: _at(customer, path, event), "the booking was not rescheduled")


def _at(customer: Api, path: str, event: dict[str, Any]) -> dict[str, Any] | None:
    booking: dict[str, Any] = customer.get(path).json()
    return booking if booking["eventId"] == event["eventId"] else None


def test_a_repeated_call_is_marked_as_replayed(
    mesh: RunningMesh, admin: Api, customer: Api
) -> None:
    order = items(admin.create_event())
    first, again = (customer.book(order, key="once") for _ in range(2))
    assert first.json()["bookingId"] == again.json()["bookingId"]
    assert "idempotent-replayed" not in first.headers
    assert again.headers["idempotent-replayed"] == "true"
    cancelled = [
        customer.post(
            f"/api/v1/bookings/{first.json()['bookingId']}/cancel", {}, idempotency_key="stop"
        )
        for _ in range(2)
    ]
    assert [answer.headers.get("idempotent-replayed") for answer in cancelled] == [None, "true"]
    metadata = (("authorization", f"Bearer {customer.token}"), ("idempotency-key", "once"))
    request = booking_service_pb2.PlaceBookingRequest(
        event_id=order["eventId"],
        items=[
            booking_service_pb2.PlaceBookingRequest.Item(
                offer_id=order["items"][0]["offerId"], quantity=1
            )
        ],
    )
    with grpc.insecure_channel(mesh.url.removeprefix("http://")) as channel:
        place = channel.unary_unary(
            "/boxoffice.bookings.v1.BookingService/PlaceBooking",
            booking_service_pb2.PlaceBookingRequest.SerializeToString,
            booking_pb2.Booking.FromString,
        )
        _, call = place.with_call(request, metadata=metadata)
        assert dict(call.initial_metadata())["idempotent-replayed"] == "true"


def test_lists_of_bookings_are_filtered(admin: Api, customer: Api, api: Api) -> None:
    event, other = admin.create_event(), admin.create_event()
    first, second = (customer.book(items(sale)).json() for sale in (event, other))
    mine = "/api/v1/bookings"

    def ids(client: Api, path: str) -> list[str]:
        answer = client.get(path)
        assert answer.status_code == 200, answer.text
        return [booking["bookingId"] for booking in answer.json()["bookings"]]

    assert ids(customer, f"{mine}?eventId={event['eventId']}") == [first["bookingId"]]
    assert ids(customer, f"{mine}?createdAfter={second['createTime']}") == [second["bookingId"]]
    assert ids(customer, f"{mine}?createdBefore={second['createTime']}") == [first["bookingId"]]
    assert ids(customer, f"{mine}?customerId={customer.user_id}&status=HELD") == [
        second["bookingId"],
        first["bookingId"],
    ]
    email = customer.session["user"]["email"]
    until(
        lambda: ids(admin, f"{mine}?query={email}") == [second["bookingId"], first["bookingId"]],
        "staff do not find the customer's bookings",
    )
    of_event = f"/api/v1/events/{event['eventId']}/bookings"
    assert ids(admin, f"{of_event}?query={email}") == [first["bookingId"]]
    assert ids(admin, f"{mine}?customerId={customer.user_id}&query={first['bookingId'][:13]}")
    stranger = api.sign_up()
    for query in (f"customerId={customer.user_id}", "query=mira"):
        refused = stranger.get(f"{mine}?{query}")
        assert (refused.status_code, reason(refused)) == (403, "STAFF_REQUIRED")
