"""The catalogue through the gateway: lists, changes of events, WatchAvailability, import, export."""

import json
import queue
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import httpx
import pytest

from mesh.ids import new_id
from testing.running_mesh import (
    PASSWORD,
    Api,
    RunningMesh,
    an_event,
    event_stream,
    items,
    reason,
    violated_fields,
)
from tools.catalogue.__main__ import main as catalogue


def watched(
    mesh: RunningMesh, event_id: str, query: str = ""
) -> AbstractContextManager["queue.Queue[Any]"]:
    """The updates of an event's availability."""
    return event_stream(mesh, f"/api/v1/events/{event_id}/availability/watch{query}")


def listed(api: Api, **query: Any) -> list[dict[str, Any]]:
    """The events of all pages of a list, three per page."""
    collected: list[dict[str, Any]] = []
    token = ""
    while True:
        answer = api.client.get(
            "/api/v1/events",
            params={**query, "pageSize": 3, "pageToken": token},
            headers={"authorization": f"Bearer {api.token}"} if api.token else {},
        )
        assert answer.status_code == 200, answer.text
        page = answer.json()
        collected += page["events"]
        token = page["nextPageToken"]
        if not token:
            assert page["totalSize"] == len(collected)
            return collected


def test_events_are_listed_in_pages_filtered_and_searched(api: Api, admin: Api) -> None:
    production = admin.create_production()
    names = [f"Zarzuela {n}" for n in range(7)]
    for n, name in enumerate(names):
        admin.create_event(
            name=name, productionId=production, startTime=f"2099-07-0{n + 1}T14:00:00Z"
        )
    assert [event["name"] for event in listed(api, productionId=production)] == names
    assert [event["name"] for event in listed(api, production_id=production)] == names
    dated = listed(
        api,
        productionId=production,
        startsAfter="2099-07-03T14:00:00Z",
        startsBefore="2099-07-05T14:00:00Z",
    )
    assert [event["name"] for event in dated] == names[2:4]
    matches = listed(api, query="zarzeula", productionId=production, status="ON_SALE")
    assert [event["available"] for event in matches] == [10] * 7
    assert listed(api, productionId=production, status="CANCELLED") == []


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ({"pageSize": 101}, "pageSize"),
        ({"pageSize": -1}, "pageSize"),
        ({"pageToken": "forged"}, "pageToken"),
        ({"productionId": "x"}, "productionId"),
        ({"query": "x" * 201}, "query"),
    ],
)
def test_a_list_names_the_invalid_field(api: Api, query: dict[str, Any], field: str) -> None:
    answer = api.client.get("/api/v1/events", params=query)
    assert answer.status_code == 400
    assert violated_fields(answer) == {field}


def test_venues_are_listed(api: Api, admin: Api) -> None:
    created = admin.post("/api/v1/venues", {"name": " first", "timeZone": "Asia/Kolkata"}).json()
    first = api.get("/api/v1/venues?pageSize=1").json()
    assert first["venues"] == [created]
    assert first["totalSize"] >= 1


def test_an_event_is_paused_resumed_and_cancelled(api: Api, admin: Api, customer: Api) -> None:
    event = admin.create_event()
    path = f"/api/v1/events/{event['eventId']}"

    def set_status(status: str) -> httpx.Response:
        return admin.send("PUT", f"{path}/status", {"status": status})

    # From here on booking_svc has the event in memory.
    assert customer.book(items(event)).status_code == 201
    paused = set_status("PAUSED").json()
    assert paused["status"] == "PAUSED"
    assert paused["etag"] != event["etag"]
    refused = customer.book(items(event))
    assert (refused.status_code, reason(refused)) == (409, "SALE_NOT_ACTIVE")
    assert set_status("ON_SALE").json()["status"] == "ON_SALE"
    assert customer.book(items(event)).status_code == 201
    illegal = set_status("UPCOMING")
    assert (illegal.status_code, reason(illegal)) == (409, "EVENT_STATE_INVALID")
    [info] = [detail for detail in illegal.json()["details"] if "reason" in detail]
    assert info["metadata"] == {"status": "ON_SALE", "allowed": "CANCELLED,PAUSED"}
    assert set_status("CANCELLED").json()["status"] == "CANCELLED"
    assert api.get(path).json()["status"] == "CANCELLED"
    assert customer.send("PUT", f"{path}/status", {"status": "ON_SALE"}).status_code == 403


