"""The ledger through the gateway: restocking, blocked seats, movements, audits, limits."""

import json
from typing import Any

import httpx
import pytest

from mesh.ids import new_id
from testing.running_mesh import Api, items, reason, violated_fields


@pytest.fixture
def seated(admin: Api) -> dict[str, Any]:
    """An event with two seats, with their ids in `seatIds`."""
    venue = admin.post("/api/v1/venues", {"name": "Rang Mandir", "timeZone": "Asia/Kolkata"})
    assert venue.status_code == 201, venue.text
    hall = admin.post(
        f"/api/v1/venues/{venue.json()['venueId']}/auditoriums",
        {
            "name": "Hall",
            "rows": [{"label": "A", "seats": [{"number": n, "seatType": "REGULAR"} for n in "12"]}],
        },
    )
    assert hall.status_code == 201, hall.text
    price = {"currencyCode": "INR", "amountMinor": "30000"}
    event = admin.create_event(
        auditoriumId=hall.json()["auditoriumId"],
        endTime="2099-07-04T17:00:00Z",
        offers=[{"name": "Stalls", "price": price, "seatType": "REGULAR"}],
    )
    return {**event, "seatIds": [seat["seatId"] for seat in hall.json()["rows"][0]["seats"]]}


def stock_path(event: dict[str, Any], name: str) -> str:
    return f"/api/v1/events/{event['eventId']}/stock/{name}"


def failed_items(answer: httpx.Response) -> list[tuple[object, ...]]:
    failures = json.loads(answer.json()["details"][0]["metadata"]["failures"])
    names = ("item", "reason", "state", "heldByYou")
    return [tuple(entry.get(name) for name in names) for entry in failures]


def test_places_are_added_once_per_key(admin: Api) -> None:
    event = admin.create_event()
    pool_id = event["offers"][0]["poolId"]
    body, key = {"poolId": pool_id, "quantity": 5}, str(new_id())
    for _ in range(2):
        added = admin.post(stock_path(event, "restock"), body, idempotency_key=key)
        assert added.status_code == 200, added.text
        assert [(p["capacity"], p["available"]) for p in added.json()["pools"]] == [(15, 15)]
    other = admin.post(stock_path(event, "restock"), {**body, "quantity": 6}, idempotency_key=key)
    assert reason(other) == "IDEMPOTENCY_KEY_REUSED"
    movements = admin.get(stock_path(event, "movements")).json()
    kinds = [(entry["kind"], entry["capacityDelta"]) for entry in movements["movements"]]
    assert kinds == [("RESTOCK", 5), ("DEFINE", 10)]
    assert movements["totalSize"] == 2
    audit = admin.get(stock_path(event, "audit")).json()
    assert (audit["differences"], audit["pools"][0]["capacity"]) == ([], 15)


def test_a_blocked_seat_cannot_be_booked_until_unblocked(
    admin: Api, customer: Api, seated: dict[str, Any]
) -> None:
    first, second = seated["seatIds"]
    order = {
        "eventId": seated["eventId"],
        "items": [{"seatId": first}],
    }
    for _ in range(2):
        blocked = admin.post(stock_path(seated, "block"), {"seatIds": [first]})
        assert blocked.status_code == 200, blocked.text
        assert blocked.json()["seats"] == [{"seatId": first, "state": "BLOCKED"}]
        assert blocked.json()["pools"][0]["available"] == 1
    assert failed_items(customer.book(order)) == [(0, "SEAT_UNAVAILABLE", "BLOCKED", None)]
    for _ in range(2):
        unblocked = admin.post(stock_path(seated, "unblock"), {"seatIds": [first, second]})
        assert unblocked.status_code == 200, unblocked.text
        assert {seat["state"] for seat in unblocked.json()["seats"]} == {"AVAILABLE"}
    assert customer.book(order).status_code == 201
    for client, is_own in ((customer, True), (admin, None)):
        refused = client.book({**order, "items": [{"seatId": second}, {"seatId": first}]})
        assert refused.status_code == 409
        assert failed_items(refused) == [(1, "SEAT_UNAVAILABLE", "HELD", is_own)]
    taken = admin.post(stock_path(seated, "block"), {"seatIds": [first, second]})
    assert reason(taken) == "SEAT_UNAVAILABLE"
    movements = admin.get(stock_path(seated, "movements")).json()["movements"]
    kinds = [movement["kind"] for movement in movements]
    assert kinds == ["RESERVE", "UNBLOCK", "BLOCK", "DEFINE"]
    assert admin.get(stock_path(seated, "audit")).json()["differences"] == []


