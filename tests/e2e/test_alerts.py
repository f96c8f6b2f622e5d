"""Each alert's condition, caused in a mesh that runs; its expression, over what was scraped.

How long a condition must last (`for`) and what the alert then says, alerts_test.yaml has: the
tests here show that the condition is seen at all, in the metrics that the processes have.
"""

import asyncio
import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from concurrent import futures
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest

from launcher import scrape
from launcher.postgres_server import PostgresServer
from mesh.db.database import libpq_url
from mesh.settings import SERVICES
from testing.alerting import BY_NAME
from testing.promql import Series, evaluate
from testing.running_mesh import ADMIN_SECRET, Api, RunningMesh, items, running_mesh

pytestmark = pytest.mark.timeout(600)

_SCRAPE_SECONDS = 2.0
_DEADLINE_SECONDS = 100.0
CAUSED = {
    "BookingIsSlow",
    "BookingStepsWait",
    "CallsFail",
    "DatabaseRefuses",
    "EventLoopIsSlow",
    "GatewayFindsNobody",
    "GatewayTurnsAway",
    "LoopFails",
    "LoopHasNoLeader",
    "MailsWait",
    "NotReady",
    "Overloaded",
    "PoolIsUsedUp",
    "ProcessDown",
    "RefundsWait",
    "StockDoesNotAddUp",
    "StreamIsLate",
    "StreamIsNotFollowed",
    "WebhooksRefused",
}


@pytest.fixture(scope="module")
def ailing() -> Iterator[RunningMesh]:
    # Nobody takes mails at that port.
    with running_mesh(BOXOFFICE_SMTP_URL="smtp://127.0.0.1:9?starttls=false") as running:
        yield running


@pytest.fixture
def api(ailing: RunningMesh) -> Iterator[Api]:
    with httpx.Client(base_url=ailing.url, timeout=30) as client:
        yield Api(client)


@pytest.fixture
def admin(api: Api) -> Api:
    return api.sign_up(admin_secret=ADMIN_SECRET)


class Watch:
    """Scrapes the mesh and says what its alerts would."""

    def __init__(self, mesh: RunningMesh) -> None:
        self._targets = json.loads(scrape.path(mesh.home).read_text())
        self._series = Series()
        self.scrape()

    def scrape(self) -> None:
        addresses = [
            (group["labels"], address) for group in self._targets for address in group["targets"]
        ]
        with futures.ThreadPoolExecutor(len(addresses)) as pool:
            pages = pool.map(lambda each: _page(*each), addresses)
            for (labels, address), page in zip(addresses, pages, strict=True):
                self._series.scraped(page, time=time.time(), job=labels["job"], instance=address)

    def holds(self, alert: str, labels: dict[str, str]) -> bool:
        found = evaluate(BY_NAME[alert]["expr"], self._series, time.time())
        return any(labels.items() <= set(each) for each in found)

    def until(
        self, alert: str, *, cause: Callable[[], object] = lambda: None, **labels: str
    ) -> None:
        """Causes and scrapes until the alert's condition holds."""
        self._wait(alert, labels, cause, wanted=True)

    def until_over(self, alert: str, **labels: str) -> None:
        self._wait(alert, labels, lambda: None, wanted=False)

    def _wait(
        self, alert: str, labels: dict[str, str], cause: Callable[[], object], *, wanted: bool
    ) -> None:
        deadline = time.monotonic() + _DEADLINE_SECONDS
        while True:
            cause()
            self.scrape()
            if self.holds(alert, labels) is wanted:
                return
            assert time.monotonic() < deadline, f"{alert}{labels} is not {wanted}"
            time.sleep(0.3)


def _page(labels: dict[str, str], address: str) -> str | None:
    path = labels.get("__metrics_path__", "/metrics")
    try:
        answer = httpx.get(f"http://{address}{path}", timeout=_SCRAPE_SECONDS)
    except httpx.HTTPError:
        return None
    return answer.text if answer.is_success else None


@pytest.fixture
def watch(ailing: RunningMesh, admin: Api) -> Watch:
    # What no call has counted yet has no rate: Prometheus sees a counter's second value first.
    booking = Booking.placed(admin, admin.create_event())
    booking.pay()
    booking.wait_confirmed()
    return Watch(ailing)