def test_a_booking_has_the_price_of_its_moment(admin: Api, customer: Api) -> None:
    event = admin.create_event()
    offer = event["offers"][0]

    def total() -> str:
        return str(customer.book(items(event)).json()["total"]["amountMinor"])

    assert total() == offer["price"]["amountMinor"] == "150000"
    price = {"currencyCode": "INR", "amountMinor": "175000"}
    change = {"offers": [{"offerId": offer["offerId"], "price": price}]}
    changed = admin.send("PATCH", f"/api/v1/events/{event['eventId']}", change)
    assert changed.status_code == 200, changed.text
    assert total() == "175000"


def test_a_sold_event_can_change_unless_the_etag_is_stale(admin: Api, customer: Api) -> None:
    event = admin.create_event()
    path = f"/api/v1/events/{event['eventId']}"
    assert customer.book(items(event, 4)).status_code == 201
    offer = event["offers"][0]

    def patch(body: Any, **headers: str) -> httpx.Response:
        answer = admin.client.patch(
            path, json=body, headers={"authorization": f"Bearer {admin.token}", **headers}
        )
        assert isinstance(answer, httpx.Response)
        return answer

    more = patch({"offers": [{"offerId": offer["offerId"], "capacity": 12}]})
    assert more.status_code == 200, more.text
    assert (more.json()["totalCapacity"], more.json()["available"]) == (12, 8)
    fewer = patch({"offers": [{"offerId": offer["offerId"], "capacity": 3}]})
    assert (fewer.status_code, violated_fields(fewer)) == (400, {"offers[0].capacity"})
    stale = patch({"name": "Stale"}, **{"if-match": f'"{event["etag"]}"'})
    assert (stale.status_code, reason(stale)) == (409, "EVENT_CHANGED")
    current = more.json()["etag"]
    assert patch({"name": "New"}, **{"if-match": f'"{current}"'}).json()["name"] == "New"
    whole = admin.get(path).json()
    # An event that was read can be sent back with changes.
    back = admin.send("PUT", path, {**whole, "description": "As read, but for this"})
    assert back.status_code == 200, back.text
    changing = ("description", "etag", "updateTime")
    unchanged = {name: value for name, value in whole.items() if name not in changing}
    assert {name: back.json()[name] for name in unchanged} == unchanged
    other = admin.send("PUT", path, {**back.json(), "eventId": str(new_id()), "status": "DRAFT"})
    assert (other.status_code, violated_fields(other)) == (400, {"eventId", "status"})
    whole = back.json()
    assert violated_fields(admin.send("PUT", path, {"status": "PAUSED"})) == {"status"}
    offers = [{"offerId": offer["offerId"], "name": offer["name"], "price": offer["price"]}]
    changes = {"name": whole["name"], "etag": whole["etag"], "offers": offers}
    put = admin.send("PUT", path, {**changes, "description": "All of it"})
    assert put.status_code == 200, put.text
    assert put.json()["description"] == "All of it"
    assert put.json()["offers"] == whole["offers"]
    assert customer.send("PATCH", path, {"name": "x"}).status_code == 403


def test_only_an_event_without_bookings_can_be_deleted(admin: Api, customer: Api) -> None:
    event = admin.create_event()
    path = f"/api/v1/events/{event['eventId']}"
    assert customer.delete(path).status_code == 403
    deleted = admin.delete(path)
    assert (deleted.status_code, deleted.content) == (204, b"")
    assert reason(admin.get(path)) == "EVENT_NOT_FOUND"
    booked = admin.create_event()
    customer.book(items(booked))
    refused = admin.delete(f"/api/v1/events/{booked['eventId']}")
    assert (refused.status_code, reason(refused)) == (409, "EVENT_STATE_INVALID")


