"""A cancelled event refunds every booking exactly once, although booking_svc is killed meanwhile."""

import os
import signal
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from json import JSONDecodeError
from typing import Any

import pytest

from testing.running_mesh import Api, RunningMesh, items, until

PRICE = 150_000
_SECONDS = 600


def buy(customer: Api, event: dict[str, Any]) -> str:
    """Places and pays a booking. Returns its id."""
    booked = customer.book({**items(event), "checkout": {"provider": "sandbox"}})
    assert booked.status_code == 201, booked.text
    booking = booked.json()
    payment_id = booking["payment"]["paymentId"]
    paid = customer.post(f"/sandbox/pay/{payment_id}", {"outcome": "SUCCEEDED"})
    assert paid.status_code == 200, paid.text
    return str(booking["bookingId"])


def kill(mesh: RunningMesh) -> None:
    """Kills booking_svc with SIGKILL, and waits for the next process."""
    pid = mesh.pid("booking_svc")
    os.kill(pid, signal.SIGKILL)

    def is_restarted() -> bool:
        # Between two processes there is no pid file.
        with suppress(FileNotFoundError, JSONDecodeError):
            return mesh.pid("booking_svc") != pid
        return False

    until(is_restarted, "booking_svc was not restarted")


@pytest.mark.timeout(1800)
def test_every_booking_is_refunded_once_while_booking_svc_is_killed_three_times(
    mesh: RunningMesh, admin: Api, customer: Api, is_long: bool
) -> None:
    count = 2_000 if is_long else 60
    offer = {
        "name": "Floor",
        "price": {"currencyCode": "INR", "amountMinor": str(PRICE)},
        "capacity": count,
        "perCustomerLimit": count,
    }
    event = admin.create_event(offers=[offer])
    path = f"/api/v1/events/{event['eventId']}"
    with ThreadPoolExecutor(8) as pool:
        bookings = list(pool.map(lambda _: buy(customer, event), range(count)))

    def confirmed() -> int:
        answer = admin.get(f"{path}/bookings?status=CONFIRMED&pageSize=1")
        return int(answer.json()["totalSize"]) if answer.status_code == 200 else 0

    until(lambda: confirmed() == count, "not all bookings are confirmed", seconds=_SECONDS)
    body = {"status": "CANCELLED", "reason": "Monsoon"}
    assert admin.send("PUT", f"{path}/status", body).status_code == 200

    def progress() -> dict[str, Any]:
        answer = admin.get(f"{path}/cancellation")
        return dict(answer.json()) if answer.status_code == 200 else {}

    for part in range(3):
        # Killed at about a quarter, a half and three quarters of the way.
        goal = count * (part + 1) // 4
        until(
            lambda goal=goal: progress().get("bookingsCancelled", 0) >= goal,  # type: ignore[misc]
            "the cancellation does not proceed",
            seconds=_SECONDS,
        )
        kill(mesh)
    until(
        lambda: progress().get("state") == "DONE", "the cancellation is not done", seconds=_SECONDS
    )
    done = progress()
    assert (done["bookingsFound"], done["bookingsCancelled"]) == (count, count)
    assert (done["refundsProcessed"], done["refundsFailed"]) == (count, 0)
    assert done["refunded"]["amountMinor"] == str(count * PRICE)

    def check(booking_id: str) -> None:
        booking = customer.get(f"/api/v1/bookings/{booking_id}").json()
        assert booking["status"] == "CANCELLED"
        payment = customer.get(f"/api/v1/payments/{booking['payment']['paymentId']}").json()
        assert payment["refunded"]["amountMinor"] == payment["amount"]["amountMinor"]

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(check, bookings))

    # Steps of a killed process wait for the end of their lease.
    def available() -> int:
        answer = admin.get(path)
        return int(answer.json()["available"]) if answer.status_code == 200 else -1

    until(lambda: available() == count, "the places are not available again", seconds=60)
    # Other tests use the same mesh.
    until(lambda: admin.get("/health").status_code == 200, "the mesh is not healthy", seconds=60)
