"""An event is cancelled: everybody gets their money back, once, whatever dies on the way."""

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
    """A confirmed booking's id."""
    booked = customer.book({**items(event), "checkout": {"provider": "sandbox"}})
    assert booked.status_code == 201, booked.text
    booking = booked.json()
    payment_id = booking["payment"]["paymentId"]
    paid = customer.post(f"/sandbox/pay/{payment_id}", {"outcome": "SUCCEEDED"})
    assert paid.status_code == 200, paid.text
    return str(booking["bookingId"])


def kill(mesh: RunningMesh) -> None:
    """kill -9 of booking_svc, and wait until there is another one."""
    pid = mesh.pid("booking_svc")
    os.kill(pid, signal.SIGKILL)

    def is_another() -> bool:
        # Between two processes there is no file.
        with suppress(FileNotFoundError, JSONDecodeError):
            return mesh.pid("booking_svc") != pid
        return False

    until(is_another, "booking_svc does not come back")


@pytest.mark.timeout(1800)
def test_everybody_is_refunded_once_though_booking_svc_is_killed_three_times(
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

    until(lambda: confirmed() == count, "not all are confirmed", seconds=_SECONDS)
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
            "the cancellation does not go on",
            seconds=_SECONDS,
        )
        kill(mesh)
    until(lambda: progress().get("state") == "DONE", "not done", seconds=_SECONDS)
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

    # What the killed one was about to give back waits until its lease has ended.
    def available() -> int:
        answer = admin.get(path)
        return int(answer.json()["available"]) if answer.status_code == 200 else -1

    until(lambda: available() == count, "places did not come back", seconds=60)
    # Whoever tests next finds a mesh that is up.
    until(lambda: admin.get("/health").status_code == 200, "not healthy", seconds=60)