def test_a_cancelled_event_cancels_its_bookings(admin: Api, customer: Api) -> None:
    event = admin.create_event()
    bookings = [customer.book(items(event)).json()["bookingId"] for _ in range(3)]
    path = f"/api/v1/events/{event['eventId']}"
    assert reason(admin.get(f"{path}/cancellation")) == "EVENT_STATE_INVALID"
    body = {"status": "CANCELLED", "reason": "Monsoon"}
    assert admin.send("PUT", f"{path}/status", body).status_code == 200
    for booking in bookings:
        customer.wait_for_status(booking, "CANCELLED")
    progress = admin.get(f"{path}/cancellation").json()
    assert progress["reason"] == "Monsoon"
    assert (progress["bookingsFound"], progress["bookingsLeft"]) == (3, 0)
    # Deleted, it is kept for its bookings only.
    assert admin.delete(path).status_code == 204
    assert admin.get(path).json()["deleteTime"]
    assert customer.get(f"/api/v1/bookings/{bookings[0]}").status_code == 200
    cancelled = admin.get("/api/v1/events?status=CANCELLED&pageSize=100").json()["events"]
    assert event["eventId"] not in {entry["eventId"] for entry in cancelled}
    assert reason(admin.send("PATCH", path, {"name": "x"})) == "EVENT_NOT_FOUND"
    assert customer.get(f"{path}/cancellation").status_code == 403


def test_a_draft_can_be_booked_after_publication(admin: Api, customer: Api) -> None:
    draft = admin.create_event(status="DRAFT")
    assert draft["status"] == "DRAFT"
    assert reason(customer.book(items(draft))) == "EVENT_NOT_FOUND"
    path = f"/api/v1/events/{draft['eventId']}/status"
    assert admin.send("PUT", path, {"status": "UPCOMING"}).json()["status"] == "ON_SALE"
    assert customer.book(items(draft)).status_code == 201


def test_creating_an_event_with_a_key_is_idempotent(admin: Api) -> None:
    key = str(new_id())
    first = admin.post("/api/v1/events", an_event(), idempotency_key=key)
    repeated = admin.post("/api/v1/events", an_event(), idempotency_key=key)
    assert (repeated.status_code, repeated.json()) == (201, first.json())
    other = admin.post("/api/v1/events", an_event(name="Other"), idempotency_key=key)
    assert reason(other) == "IDEMPOTENCY_KEY_REUSED"


def test_an_event_is_watched_while_it_sells(mesh: RunningMesh, admin: Api, customer: Api) -> None:
    event = admin.create_event()
    event_id, offer_id = event["eventId"], event["offers"][0]["offerId"]
    with watched(mesh, event_id) as updates:
        first = updates.get(timeout=60)
        assert first["kind"] == "SNAPSHOT"
        assert first["offers"] == [{"offerId": offer_id, "available": 10}]
        assert customer.book(items(event, 4)).status_code == 201
        change = updates.get(timeout=60)
        assert (change["kind"], change["offers"]) == (
            "CHANGE",
            [{"offerId": offer_id, "available": 6}],
        )
    with watched(mesh, event_id, f"?afterVersion={change['version']}") as updates:
        assert updates.get(timeout=60)["kind"] in ("HEARTBEAT", "SNAPSHOT")
        assert customer.book(items(event, 6)).status_code == 201
        assert updates.get(timeout=60)["offers"] == [{"offerId": offer_id, "available": 0}]
    availability = customer.get(f"/api/v1/events/{event_id}/availability").json()
    assert availability["offers"] == [{"offerId": offer_id, "available": 0}]
    assert customer.get(f"/api/v1/events/{event_id}").json()["status"] == "SOLD_OUT"


def test_an_unknown_event_cannot_be_watched(api: Api) -> None:
    answer = api.get(f"/api/v1/events/{new_id()}/availability/watch")
    assert (answer.status_code, reason(answer)) == (404, "EVENT_NOT_FOUND")


PRODUCTION = {
    "title": "Monsoon Nights",
    "description": "A concert in the rain.",
    "durationMinutes": 142,
    "posterUrl": "https://cdn.example/monsoon.jpg",
    "ageRating": "UA 13+",
    "language": "hi",
    "tags": ["music", "open air"],
}


def productions(api: Api) -> list[dict[str, Any]]:
    """The productions of all pages of the list."""
    return all_pages(api, "/api/v1/productions", "productions")


def all_pages(api: Api, path: str, field: str) -> list[dict[str, Any]]:
    collected: list[dict[str, Any]] = []
    token = ""
    while True:
        page = api.get(f"{path}?pageSize=2&pageToken={token}").json()
        collected += page[field]
        token = page["nextPageToken"]
        if not token:
            assert page["totalSize"] == len(collected)
            return collected