@contextmanager
def stopped(mesh: RunningMesh, process: str) -> Iterator[None]:
    """The process hangs for as long as the block lasts."""
    pid = mesh.pid(process)
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def database(mesh: RunningMesh, name: str) -> Iterator["psycopg.Connection[Any]"]:
    url = libpq_url(PostgresServer(mesh.home).url(name))
    # The role's own timeouts would end what the tests hold on to.
    patient = " ".join(f"-c {each}_timeout=0" for each in ("transaction", "statement", "lock"))
    idle = "-c idle_in_transaction_session_timeout=0"
    with psycopg.connect(url, autocommit=True, options=f"{patient} {idle}") as connection:
        yield connection


@dataclass(frozen=True)
class Booking:
    """A customer's booking whose payment waits."""

    customer: Api
    booking_id: str
    payment_id: str

    @classmethod
    def placed(cls, api: Api, event: dict[str, Any]) -> "Booking":
        customer = api.sign_up()
        placed = customer.book({**items(event), "checkout": {"provider": "sandbox"}})
        assert placed.status_code == 201, placed.text
        booking = placed.json()
        return cls(customer, booking["bookingId"], booking["payment"]["paymentId"])

    def pay(self) -> None:
        paid = self.customer.post(f"/sandbox/pay/{self.payment_id}", {"outcome": "SUCCEEDED"})
        assert paid.status_code == 200, paid.text

    def wait_confirmed(self) -> None:
        self.customer.wait_for_status(self.booking_id, "CONFIRMED")


def test_every_alert_is_caused_here() -> None:
    assert BY_NAME.keys() == CAUSED
    text = Path(__file__).read_text().partition("def test_every_alert")[2]
    assert {name for name in CAUSED if not re.search(rf'[("]{name}"', text)} == set()


def test_every_target_answers_and_every_process_is_one(ailing: RunningMesh) -> None:
    targets = json.loads(scrape.path(ailing.home).read_text())
    assert {each["labels"]["job"] for each in targets} == {*SERVICES, "gateway"}
    for group in targets:
        for address in group["targets"]:
            assert "boxoffice_ready 1.0" in (page := str(_page(group["labels"], address))) or (
                "envoy_server_live" in page
            )


def test_nothing_is_wrong_with_a_mesh_that_works(ailing: RunningMesh, watch: Watch) -> None:
    watch.scrape()
    # How fast this machine is says nothing about the mesh.
    others = sorted(BY_NAME.keys() - {"BookingIsSlow", "EventLoopIsSlow"})
    assert [alert for alert in others if watch.holds(alert, {})] == []


def test_changed_counters_of_stock(ailing: RunningMesh, admin: Api, watch: Watch) -> None:
    event_id = admin.create_event()["eventId"]
    change = "UPDATE pools SET sold = sold + %s WHERE event_id = %s"
    with database(ailing, "stock") as connection:
        connection.execute(change, (1, event_id))
        watch.until("StockDoesNotAddUp")
        connection.execute(change, (-1, event_id))
    watch.until_over("StockDoesNotAddUp")


def test_work_that_waits(ailing: RunningMesh, admin: Api, watch: Watch) -> None:
    """What waits is real; that it has waited for so long is written into its row."""
    booking = Booking.placed(admin, admin.create_event())
    with stopped(ailing, "stock_svc"), database(ailing, "booking") as connection:
        booking.pay()
        age(connection, f"booking_steps WHERE booking_id = '{booking.booking_id}'", "3 minutes")
        age(connection, "mails WHERE status = 'QUEUED'", "40 minutes")
        watch.until("BookingStepsWait")
        watch.until("MailsWait")
    watch.until_over("BookingStepsWait")
    with database(ailing, "payment") as connection:
        # A refund that its provider does not carry out.
        made = connection.execute(
            "INSERT INTO refunds (refund_id, capture_id, payment_id, amount_minor,"
            " currency_code, status, reason, due_time, create_time, update_time)"
            " SELECT gen_random_uuid(), capture_id, payment_id, amount_minor,"
            " currency_code, 'FAILED', 'none', now() + interval '1 hour',"
            " now() - interval '20 minutes', now() FROM captures LIMIT 1"
        )
        assert made.rowcount == 1
        watch.until("RefundsWait")
        connection.execute("DELETE FROM refunds WHERE reason = 'none'")
    watch.until_over("RefundsWait")


def age(connection: "psycopg.Connection[Any]", rows: str, by: str) -> None:
    """Moves the time since which rows wait, once there are some."""
    table, _, condition = rows.partition(" WHERE ")
    change = f"UPDATE {table} SET create_time = now() - interval '{by}' WHERE {condition}"
    deadline = time.monotonic() + _DEADLINE_SECONDS
    while connection.execute(change.encode()).rowcount == 0:
        assert time.monotonic() < deadline, rows
        time.sleep(0.2)


