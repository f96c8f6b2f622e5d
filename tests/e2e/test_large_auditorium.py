"""A large auditorium: loaded in parts, and its availability as a string."""

from typing import Any

import httpx

from testing.running_mesh import Api, RunningMesh, until
from tests.e2e.test_catalogue import a_hall, a_row, a_seated_event, watched

SEATS_PER_ROW = 500
SEATS_PER_CALL = 10_000


def downloaded(mesh: RunningMesh, path: str, encoding: str) -> tuple[dict[str, Any], int]:
    """The answer, and the number of bytes of its body as sent."""
    with (
        httpx.Client(base_url=mesh.url, timeout=60) as client,
        client.stream("GET", path, headers={"accept-encoding": encoding}) as response,
    ):
        response.read()
        assert response.status_code == 200, response.text
        assert response.headers.get("content-encoding", "identity") == encoding
        answer: dict[str, Any] = response.json()
        return answer, response.num_bytes_downloaded


def test_the_availability_of_a_large_auditorium_is_a_string(
    mesh: RunningMesh, api: Api, admin: Api, customer: Api, is_long: bool
) -> None:
    seats = 60_000 if is_long else 20_000
    rows = [
        a_row(str(n), *(str(number) for number in range(SEATS_PER_ROW)))
        for n in range(seats // SEATS_PER_ROW)
    ]
    step = SEATS_PER_CALL // SEATS_PER_ROW
    _, hall = a_hall(admin, *rows[:step])
    for first in range(step, len(rows), step):
        added = admin.post(f"{hall}/seats", {"rows": rows[first : first + step]})
        assert added.status_code == 201, added.text
    event = admin.post("/api/v1/events", a_seated_event(hall)).json()
    assert event["totalCapacity"] == seats
    order = [seat["seatId"] for row in api.get(hall).json()["rows"] for seat in row["seats"]]
    booked = [order[0], order[seats // 2], order[-1]]
    booking = customer.book(
        {"eventId": event["eventId"], "items": [{"seatId": seat_id} for seat_id in booked]}
    )
    assert booking.status_code == 201, booking.text

    path = f"/api/v1/events/{event['eventId']}/availability"

    def held() -> bool:
        states: str = api.get(f"{path}?seatFormat=STRING").json()["seatStates"]
        return states.count("H") == len(booked)

    until(held, "the seats are held")
    listed, listed_bytes = downloaded(mesh, path, "identity")
    string, string_bytes = downloaded(mesh, f"{path}?seatFormat=STRING", "identity")
    _, listed_gzip = downloaded(mesh, path, "gzip")
    _, string_gzip = downloaded(mesh, f"{path}?seatFormat=STRING", "gzip")
    print(
        f"{seats} seats: as a list {listed_bytes} bytes, with gzip {listed_gzip};"
        f" as a string {string_bytes} bytes, with gzip {string_gzip}"
    )
    # The same seats and states, in the order of the auditorium.
    states = {seat["seatId"]: seat["state"][0] for seat in listed.pop("seats")}
    assert string.pop("seatStates") == "".join(states[seat_id] for seat_id in order)
    assert string.pop("seats") == []
    assert string == listed
    # A letter per seat, and less than a kilobyte for the offer and the names.
    assert string_bytes < seats + 1_000
    assert listed_bytes > 50 * string_bytes
    assert string_gzip < string_bytes / 10

    with watched(mesh, event["eventId"], "?seatFormat=STRING") as updates:
        snapshot = updates.get(timeout=60)
        assert (snapshot["kind"], snapshot["seats"]) == ("SNAPSHOT", [])
        assert snapshot["seatStates"] == "".join(states[seat_id] for seat_id in order)
        cancelled = customer.post(f"/api/v1/bookings/{booking.json()['bookingId']}/cancel", {})
        assert cancelled.status_code == 200
        change = updates.get(timeout=60)
        while change["kind"] != "CHANGE":
            change = updates.get(timeout=60)
        assert "seatStates" not in change
        assert {seat["seatId"] for seat in change["seats"]} <= set(booked)