def test_a_production_is_created_listed_and_changed(api: Api, admin: Api, customer: Api) -> None:
    assert customer.post("/api/v1/productions", PRODUCTION).status_code == 403
    key = str(new_id())
    created = admin.post("/api/v1/productions", PRODUCTION, idempotency_key=key)
    assert created.status_code == 201
    production = created.json()
    assert production.items() >= {**PRODUCTION, "upcomingEvents": []}.items()
    assert admin.post("/api/v1/productions", PRODUCTION, idempotency_key=key).json() == production
    path = f"/api/v1/productions/{production['productionId']}"
    assert api.get(path).json() == production
    assert productions(api).count(production) == 1
    changed = admin.send("PATCH", path, {"title": "Winter Nights", "tags": ["music"]}).json()
    kept = ("description", "durationMinutes", "posterUrl", "ageRating", "language", "createTime")
    assert {name: changed[name] for name in kept} == {name: production[name] for name in kept}
    assert (changed["title"], changed["tags"]) == ("Winter Nights", ["music"])
    clear = ["poster_url", "language", "duration_minutes", "tags"]
    emptied = admin.send("PATCH", path, {"clear": clear}).json()
    assert (emptied["posterUrl"], emptied["language"], emptied["tags"]) == ("", "", [])
    assert "durationMinutes" not in emptied
    assert api.get(path).json() == emptied
    assert customer.send("PATCH", path, {"title": "Mine"}).status_code == 403
    assert customer.delete(path).status_code == 403


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"title": ""}, "title"),
        ({"durationMinutes": 0}, "durationMinutes"),
        ({"posterUrl": "http://cdn.example/a.jpg"}, "posterUrl"),
        ({"posterUrl": "a picture"}, "posterUrl"),
        ({"language": "Hindi!"}, "language"),
        ({"tags": ["a", "a"]}, "tags"),
        ({"tags": [""]}, "tags[0]"),
    ],
)
def test_a_production_names_the_invalid_field(
    admin: Api, changes: dict[str, Any], field: str
) -> None:
    path = f"/api/v1/productions/{admin.create_production()}"
    for answer in (
        admin.post("/api/v1/productions", {**PRODUCTION, **changes}),
        admin.send("PATCH", path, changes),
    ):
        assert (answer.status_code, violated_fields(answer)) == (400, {field})


def test_a_production_shows_its_next_events_and_outlives_them(api: Api, admin: Api) -> None:
    production = admin.create_production()
    path = f"/api/v1/productions/{production}"
    late, early = (
        admin.create_event(productionId=production, startTime=f"2099-0{month}-04T14:00:00Z")
        for month in (8, 7)
    )
    admin.create_event(productionId=production, status="DRAFT")
    assert api.get(path).json()["upcomingEvents"] == [early, late]
    refused = admin.delete(path)
    assert (refused.status_code, reason(refused)) == (409, "EVENT_STATE_INVALID")
    other = admin.create_production()
    for event in listed(admin, productionId=production):
        # An event may move to another production.
        event_path = f"/api/v1/events/{event['eventId']}"
        assert admin.send("PATCH", event_path, {"productionId": other}).status_code == 200
    [draft] = listed(admin, productionId=production, status="DRAFT")
    assert admin.delete(f"/api/v1/events/{draft['eventId']}").status_code == 204
    assert admin.delete(path).status_code == 204
    assert production not in [listed["productionId"] for listed in productions(api)]
    assert api.get(path).json()["deleteTime"]
    for answer in (
        admin.send("PATCH", path, {"title": "Again"}),
        admin.delete(path),
        admin.post("/api/v1/events", an_event(productionId=production)),
        admin.send("PATCH", f"/api/v1/events/{early['eventId']}", {"productionId": production}),
    ):
        assert (answer.status_code, reason(answer)) == (404, "PRODUCTION_NOT_FOUND")
    assert [event["eventId"] for event in listed(api, productionId=other)] == [
        early["eventId"],
        late["eventId"],
    ]


def a_row(label: str, *numbers: str) -> dict[str, Any]:
    seats = [{"number": number, "seatType": "REGULAR"} for number in numbers]
    return {"label": label, "seats": seats}


