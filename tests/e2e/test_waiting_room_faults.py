"""Every process is killed once while a waiting room admits visitors who buy: at the end each has the
place of the draw, one admission and one booking."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import httpx
import pytest

from chaos.faults.plan import Fault
from chaos.faults.processes import POSTGRES, REDIS, Outage, inflict
from mesh.ids import new_id
from testing.running_mesh import Api, RunningMesh, items, reason, until
from tools.boxoffice.__main__ import main

# limit_svc runs beside several gateways only; without it they count apart.
FAULTS = [
    (Fault.KILL, "booking_svc"),
    (Fault.KILL, "stock_svc"),
    (Fault.FLUSH, REDIS),
    (Fault.KILL, "gateway"),
    (Fault.CRASH, POSTGRES),
    (Fault.KILL, "auth_svc"),
    (Fault.KILL, REDIS),
    (Fault.KILL, "payment_svc"),
    (Fault.KILL, "booking_svc"),
]
VISITORS = 6 * len(FAULTS)
ROOM = {
    "opensBeforeSaleSeconds": 7200,
    # About as long as the processes take to be restarted, one after the other.
    "admission": {"perMinute": 90},
    "sessionSeconds": 3600,
}
RECOVERY_SECONDS = 120.0
TRIES_SECONDS = 900.0


class Visitor:
    """A customer who polls its ticket until it is admitted, and books, whatever is away."""

    def __init__(self, api: Api, event: dict[str, Any]) -> None:
        self.api = api
        self.event = event
        self.ticket: dict[str, Any] = {}
        self.positions: set[int] = set()
        self.admissions: set[tuple[str, str]] = set()
        self.booking_id = ""
        self.is_leaving = False

    def join(self) -> None:
        path = f"/api/v1/events/{self.event['eventId']}/queue"
        self.ticket = self._answered(lambda: self.api.post(path, {}), 201)

    def poll(self) -> dict[str, Any]:
        path = f"/api/v1/queue/{self.ticket['ticketId']}"
        polled = self._answered(lambda: self.api.get(path), 200)
        # Nobody loses the place, and no admission is over: sessions are longer than the test.
        assert polled["state"] in ("WAITING", "ADMITTED"), polled
        if "position" in polled:
            self.positions.add(polled["position"])
        if "admissionToken" in polled:
            self.admissions.add((polled["admissionToken"], polled["admissionExpireTime"]))
        return polled

    def buy(self) -> None:
        while not self.admissions:
            time.sleep(min(self.poll()["pollAfterSeconds"], 5))
        [(token, _)] = self.admissions
        key = str(new_id())
        body = {
            **items(self.event),
            "admissionToken": token,
            "checkout": {"provider": "sandbox"},
        }
        self.booking_id = self._answered(lambda: self.api.book(body, key=key), 201)["bookingId"]

    def _answered(self, call: Callable[[], httpx.Response], status: int) -> dict[str, Any]:
        """The answer to a call that is repeated while something is away or busy."""
        deadline = time.monotonic() + TRIES_SECONDS
        while True:
            try:
                answer = call()
            except httpx.TransportError as error:
                outcome = repr(error)
            else:
                if answer.status_code == status:
                    content: dict[str, Any] = answer.json()
                    return content
                outcome = answer.text
                # 409: the first try is still running, or died and keeps its key for a moment.
                is_away = answer.status_code in (429, 502, 503, 504)
                assert is_away or reason(answer) == "IDEMPOTENCY_IN_PROGRESS", outcome
            assert time.monotonic() < deadline, outcome
            assert not self.is_leaving, outcome
            time.sleep(1)


@contextmanager
def shopping(visitors: list[Visitor]) -> Iterator[Callable[[], int]]:
    """All visitors buy, each in a thread. Gives the number of those that have."""
    with ThreadPoolExecutor(len(visitors)) as pool:
        running = [pool.submit(visitor.buy) for visitor in visitors]

        def bought() -> int:
            done = [shopper for shopper in running if shopper.done()]
            for shopper in done:
                shopper.result()
            return len(done)

        try:
            yield bought
            for shopper in running:
                shopper.result()
        finally:
            # If the test has failed, nobody tries on.
            for visitor in visitors:
                visitor.is_leaving = True


def has_reached(bought: Callable[[], int], count: int) -> bool:
    return bought() >= count


def recovered_from(mesh: RunningMesh, fault: Fault, target: str) -> bool:
    async def inflicted() -> bool:
        async with httpx.AsyncClient(base_url=mesh.url, timeout=30) as client:

            async def is_healthy() -> bool:
                try:
                    return (await client.get("/health")).status_code == 200
                except httpx.TransportError:
                    return False

            outage = Outage(fault, target)
            await inflict(outage, mesh.home, is_healthy, seconds=RECOVERY_SECONDS)
            return outage.away_seconds is not None

    return asyncio.run(inflicted())


@pytest.mark.timeout(1800)
def test_nobody_loses_the_place_or_is_admitted_twice_while_every_process_is_killed(
    mesh: RunningMesh, admin: Api, capsys: pytest.CaptureFixture[str]
) -> None:
    start = datetime.now(UTC) + timedelta(hours=1)
    offer = {
        "name": "Floor",
        # Confirmed at once: no hold ends, however long the faults take.
        "price": {"currencyCode": "INR", "amountMinor": "0"},
        "capacity": VISITORS + 5,
        "perCustomerLimit": 1,
    }
    event = admin.create_event(saleStartTime=start.isoformat(), offers=[offer])
    path = f"/api/v1/events/{event['eventId']}"
    made = admin.send("PUT", f"{path}/waiting-room", ROOM)
    assert made.status_code == 200, made.text
    commitment = admin.get(f"{path}/draw").json()["commitment"]
    with ThreadPoolExecutor(4) as pool:
        customers = list(pool.map(lambda _: admin.sign_up(), range(VISITORS)))
        visitors = [Visitor(customer, event) for customer in customers]
        list(pool.map(Visitor.join, visitors))
    moved = admin.send("PATCH", path, {"saleStartTime": datetime.now(UTC).isoformat()})
    assert moved.status_code == 200, moved.text

    with shopping(visitors) as bought:
        for number, (fault, target) in enumerate(FAULTS):
            # The others go on meanwhile: at each fault some are admitted, and some wait.
            until(
                partial(has_reached, bought, 6 * number + 1),
                f"nobody is admitted before {fault} {target}",
                seconds=2 * RECOVERY_SECONDS,
            )
            assert recovered_from(mesh, fault, target), f"{target} is away after {fault}"

    # Each has the place of the draw, whenever it asked, and one admission.
    for visitor in visitors:
        assert visitor.poll()["state"] == "ADMITTED"
        assert len(visitor.positions) == len(visitor.admissions) == 1, visitor.ticket
    tickets = [visitor.ticket["ticketId"] for visitor in visitors]
    arguments = ["--url", mesh.url, "verify-draw", event["eventId"], *tickets]
    assert main([*arguments, "--commitment", commitment]) == 0
    verified = json.loads(capsys.readouterr().out)
    drawn = [ticket["position"] for ticket in verified["tickets"]]
    assert drawn == [position for visitor in visitors for position in visitor.positions]
    assert sorted(drawn) == list(range(1, VISITORS + 1))
    # Admitted in this order: an admission that began later ends later.
    in_order = sorted(visitors, key=lambda visitor: min(visitor.positions))
    ends = [datetime.fromisoformat(end) for visitor in in_order for _, end in visitor.admissions]
    assert ends == sorted(ends)

    # What is sold is what was booked.
    assert len({visitor.booking_id for visitor in visitors}) == VISITORS
    for visitor in visitors:
        booking = visitor.api.wait_for_status(visitor.booking_id, "CONFIRMED")
        assert booking["customerId"] == visitor.api.user_id
        listed = visitor.api.get("/api/v1/bookings").json()
        assert [entry["bookingId"] for entry in listed["bookings"]] == [visitor.booking_id]

    def is_sold() -> bool:
        [left] = admin.get(f"{path}/availability").json()["offers"]
        return bool(left["available"] == 5)

    until(is_sold, "places are held or sold that nobody has booked", seconds=RECOVERY_SECONDS)
