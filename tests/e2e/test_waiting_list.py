"""The waiting list of a sold-out event through the gateway, with its mail and webhooks."""

from typing import Any

from testing.running_mesh import Api, RunningMesh, items, reason, until, violated_fields
from tests.e2e.test_mails import wait_for_mail

PRICE = {"currencyCode": "INR", "amountMinor": "150000"}


def sold_out(admin: Api, customer: Api, **offer: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """An event with one place, and the booking that holds it."""
    event = admin.create_event(offers=[{"name": "Floor", "price": PRICE, "capacity": 1, **offer}])
    booked = customer.book(items(event))
    assert booked.status_code == 201, booked.text
    return event, booked.json()


def join(api: Api, event: dict[str, Any], quantity: int = 1) -> Any:
    return api.post(
        f"/api/v1/events/{event['eventId']}/waiting-list",
        {"items": items(event, quantity)["items"]},
    )


def test_a_place_that_comes_back_is_offered_and_claimed(
    mesh: RunningMesh, api: Api, admin: Api, customer: Api
) -> None:
    endpoint = admin.post(
        "/api/v1/webhook-endpoints",
        {"url": "https://example.com/hooks", "eventTypes": ["waiting_list.offered"]},
    ).json()
    deliveries = f"/api/v1/webhook-endpoints/{endpoint['webhookEndpointId']}/deliveries"
    event, held = sold_out(admin, customer)
    first, second, bot = api.sign_up(), api.sign_up(), api.sign_up()
    joined = join(first, event)
    assert (joined.status_code, joined.json()["state"]) == (201, "WAITING"), joined.text
    entry = joined.json()
    assert join(first, event).json()["entryId"] == entry["entryId"]
    behind = join(second, event).json()
    assert (entry["position"], behind["position"]) == (1, 2)
    path = f"/api/v1/waiting-list/{entry['entryId']}"
    assert reason(second.get(path)) == "WAITING_LIST_ENTRY_NOT_FOUND"
    early = first.post(f"{path}/claim", {})
    assert (early.status_code, reason(early)) == (409, "WAITING_LIST_STATE_INVALID")

    assert customer.post(f"/api/v1/bookings/{held['bookingId']}/cancel", {}).status_code == 200

    def offered() -> Any:
        snatched = bot.book(items(event))
        assert (snatched.status_code, reason(snatched)) == (409, "SOLD_OUT")
        current = first.get(path).json()
        return current if current["state"] == "OFFERED" else None

    offer = until(offered, "the place is not offered")
    assert offer["offerExpireTime"]
    foreign = second.post(f"{path}/claim", {})
    assert (foreign.status_code, reason(foreign)) == (404, "WAITING_LIST_ENTRY_NOT_FOUND")
    listed = admin.get(f"/api/v1/events/{event['eventId']}/waiting-list?pageSize=1").json()
    assert (listed["totalSize"], listed["entries"][0]["entryId"]) == (2, entry["entryId"])
    following = admin.get(
        f"/api/v1/events/{event['eventId']}/waiting-list?pageSize=1&pageToken={listed['nextPageToken']}"
    ).json()
    assert [listed_entry["position"] for listed_entry in following["entries"]] == [1]
    assert following["nextPageToken"] == ""
    assert reason(first.get(f"/api/v1/events/{event['eventId']}/waiting-list")) == "STAFF_REQUIRED"

    mail = wait_for_mail(
        mesh.home / "mails", to=first.session["user"]["email"], subject="Places for you until"
    )
    text = mail.get_body(("plain",))
    assert text is not None
    assert f"#entry={entry['entryId']}" in text.get_content()
    claimed = first.post(f"{path}/claim", {})
    assert claimed.status_code == 200, claimed.text
    booking = claimed.json()
    assert booking["status"] == "HELD"
    assert first.post(f"{path}/claim", {}).json()["bookingId"] == booking["bookingId"]
    assert first.get(path).json()["bookingId"] == booking["bookingId"]
    paid = first.post(f"/api/v1/bookings/{booking['bookingId']}/checkout", {"provider": "sandbox"})
    assert paid.json()["status"] == "PENDING_PAYMENT", paid.text
    assert second.delete(f"/api/v1/waiting-list/{behind['entryId']}").status_code == 204

    sent = until(lambda: admin.get(deliveries).json()["deliveries"], "no webhook is queued")
    assert sent[0]["eventType"] == "waiting_list.offered"
    admin.delete(f"/api/v1/webhook-endpoints/{endpoint['webhookEndpointId']}")


def test_refusals(api: Api, admin: Api, customer: Api) -> None:
    available = join(customer, admin.create_event())
    assert (available.status_code, reason(available)) == (409, "PLACES_AVAILABLE")
    event, _ = sold_out(admin, customer, maxPerBooking=2)
    other = api.sign_up()
    beyond = join(other, event, 3)
    assert (beyond.status_code, violated_fields(beyond)) == (400, {"items[0].quantity"})
    assert join(other, event).status_code == 201
    again = join(other, event, 2)
    assert (again.status_code, reason(again)) == (409, "ALREADY_WAITING")
    path = f"/api/v1/events/{event['eventId']}/status"
    assert admin.send("PUT", path, {"status": "CANCELLED"}).status_code == 200
    ended = join(api.sign_up(), event)
    assert (ended.status_code, reason(ended)) == (409, "SALE_NOT_ACTIVE")