def a_hall(admin: Api, *rows: dict[str, Any]) -> tuple[str, str]:
    """The paths of a venue and of its auditorium."""
    venue = {"name": f"Regal {new_id()}", "timeZone": "Asia/Kolkata"}
    path = f"/api/v1/venues/{admin.post('/api/v1/venues', venue).json()['venueId']}"
    auditorium = admin.post(f"{path}/auditoriums", {"name": "Screen 1", "rows": list(rows)})
    assert auditorium.status_code == 201, auditorium.text
    return path, f"/api/v1/auditoriums/{auditorium.json()['auditoriumId']}"


def a_seated_event(auditorium: str, **changes: Any) -> dict[str, Any]:
    """The body of CreateEvent for an event that sells the regular seats of an auditorium."""
    event = an_event(
        auditoriumId=auditorium.rpartition("/")[2], endTime="2099-07-04T17:00:00Z", **changes
    )
    del event["offers"][0]["capacity"]
    event["offers"][0]["seatType"] = "REGULAR"
    return event


def test_a_venue_changes_and_is_deleted_with_its_auditoriums(
    api: Api, admin: Api, customer: Api
) -> None:
    venue, screen = a_hall(admin, a_row("A", "1"))
    created = api.get(venue).json()
    assert created["createTime"] == created["updateTime"]
    changed = admin.send("PATCH", venue, {"name": "Royal", "address": "1 Main Road"}).json()
    assert (changed["name"], changed["address"]) == ("Royal", "1 Main Road")
    assert changed["timeZone"] == created["timeZone"]
    assert changed["updateTime"] > created["updateTime"]
    assert api.get(venue).json() == changed
    unknown = admin.send("PATCH", venue, {"timeZone": "Asia/Kolkatta"})
    assert (unknown.status_code, violated_fields(unknown)) == (400, {"timeZone"})
    second = admin.post(f"{venue}/auditoriums", {"name": "Screen 0", "rows": [a_row("A", "1")]})
    rooms = all_pages(api, f"{venue}/auditoriums", "auditoriums")
    assert [(room["name"], room["seatCount"], room["rows"]) for room in rooms] == [
        ("Screen 0", 1, []),
        ("Screen 1", 1, []),
    ]
    renamed = admin.send("PATCH", screen, {"name": "Screen 2"}).json()
    assert (renamed["name"], api.get(screen).json()) == ("Screen 2", renamed)
    event = admin.post("/api/v1/events", a_seated_event(screen)).json()
    for path in (venue, screen):
        refused = admin.delete(path)
        assert (refused.status_code, reason(refused)) == (409, "EVENT_STATE_INVALID")
        assert "deleteTime" not in api.get(path).json()
        assert customer.delete(path).status_code == 403
    status = f"/api/v1/events/{event['eventId']}/status"
    assert admin.send("PUT", status, {"status": "CANCELLED"}).status_code == 200
    assert admin.delete(screen).status_code == 204
    assert len(all_pages(api, f"{venue}/auditoriums", "auditoriums")) == 1
    assert admin.delete(venue).status_code == 204
    assert api.get(venue).json()["deleteTime"]
    assert api.get(f"/api/v1/auditoriums/{second.json()['auditoriumId']}").json()["deleteTime"]
    assert changed["venueId"] not in [
        listed["venueId"] for listed in all_pages(api, "/api/v1/venues", "venues")
    ]
    for answer in (
        admin.delete(venue),
        admin.send("PATCH", venue, {"name": "Regal"}),
        admin.post(f"{venue}/auditoriums", {"name": "Screen 3", "rows": [a_row("A", "1")]}),
    ):
        assert (answer.status_code, reason(answer)) == (404, "VENUE_NOT_FOUND")
    for answer in (
        admin.delete(screen),
        admin.send("PATCH", screen, {"name": "Screen 4"}),
        admin.post(f"{screen}/seats", {"rows": [a_row("B", "1")]}),
        admin.post("/api/v1/events", a_seated_event(screen)),
    ):
        assert (answer.status_code, reason(answer)) == (404, "AUDITORIUM_NOT_FOUND")


