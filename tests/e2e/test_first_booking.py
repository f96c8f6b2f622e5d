"""A booking over REST: paid in the sandbox, confirmed by its webhook, and audited."""

from testing.running_mesh import Api, items


def test_a_booking_is_paid_and_confirmed(admin: Api, customer: Api) -> None:
    event = admin.create_event()
    assert (event["status"], event["available"], event["totalCapacity"]) == ("ON_SALE", 10, 10)

    placed = customer.book({**items(event, 2), "checkout": {"provider": "sandbox"}})
    assert placed.status_code == 201, placed.text
    booking = placed.json()
    assert booking["status"] == "PENDING_PAYMENT"
    assert booking["total"] == {"currencyCode": "INR", "amountMinor": "300000"}

    page = customer.client.get(booking["payment"]["paymentUrl"])
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert "3,000.00" in page.text
    # The page has a policy of its own: the gateway's policy for JSON would block its script.
    assert "script-src 'sha256-" in page.headers["content-security-policy"]

    payment_id = booking["payment"]["paymentId"]
    paid = customer.post(f"/sandbox/pay/{payment_id}", {"outcome": "SUCCEEDED"})
    assert (paid.status_code, paid.json()["outcome"]) == (200, "SUCCEEDED")
    confirmed = customer.wait_for_status(booking["bookingId"], "CONFIRMED")
    assert confirmed["confirmTime"]
    assert [entry["status"] for entry in confirmed["timeline"]] == [
        "HELD",
        "PENDING_PAYMENT",
        "CONFIRMED",
    ]
    payment = customer.get(f"/api/v1/payments/{payment_id}").json()
    assert (payment["status"], payment["amount"]["amountMinor"]) == ("CAPTURED", "300000")

    event_path = f"/api/v1/events/{event['eventId']}"
    assert customer.get(event_path).json()["available"] == 8
    audit = admin.get(f"{event_path}/stock/audit").json()
    assert audit["differences"] == []
    assert [(pool["sold"], pool["held"]) for pool in audit["pools"]] == [(2, 0)]
    movements = admin.get(f"{event_path}/stock/movements").json()["movements"]
    assert [movement["kind"] for movement in movements] == ["COMMIT", "RESERVE", "DEFINE"]
    ledger = admin.get("/sandbox/ledger?page_size=1000").json()["entries"]
    assert [entry["kind"] for entry in ledger if entry["paymentId"] == payment_id] == ["CAPTURE"]


def test_a_repeated_key_places_one_booking(admin: Api, customer: Api) -> None:
    event = admin.create_event()
    first = customer.book(items(event), key="twice")
    second = customer.book(items(event), key="twice")
    assert (first.status_code, second.status_code) == (201, 201)
    assert first.json() == second.json()
    alias = customer.post("/api/v1/bookings", items(event), x_idempotency_key="twice")
    assert alias.json() == first.json()
    assert customer.get("/api/v1/bookings").json()["totalSize"] == 1


def test_cancelling_while_unpaid_frees_the_places(admin: Api, customer: Api) -> None:
    event = admin.create_event()
    held = customer.book(items(event, 10)).json()
    paying = customer.post(
        f"/api/v1/bookings/{held['bookingId']}/checkout", {"provider": "sandbox"}
    )
    assert paying.json()["status"] == "PENDING_PAYMENT"
    cancelled = customer.post(f"/api/v1/bookings/{held['bookingId']}/cancel", {"reason": "no time"})
    assert (cancelled.status_code, cancelled.json()["status"]) == (200, "CANCELLED")
    assert cancelled.json()["timeline"][-1]["reason"] == "no time"
    assert customer.delete(f"/api/v1/bookings/{held['bookingId']}").status_code == 409


def test_seats_are_chosen_from_the_map(admin: Api, customer: Api) -> None:
    venue = admin.post("/api/v1/venues", {"name": "Regal", "timeZone": "Asia/Kolkata"})
    assert venue.status_code == 201, venue.text
    seats = [
        {"number": str(n), "seatType": "REGULAR", "priceModifier": str(n * 1_000)} for n in (1, 2)
    ]
    # The same row in two sections.
    rows = [{"section": section, "label": "A", "seats": seats} for section in ("North", "South")]
    auditorium = admin.post(
        f"/api/v1/venues/{venue.json()['venueId']}/auditoriums", {"name": "Screen 1", "rows": rows}
    )
    assert auditorium.status_code == 201, auditorium.text
    event = admin.create_event(
        auditoriumId=auditorium.json()["auditoriumId"],
        endTime="2099-07-04T17:00:00Z",
        offers=[
            {
                "name": "Regular",
                "price": {"currencyCode": "INR", "amountMinor": "30000"},
                "seatType": "REGULAR",
            }
        ],
    )
    seat = auditorium.json()["rows"][0]["seats"][1]["seatId"]
    booking = customer.book({"eventId": event["eventId"], "items": [{"seatId": seat}]})
    assert booking.status_code == 201, booking.text
    assert booking.json()["items"][0]["seatId"] == seat
    assert booking.json()["items"][0]["unitPrice"]["amountMinor"] == "32000"
    shown = customer.get(f"/api/v1/auditoriums/{auditorium.json()['auditoriumId']}").json()["rows"]
    assert [(row["section"], row["label"]) for row in shown] == [("North", "A"), ("South", "A")]
    assert [entry["priceModifier"] for entry in shown[0]["seats"]] == ["1000", "2000"]
    availability = customer.get(f"/api/v1/events/{event['eventId']}/availability").json()
    states = {entry["seatId"]: entry["state"] for entry in availability["seats"]}
    assert states.pop(seat) == "HELD"
    assert set(states.values()) == {"AVAILABLE"}