def test_forged_webhooks(api: Api, watch: Watch) -> None:
    def forge() -> None:
        for _ in range(20):
            answer = api.client.post("/webhooks/sandbox", headers={"x-sandbox-signature": "forged"})
            assert answer.status_code == 401

    watch.until("WebhooksRefused", cause=forge)


def test_a_service_that_hangs(ailing: RunningMesh, admin: Api, watch: Watch) -> None:
    order = items(admin.create_event())
    with stopped(ailing, "stock_svc"):
        watch.until("ProcessDown", job="stock_svc")
        watch.until("GatewayFindsNobody", envoy_cluster_name="stock_svc")
        watch.until("CallsFail", cause=lambda: admin.book(order), rpc="BookingService/PlaceBooking")
    watch.until_over("ProcessDown")
    watch.until_over("GatewayFindsNobody")


def test_a_service_that_is_slow(ailing: RunningMesh, admin: Api, watch: Watch) -> None:
    order = items(admin.create_event(), 1)

    def book_slowly() -> None:
        with futures.ThreadPoolExecutor(1) as pool, stopped(ailing, "stock_svc"):
            booked = pool.submit(admin.book, order)
            time.sleep(1.5)
            os.kill(ailing.pid("stock_svc"), signal.SIGCONT)
            booked.result()

    watch.until("BookingIsSlow", cause=book_slowly)
    # It was late for its own timers, too.
    watch.until("EventLoopIsSlow", cause=book_slowly, job="stock_svc")


def test_more_calls_than_connections(ailing: RunningMesh, admin: Api, watch: Watch) -> None:
    async def read(calls: int) -> None:
        headers = {"authorization": f"Bearer {admin.token}"}
        limits = httpx.Limits(max_connections=calls)
        async with httpx.AsyncClient(
            base_url=ailing.url, headers=headers, limits=limits, timeout=60
        ) as client:
            reads = (client.get("/api/v1/bookings") for _ in range(calls))
            for answer in await asyncio.gather(*reads):
                assert answer.status_code in (200, 429, 503, 504), answer.text

    def rush(calls: int) -> None:
        with futures.ThreadPoolExecutor(1) as pool:
            running = pool.submit(asyncio.run, read(calls))
            while not running.done():
                watch.scrape()
                used_up.append(watch.holds("PoolIsUsedUp", {"job": "booking_svc"}))
            running.result()

    used_up: list[bool] = []
    with database(ailing, "booking") as connection, connection.transaction():
        connection.execute("LOCK TABLE bookings")
        # As many as the gateway lets in; then as many as it does not.
        watch.until("Overloaded", cause=lambda: rush(64))
        watch.until("GatewayTurnsAway", cause=lambda: rush(300), envoy_cluster_name="booking_svc")
    assert any(used_up)
    watch.until_over("PoolIsUsedUp")


def test_an_event_whose_transaction_commits_late(ailing: RunningMesh, watch: Watch) -> None:
    def commit_late() -> None:
        with database(ailing, "payment") as connection, connection.transaction():
            # Once more what has had its effect: it has none again.
            connection.execute(
                "INSERT INTO outbox (aggregate_id, event_type, payload, create_time)"
                " SELECT aggregate_id, event_type, payload, now() FROM outbox"
                " ORDER BY sequence LIMIT 1"
            )
            time.sleep(7)

    watch.until("StreamIsLate", cause=commit_late, job="payment_svc")


def test_a_database_that_refuses(ailing: RunningMesh, admin: Api, watch: Watch) -> None:
    booking = Booking.placed(admin, admin.create_event())
    with database(ailing, "postgres") as connection:
        connection.execute("ALTER DATABASE booking ALLOW_CONNECTIONS false")
        try:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'booking'"
            )
            watch.until("NotReady", job="booking_svc")
            # Whoever follows a stream notices with the next event at the latest.
            booking.pay()
            watch.until("StreamIsNotFollowed", job="booking_svc", stream="payment_svc")
            watch.until("LoopHasNoLeader", loop="reconciliation")
            watch.until("DatabaseRefuses", job="booking_svc")
            watch.until("LoopFails")
        finally:
            connection.execute("ALTER DATABASE booking ALLOW_CONNECTIONS true")
    for alert in ("NotReady", "StreamIsNotFollowed", "LoopHasNoLeader"):
        watch.until_over(alert)