def test_seats_are_added_and_retired_while_an_event_sells_the_others(
    api: Api, admin: Api, customer: Api
) -> None:
    _, screen = a_hall(admin, a_row("A", "1", "2"))
    [first, retired] = api.get(screen).json()["rows"][0]["seats"]
    event = admin.post("/api/v1/events", a_seated_event(screen)).json()
    more = {"rows": [a_row("B", "1"), a_row("A", "3")]}
    key = str(new_id())
    added = admin.post(f"{screen}/seats", more, idempotency_key=key)
    assert (added.status_code, added.json()["seatCount"]) == (201, 4)
    assert admin.post(f"{screen}/seats", more, idempotency_key=key).json() == added.json()
    rows = api.get(screen).json()["rows"]
    assert [(row["label"], [seat["number"] for seat in row["seats"]]) for row in rows] == [
        ("A", ["1", "2", "3"]),
        ("B", ["1"]),
    ]
    again = admin.post(f"{screen}/seats", {"rows": [a_row("C", "1"), a_row("A", "4", "3")]})
    assert (again.status_code, violated_fields(again)) == (400, {"rows[1].seats[1].number"})
    change = {"seatId": retired["seatId"], "isActive": False, "x": 2.5}
    updated = admin.send("PATCH", f"{screen}/seats", {"seats": [change]})
    assert updated.json()["seats"] == [{**retired, "isActive": False, "x": 2.5}]
    other = admin.send("PATCH", f"{screen}/seats", {"seats": [{"seatId": str(new_id())}]})
    assert (other.status_code, violated_fields(other)) == (400, {"seats[0].seatId"})
    # The event goes on selling both of its seats; a new one has the new seats, not the retired one.
    seat_ids = [first["seatId"], retired["seatId"]]
    body = {"eventId": event["eventId"], "items": [{"seatId": seat_id} for seat_id in seat_ids]}
    assert customer.book(body).status_code == 201
    next_day = {"startTime": "2099-07-05T14:00:00Z", "endTime": "2099-07-05T17:00:00Z"}
    second = admin.post("/api/v1/events", {**a_seated_event(screen), **next_day}).json()
    assert second["totalCapacity"] == 3
    path = f"/api/v1/events/{event['eventId']}"
    new_seat = added.json()["rows"][0]["seats"][0]["seatId"]
    assert admin.send("PATCH", path, {"addSeatIds": [new_seat]}).json()["totalCapacity"] == 3
    bad = admin.send(
        "PATCH", f"/api/v1/events/{second['eventId']}", {"addSeatIds": [retired["seatId"]]}
    )
    assert (bad.status_code, violated_fields(bad)) == (400, {"addSeatIds[0]"})


def test_a_user_marks_events_and_lists_the_last_marked_first(
    api: Api, admin: Api, customer: Api
) -> None:
    events = [admin.create_event() for _ in range(3)]
    draft = admin.create_event(status="DRAFT")
    paths = [f"/api/v1/favourites/{event['eventId']}" for event in events]

    def marked() -> list[str]:
        favourites = all_pages(customer, "/api/v1/favourites", "events")
        return [event["eventId"] for event in favourites]

    for path in (*paths, paths[0]):
        assert customer.send("PUT", path, None).status_code == 204
    assert marked() == [event["eventId"] for event in reversed(events)]
    assert all_pages(admin, "/api/v1/favourites", "events") == []
    for _ in range(2):
        assert customer.delete(paths[1]).status_code == 204
    assert admin.delete(f"/api/v1/events/{events[2]['eventId']}").status_code == 204
    assert marked() == [events[0]["eventId"]]
    for event_id in (new_id(), draft["eventId"]):
        refused = customer.send("PUT", f"/api/v1/favourites/{event_id}", None)
        assert (refused.status_code, reason(refused)) == (404, "EVENT_NOT_FOUND")
    assert api.get("/api/v1/favourites").status_code == 401


