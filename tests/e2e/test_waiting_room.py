"""A waiting room through the gateway: joining, the draw, admission, booking, and each refusal."""

import json
from datetime import UTC, datetime, timedelta
from typing import Any
from urllib.parse import urlencode

import pytest

from booking_svc.queueing import proof_of_work
from mesh.ids import new_id
from testing.running_mesh import Api, RunningMesh, event_stream, items, reason, until
from tools.boxoffice.__main__ import main

BITS = 8
ROOM = {
    "opensBeforeSaleSeconds": 7200,
    "admission": {"perMinute": 6000},
    "sessionSeconds": 3600,
    "proofOfWorkBits": BITS,
}


def a_proof(event: dict[str, Any]) -> str:
    now = datetime.now(UTC)
    return proof_of_work.solve(event["eventId"], bits=BITS, random=new_id().hex, now=now)


def joined(api: Api, event: dict[str, Any]) -> dict[str, Any]:
    answer = api.post(f"/api/v1/events/{event['eventId']}/queue", {"proofOfWork": a_proof(event)})
    assert answer.status_code == 201, answer.text
    ticket: dict[str, Any] = answer.json()
    return ticket


def cause(answer: Any) -> str:
    [info] = [d for d in answer.json()["details"] if d["@type"].endswith("ErrorInfo")]
    return str(info["metadata"]["cause"])


def test_an_on_sale_with_a_waiting_room(
    mesh: RunningMesh,
    api: Api,
    admin: Api,
    customer: Api,
    capsys: pytest.CaptureFixture[str],
) -> None:
    start = datetime.now(UTC) + timedelta(hours=1)
    event = admin.create_event(saleStartTime=start.isoformat())
    path = f"/api/v1/events/{event['eventId']}"

    # A room: staff make it, everybody reads it and its commitment.
    assert reason(api.get(f"{path}/waiting-room")) == "WAITING_ROOM_NOT_FOUND"
    assert reason(customer.send("PUT", f"{path}/waiting-room", ROOM)) == "STAFF_REQUIRED"
    both = {**ROOM, "admission": {"perMinute": 60, "auto": True}}
    assert admin.send("PUT", f"{path}/waiting-room", both).status_code == 400
    made = admin.send("PUT", f"{path}/waiting-room", ROOM)
    assert made.status_code == 200, made.text
    room = api.get(f"{path}/waiting-room").json()
    assert (room["state"], room["admission"]["perMinute"]) == ("OPEN", 6000)
    assert api.get(path).json()["hasWaitingRoom"]
    draw = api.get(f"{path}/draw").json()
    assert (draw["participants"], "secret" in draw) == (0, False)

    # Joining: a proof each, one ticket for each account.
    refused = api.post(f"{path}/queue", {})
    assert (refused.status_code, reason(refused)) == (403, "QUEUE_CHALLENGE_FAILED")
    assert cause(refused) == "PROOF_MISSING"
    mine, anonymous = joined(customer, event), joined(api, event)
    assert joined(customer, event)["ticketId"] == mine["ticketId"]
    assert mine["state"] == "WAITING"
    assert "position" not in mine
    assert mine["pollAfterSeconds"] >= 2
    other = api.sign_up()
    joined(other, event)

    # The sale is moved to now; the draw follows.
    moved = admin.send("PATCH", path, {"saleStartTime": datetime.now(UTC).isoformat()})
    assert moved.status_code == 200, moved.text
    with event_stream(mesh, f"/api/v1/queue/{anonymous['ticketId']}/watch") as updates:
        until(lambda: updates.get(timeout=60)["state"] == "ADMITTED", "no update of the admission")
    admitted = until(lambda: with_token(customer, mine), "the customer is not admitted")
    assert admitted["position"] in (1, 2, 3)
    assert with_token(customer, mine) == {
        **admitted,
        "pollAfterSeconds": with_token(customer, mine)["pollAfterSeconds"],
    }
    others = until(lambda: with_token(other, joined(other, event)), "the other is not admitted")

    # Anyone verifies the draw.
    main(
        [
            "--url",
            mesh.url,
            "verify-draw",
            event["eventId"],
            mine["ticketId"],
            anonymous["ticketId"],
        ]
    )
    verified = json.loads(capsys.readouterr().out)
    assert (verified["participants"], verified["commitment"]) == (3, draw["commitment"])
    assert verified["tickets"][0]["position"] == admitted["position"]
    assert main(["--url", mesh.url, "verify-draw", event["eventId"], "--commitment", "00"]) == 1

    # Booking takes an admission of one's own.
    for token, expected in (
        (None, "TOKEN_MISSING"),
        ("forged", "TOKEN_FORGED"),
        (others["admissionToken"], "TOKEN_OF_OTHER_USER"),
    ):
        body = {**items(event), **({"admissionToken": token} if token else {})}
        refused = customer.book(body)
        assert (refused.status_code, reason(refused)) == (403, "ADMISSION_REQUIRED")
        assert cause(refused) == expected
    elsewhere = admin.create_event(saleStartTime=start.isoformat())
    admin.send("PUT", f"/api/v1/events/{elsewhere['eventId']}/waiting-room", ROOM)
    admin.send(
        "PATCH", f"/api/v1/events/{elsewhere['eventId']}", {"saleStartTime": "2020-01-01T00:00:00Z"}
    )
    foreign = customer.book({**items(elsewhere), "admissionToken": admitted["admissionToken"]})
    assert cause(foreign) == "TOKEN_OF_OTHER_EVENT"
    booked = customer.book({**items(event), "admissionToken": admitted["admissionToken"]})
    assert booked.status_code == 201, booked.text
    assert admin.book(items(event)).status_code == 201

    # One admission for an account and for a ticket; forged and foreign tickets.
    assert with_token(api.sign_up(), anonymous)
    refused = customer.get(f"/api/v1/queue/{anonymous['ticketId']}")
    assert (refused.status_code, reason(refused)) == (409, "ALREADY_ADMITTED")
    forged = mine["ticketId"][:-6] + "AAAAAA"
    assert reason(api.get(f"/api/v1/queue/{forged}")) == "QUEUE_TICKET_NOT_FOUND"
    assert reason(other.get(f"/api/v1/queue/{mine['ticketId']}")) == "QUEUE_TICKET_NOT_FOUND"

    # After the draw the room stays; after the end nobody joins.
    assert reason(admin.delete(f"{path}/waiting-room")) == "EVENT_STATE_INVALID"
    until(
        lambda: {"TOKEN_MISSING", "ALREADY_ADMITTED"} <= refusals(admin, path).keys(),
        "the refusals are not counted",
    )
    assert api.get(f"{path}/waiting-room").json()["refusals"] == []

    # The report on the sale, for staff.
    assert reason(customer.get(f"{path}/on-sale-report")) == "STAFF_REQUIRED"
    assert reason(admin.get(f"/api/v1/events/{new_id()}/on-sale-report")) == "EVENT_NOT_FOUND"
    times = {"startTime": "2030-01-02T00:00:00Z", "endTime": "2030-01-01T00:00:00Z"}
    swapped = admin.get(f"{path}/on-sale-report?{urlencode(times)}")
    assert reason(swapped) == "VALIDATION_FAILED"
    report = admin.get(f"{path}/on-sale-report").json()
    assert report["visitors"] == {
        "joined": 3,
        "participants": 3,
        "admitted": 3,
        "claimed": 3,
        "booked": 1,
        "bought": 0,
    }
    assert report["bookings"] == {**dict.fromkeys(report["bookings"], 0), "placed": 2, "open": 2}
    assert sum(interval["joined"] for interval in report["intervals"]) == 3
    assert "TOKEN_MISSING" in {refusal["cause"] for refusal in report["refusals"]}
    assert {entry["number"] for entry in report["admissions"]} == {0, 1, 2}
    assert {"JoinQueue", "GetQueuePosition"} <= {call["call"] for call in report["durations"]}

    cancelled = admin.send("PUT", f"{path}/status", {"status": "CANCELLED"})
    assert cancelled.status_code == 200, cancelled.text
    until(lambda: position(api, anonymous)["state"] == "ENDED", "the ticket has not ended")
    refused = api.post(f"{path}/queue", {"proofOfWork": a_proof(event)})
    assert (refused.status_code, reason(refused)) == (409, "QUEUE_CLOSED")


