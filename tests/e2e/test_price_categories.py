"""Several prices for the same seats, through the gateway: adults and children."""

import json
from pathlib import Path
from typing import Any

import pytest

from mesh.ids import new_id
from testing.running_mesh import (
    PASSWORD,
    Api,
    RunningMesh,
    reason,
    until,
    violated_fields,
)
from tests.e2e.test_catalogue import a_hall, a_row
from tools.catalogue.__main__ import main as catalogue

ADULT, CHILD = "100000", "40000"


def prices(**minor: str) -> list[dict[str, Any]]:
    """Offers of the regular seats, by name."""
    return [
        {
            "name": name,
            "price": {"currencyCode": "INR", "amountMinor": amount},
            "seatType": "REGULAR",
        }
        for name, amount in minor.items()
    ]


def a_show(admin: Api, **changes: Any) -> tuple[dict[str, Any], list[str]]:
    """An event of three regular seats for adults and children, and its seats."""
    _, screen = a_hall(admin, a_row("A", "1", "2", "3"))
    event = admin.create_event(
        auditoriumId=screen.rpartition("/")[2],
        endTime="2099-07-04T17:00:00Z",
        offers=prices(Adult=ADULT, Child=CHILD),
        **changes,
    )
    return event, [seat["seatId"] for seat in admin.get(screen).json()["rows"][0]["seats"]]


def at(event: dict[str, Any], name: str, seat_id: str) -> dict[str, str]:
    (offer,) = [offer for offer in event["offers"] if offer["name"] == name]
    return {"offerId": offer["offerId"], "seatId": seat_id}


def order(event: dict[str, Any], *items: dict[str, Any]) -> dict[str, Any]:
    return {"eventId": event["eventId"], "items": list(items)}


def total(booking: dict[str, Any]) -> str:
    amount: str = booking["total"]["amountMinor"]
    return amount


def pay(api: Api, payment: dict[str, Any]) -> None:
    answer = api.post(f"/sandbox/pay/{payment['paymentId']}", {"outcome": "SUCCEEDED"})
    assert answer.status_code == 200, answer.text


def test_the_offer_of_each_seat_is_chosen_when_booking(api: Api, admin: Api, customer: Api) -> None:
    event, seats = a_show(admin)
    path = f"/api/v1/events/{event['eventId']}"
    assert len({offer["poolId"] for offer in event["offers"]}) == 1
    assert (event["totalCapacity"], [offer["available"] for offer in event["offers"]]) == (
        3,
        [3, 3],
    )
    nothing_named = customer.book(order(event, {"seatId": seats[0]}))
    assert (nothing_named.status_code, violated_fields(nothing_named)) == (
        400,
        {"items[0].offerId"},
    )
    assert "'Adult', 'Child'" in nothing_named.text
    with_quantity = customer.book(order(event, {**at(event, "Adult", seats[0]), "quantity": 1}))
    assert with_quantity.status_code == 400
    without_seat = {"offerId": event["offers"][0]["offerId"], "quantity": 1}
    assert violated_fields(customer.book(order(event, without_seat))) == {"items[0].offerId"}

    family = [at(event, "Adult", seats[0]), at(event, "Child", seats[1])]
    placed = customer.book(order(event, *family))
    assert placed.status_code == 201, placed.text
    booking = placed.json()
    assert [
        (item["offerId"], item["seatId"], item["unitPrice"]["amountMinor"])
        for item in booking["items"]
    ] == [
        (family[0]["offerId"], seats[0], ADULT),
        (family[1]["offerId"], seats[1], CHILD),
    ]
    assert total(booking) == "140000"
    taken = customer.book(order(event, at(event, "Child", seats[0])))
    assert (taken.status_code, reason(taken)) == (409, "SEAT_UNAVAILABLE")

    def available() -> bool:
        states = api.get(f"{path}/availability").json()
        return {offer["available"] for offer in states["offers"]} == {1} and [
            seat["state"] for seat in states["seats"]
        ].count("HELD") == 2

    until(available, "the seats are held at both offers")