def test_a_catalogue_is_imported_once_and_exported(
    mesh: RunningMesh,
    api: Api,
    admin: Api,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    name = f"Opera {new_id()}"
    seat = {"number": "1", "seatType": "REGULAR"}
    event = an_event(name=name, auditoriumId="room", endTime="2099-07-04T17:00:00Z")
    event["offers"] = [{**event["offers"][0], "seatType": "REGULAR"}]
    del event["offers"][0]["capacity"]
    content = [
        {"venue": {"venueId": "house", "name": name, "timeZone": "Asia/Kolkata"}},
        {
            "auditorium": {
                "auditoriumId": "room",
                "venueId": "house",
                "name": "Main",
                "rows": [{"label": "A", "seats": [seat]}],
            }
        },
        {"production": {"productionId": "opera", "title": name}},
        {"event": {**event, "productionId": "opera"}},
    ]
    file = tmp_path / "catalogue.jsonl"
    file.write_text("\n".join(json.dumps(line) for line in content))
    monkeypatch.setenv("BOXOFFICE_STAFF_PASSWORD", PASSWORD)
    email = admin.session["user"]["email"]
    for _ in range(2):
        assert catalogue(["import", str(file), "--url", mesh.url, "--email", email]) == 0
    [imported] = listed(api, query=name)
    assert (imported["venueName"], imported["totalCapacity"]) == (name, 1)
    production = api.get(f"/api/v1/productions/{imported['productionId']}").json()
    assert (production["title"], production["upcomingEvents"]) == (name, [imported])
    exported = tmp_path / "exported.jsonl"
    assert catalogue(["export", str(exported), "--url", mesh.url, "--email", email]) == 0
    assert catalogue(["import", str(exported), "--dry-run"]) == 0
    exported_lines = [json.loads(line) for line in exported.read_text().splitlines()]
    assert imported["eventId"] in [
        line["event"]["eventId"] for line in exported_lines if "event" in line
    ]


def test_a_draft_exists_for_staff_only(admin: Api, customer: Api) -> None:
    draft = admin.create_event(status="DRAFT")
    path = f"/api/v1/events/{draft['eventId']}"
    anonymous = Api(customer.client)
    for reader in (anonymous, customer):
        for hidden in (path, f"{path}/availability", f"{path}/availability/watch"):
            refused = reader.get(hidden)
            assert (refused.status_code, reason(refused)) == (404, "EVENT_NOT_FOUND"), hidden
        listed = reader.get("/api/v1/events?status=DRAFT").json()
        assert (listed["events"], listed["totalSize"]) == ([], 0)
        named = reader.get(f"/api/v1/events?query={draft['name']}&pageSize=100").json()
        assert draft["eventId"] not in {event["eventId"] for event in named["events"]}
    assert reason(customer.book(items(draft))) == "EVENT_NOT_FOUND"
    assert admin.get(path).json()["status"] == "DRAFT"
    assert admin.get(f"{path}/availability").status_code == 200
    listed = admin.get("/api/v1/events?status=DRAFT&pageSize=100").json()
    assert draft["eventId"] in {event["eventId"] for event in listed["events"]}

    published = admin.send("PUT", f"{path}/status", {"status": "UPCOMING"})
    assert published.status_code == 200
    assert anonymous.get(path).status_code == 200
    assert anonymous.get(f"{path}/availability").status_code == 200


def test_a_booking_is_not_moved_to_a_draft(admin: Api, customer: Api) -> None:
    draft = admin.create_event(status="DRAFT")
    booking = customer.book(items(admin.create_event())).json()
    moved = customer.post(
        f"/api/v1/bookings/{booking['bookingId']}/reschedule", {"eventId": draft["eventId"]}
    )
    assert reason(moved) == "EVENT_NOT_FOUND"


def test_labels_of_rows_are_long_trimmed_and_visible(admin: Api) -> None:
    venue = admin.post("/api/v1/venues", {"name": "Arena", "timeZone": "Asia/Kolkata"}).json()
    path = f"/api/v1/venues/{venue['venueId']}/auditoriums"

    def body(*labels: str, number: str = " 1 ") -> dict[str, Any]:
        seats = [{"number": number, "seatType": "REGULAR"}]
        return {"name": "Hall", "rows": [{"label": label, "seats": seats} for label in labels]}

    label = "North Stand, upper tier, block 12, wing B, row AA1"
    assert len(label) == 50
    created = admin.post(path, body(f" {label[2:]} ", "F"))
    assert created.status_code == 201, created.text
    assert [row["label"] for row in created.json()["rows"]] == [label[2:], "F"]
    assert created.json()["rows"][0]["seats"][0]["number"] == "1"
    for refused in (body(" "), body(""), body(label + "x"), body("F\nG"), body("F ", "F")):
        answer = admin.post(path, refused)
        assert "rows[0].label" in violated_fields(answer), answer.text
    answer = admin.post(path, body("F", number=" "))
    assert violated_fields(answer) == {"rows[0].seats[0].number"}