def test_customers_and_anonymous_callers_are_refused(
    api: Api, customer: Api, admin: Api, seated: dict[str, Any]
) -> None:
    event = admin.create_event()
    places = {"poolId": event["offers"][0]["poolId"], "quantity": 1}
    seats = {"seatIds": seated["seatIds"]}
    writes = [
        (stock_path(event, "restock"), places),
        (stock_path(seated, "block"), seats),
        (stock_path(seated, "unblock"), seats),
    ]
    for client, status in ((customer, 403), (api, 401)):
        answers = [client.post(path, body) for path, body in writes]
        answers += [client.get(stock_path(event, name)) for name in ("movements", "audit")]
        assert [answer.status_code for answer in answers] == [status] * 5
    for unchanged in (event, seated):
        assert admin.get(stock_path(unchanged, "movements")).json()["totalSize"] == 1


def test_invalid_input_names_its_fields(admin: Api, seated: dict[str, Any]) -> None:
    event = admin.create_event()
    pool_id, unknown_id = event["offers"][0]["poolId"], str(new_id())
    restock = stock_path(event, "restock")
    for quantity in (0, -1, 1_000_001):
        answer = admin.post(restock, {"poolId": pool_id, "quantity": quantity})
        assert (answer.status_code, violated_fields(answer)) == (400, {"quantity"})
    answer = admin.post(restock, {"poolId": "floor", "quantity": 1})
    assert (answer.status_code, violated_fields(answer)) == (400, {"poolId"})
    assert reason(admin.post(restock, {"poolId": unknown_id, "quantity": 1})) == "POOL_NOT_FOUND"
    seated_pool = {"poolId": seated["offers"][0]["poolId"], "quantity": 1}
    answer = admin.post(stock_path(seated, "restock"), seated_pool)
    assert (answer.status_code, violated_fields(answer)) == (400, {"poolId"})
    first = seated["seatIds"][0]
    for name in ("block", "unblock"):
        path = stock_path(seated, name)
        for seat_ids in ([], [first, first], ["A1"]):
            answer = admin.post(path, {"seatIds": seat_ids})
            assert answer.status_code == 400
            assert {field.partition("[")[0] for field in violated_fields(answer)} == {"seatIds"}
        # All or none: the known seat does not change.
        assert reason(admin.post(path, {"seatIds": [first, unknown_id]})) == "SEAT_NOT_FOUND"
        unknown_event = f"/api/v1/events/{unknown_id}/stock/{name}"
        assert reason(admin.post(unknown_event, {"seatIds": [first]})) == "EVENT_NOT_FOUND"
    for name in ("movements", "audit"):
        assert reason(admin.get(f"/api/v1/events/{unknown_id}/stock/{name}")) == "EVENT_NOT_FOUND"
    answer = admin.get(stock_path(event, "movements") + "?pageToken=nonsense")
    assert (answer.status_code, violated_fields(answer)) == (400, {"pageToken"})
    assert admin.get(stock_path(seated, "movements")).json()["totalSize"] == 1


def test_the_purchase_limit_of_an_event_can_be_raised(admin: Api, customer: Api) -> None:
    event = admin.create_event(perCustomerLimit=3)
    assert event["perCustomerLimit"] == 3
    assert customer.book(items(event, 2)).status_code == 201
    refused = customer.book(items(event, 2))
    assert (refused.status_code, reason(refused)) == (409, "PURCHASE_LIMIT_EXCEEDED")
    path = f"/api/v1/events/{event['eventId']}"
    raised = admin.send("PATCH", path, {"perCustomerLimit": 4})
    assert (raised.status_code, raised.json()["perCustomerLimit"]) == (200, 4), raised.text
    assert customer.book(items(event, 2)).status_code == 201
    answer = admin.send("PATCH", path, {"perCustomerLimit": -1})
    assert answer.status_code == 400