def test_a_seat_changes_its_offer(api: Api, admin: Api, customer: Api) -> None:
    event, seats = a_show(admin)
    other = api.sign_up()
    booking = customer.book(order(event, at(event, "Adult", seats[0]))).json()
    path = f"/api/v1/bookings/{booking['bookingId']}"
    cheaper = customer.send("PATCH", path, {"items": [at(event, "Child", seats[0])]})
    assert (cheaper.status_code, total(cheaper.json())) == (200, CHILD)
    wrong = customer.send(
        "PATCH",
        path,
        {
            "items": [at(event, "Adult", seats[0])],
            "expectedTotal": {"currencyCode": "INR", "amountMinor": CHILD},
        },
    )
    assert (wrong.status_code, reason(wrong)) == (409, "PRICE_CHANGED")
    paying = customer.post(f"{path}/checkout", {"provider": "sandbox"}).json()
    assert total(paying) == CHILD
    pay(api, paying["payment"])
    customer.wait_for_status(booking["bookingId"], "CONFIRMED")
    # Paid first, and the seat stays the customer's.
    waiting = customer.send(
        "PATCH",
        path,
        {"items": [at(event, "Adult", seats[0])], "checkout": {"provider": "sandbox"}},
    )
    assert waiting.status_code == 200, waiting.text
    assert (total(waiting.json()), waiting.json()["change"]["difference"]["amountMinor"]) == (
        CHILD,
        "60000",
    )
    for name in ("Adult", "Child"):
        taken = other.book(order(event, at(event, name, seats[0])))
        assert reason(taken) == "SEAT_UNAVAILABLE"
    pay(api, waiting.json()["change"]["payment"])

    def changed() -> dict[str, Any] | None:
        read: dict[str, Any] = customer.get(path).json()
        return read if total(read) == ADULT else None

    confirmed = until(changed, "the seat has the other offer")
    assert confirmed["status"] == "CONFIRMED"
    assert "change" not in confirmed
    # By the policy 97 % of the difference.
    lower = customer.send("PATCH", path, {"items": [at(event, "Child", seats[0])]})
    assert lower.status_code == 200, lower.text
    assert (total(lower.json()), lower.json()["refund"]["amount"]["amountMinor"]) == (
        CHILD,
        "58200",
    )
    audit = admin.get(f"/api/v1/events/{event['eventId']}/stock/audit").json()
    assert audit["differences"] == []


def test_limits_and_offers_that_are_added(admin: Api, customer: Api) -> None:
    event, seats = a_show(admin, perCustomerLimit=2)
    path = f"/api/v1/events/{event['eventId']}"
    student = {**prices(Student="60000")[0], "perCustomerLimit": 1}
    changed = admin.send("PATCH", path, {"offers": [student]}).json()
    assert (changed["totalCapacity"], len({o["poolId"] for o in changed["offers"]})) == (3, 1)
    elsewhere = {**prices(Senior="60000")[0], "poolId": "elsewhere"}
    refused = admin.send("PATCH", path, {"offers": [elsewhere]})
    assert (refused.status_code, violated_fields(refused)) == (400, {"offers[0].poolId"})
    assert customer.book(order(changed, at(changed, "Student", seats[0]))).status_code == 201
    second = customer.book(order(changed, at(changed, "Student", seats[1])))
    assert reason(second) == "PURCHASE_LIMIT_EXCEEDED"
    assert customer.book(order(changed, at(changed, "Child", seats[1]))).status_code == 201
    third = customer.book(order(changed, at(changed, "Adult", seats[2])))
    assert reason(third) == "PURCHASE_LIMIT_EXCEEDED"


def test_prices_are_exported_and_imported(
    mesh: RunningMesh,
    api: Api,
    admin: Api,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = f"Opera {new_id()}"
    event, _ = a_show(admin, name=name)
    monkeypatch.setenv("BOXOFFICE_STAFF_PASSWORD", PASSWORD)
    common = ["--url", mesh.url, "--email", admin.session["user"]["email"]]
    exported = tmp_path / "exported.jsonl"
    assert catalogue(["export", str(exported), *common]) == 0
    lines = [json.loads(line) for line in exported.read_text().splitlines()]
    shows = [line for line in lines if line.get("event", {}).get("name") == name]
    (hall,) = [
        line
        for line in lines
        if line.get("auditorium", {}).get("auditoriumId") == event["auditoriumId"]
    ]
    (venue,) = [line for line in lines if line.get("venue", {}).get("venueId") == event["venueId"]]
    file = tmp_path / "copy.jsonl"
    file.write_text("".join(json.dumps(line) + "\n" for line in (venue, hall, *shows)))
    assert catalogue(["import", str(file), *common]) == 0
    events = api.get(f"/api/v1/events?query={name.rpartition(' ')[2]}").json()["events"]
    (copy,) = [listed for listed in events if listed["eventId"] != event["eventId"]]
    assert [(offer["name"], offer["price"], offer["seatType"]) for offer in copy["offers"]] == [
        (offer["name"], offer["price"], offer["seatType"]) for offer in event["offers"]
    ]
    assert len({offer["poolId"] for offer in copy["offers"]}) == 1
    assert copy["totalCapacity"] == 3