def test_a_room_is_removed_before_its_draw(api: Api, admin: Api) -> None:
    start = datetime.now(UTC) + timedelta(hours=1)
    event = admin.create_event(saleStartTime=start.isoformat())
    path = f"/api/v1/events/{event['eventId']}"
    admin.send("PUT", f"{path}/waiting-room", ROOM)
    ticket = joined(api, event)
    assert admin.delete(f"{path}/waiting-room").status_code == 204
    until(
        lambda: api.get(f"/api/v1/queue/{ticket['ticketId']}").status_code == 404,
        "the ticket is still valid",
    )
    assert reason(api.get(f"{path}/draw")) == "WAITING_ROOM_NOT_FOUND"


def position(api: Api, ticket: dict[str, Any]) -> dict[str, Any]:
    answer = api.get(f"/api/v1/queue/{ticket['ticketId']}")
    assert answer.status_code == 200, answer.text
    ticket_now: dict[str, Any] = answer.json()
    return ticket_now


def with_token(api: Api, ticket: dict[str, Any]) -> dict[str, Any]:
    """The ticket, once the caller is admitted by it; empty before."""
    polled = position(api, ticket)
    return polled if "admissionToken" in polled else {}


def refusals(admin: Api, path: str) -> dict[str, int]:
    room = admin.get(f"{path}/waiting-room").json()
    return {entry["cause"]: entry["count"] for entry in room["refusals"]}
