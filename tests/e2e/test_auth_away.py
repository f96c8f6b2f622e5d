"""auth_svc is unavailable: signed-in users continue to buy; calls to auth_svc get an error."""

import os
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from testing.running_mesh import Api, RunningMesh, items, reason, until

# Longer than the gateway caches keys: it must keep keys that it cannot fetch again.
_LONG_SECONDS = 75.0


@contextmanager
def hung(mesh: RunningMesh, process: str) -> Iterator[None]:
    """Stops a process, which keeps its connections open and answers nothing."""
    pid = mesh.pid(process)
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@pytest.mark.timeout(300)
def test_signed_in_users_can_book_without_auth_svc(
    mesh: RunningMesh, admin: Api, customer: Api, is_long: bool
) -> None:
    event = admin.create_event()
    with hung(mesh, "auth_svc"):
        deadline = time.monotonic() + (_LONG_SECONDS if is_long else 3.0)
        while True:
            placed = customer.book(items(event))
            assert placed.status_code == 201, placed.text
            cancelled = customer.post(f"/api/v1/bookings/{placed.json()['bookingId']}/cancel", {})
            assert cancelled.status_code == 200, cancelled.text
            assert admin.get(f"/api/v1/events/{event['eventId']}/stock/audit").status_code == 200
            if time.monotonic() > deadline:
                break
            time.sleep(0.5)
        until(lambda: unreachable(customer) == {"authSvc"}, "auth_svc is not reported")
        unavailable = customer.get("/api/v1/auth/me")
        assert (unavailable.status_code, reason(unavailable)) in {
            (503, "DEPENDENCY_UNAVAILABLE"),
            (504, "DEADLINE_EXCEEDED"),
        }
    until(lambda: customer.get("/api/v1/auth/me").status_code == 200, "auth_svc does not answer")
    # The revocation streams resume by themselves.
    customer.post("/api/v1/auth/logout", {})
    until(lambda: customer.get("/api/v1/bookings").status_code == 401, "the token is still valid")


def test_health_is_reported_without_booking_svc(mesh: RunningMesh, customer: Api) -> None:
    """Another service answers for it."""
    with hung(mesh, "booking_svc"):
        until(lambda: unreachable(customer) == {"bookingSvc"}, "booking_svc is not reported")
    until(lambda: customer.get("/health").status_code == 200, "the mesh is not healthy")


def unreachable(api: Api) -> set[str]:
    """The services that /health reports as unreachable; the others are serving."""
    answer = api.get("/health")
    assert answer.status_code == 503, answer.text
    states = answer.json()["details"][0]["metadata"]
    assert set(states.values()) <= {"SERVING", "UNREACHABLE"}
    return {name for name, state in states.items() if state == "UNREACHABLE"}
