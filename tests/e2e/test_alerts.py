"""Causes the condition of each alert in a running mesh and evaluates its expression on the metrics.

`for` and the texts of alerts are tested by alerts_test.yaml.
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
_DEADLINE_SECONDS = 180.0
CAUSED = {
    "BookingIsSlow",
    "BookingStepsWait",
    "CallsFail",
    "DatabaseRefuses",
    "EventLoopIsSlow",
    "GatewayNoHealthyUpstream",
    "GatewayOverloaded",
    "LoopFails",
    "LoopHasNoLeader",
    "MailsWait",
    "NotReady",
    "Overloaded",
    "DatabasePoolExhausted",
    "ProcessDown",
    "ReconciliationOverdue",
    "RefundBacklog",
    "RefundFailed",
    "StockAuditMismatch",
    "StreamIsLate",
    "StreamIsNotFollowed",
    "WebhooksRefused",
}

RULE_TESTED = {
    # Minutes to weeks without a change.
    "CertificateExpires",
    "ErrorBudgetBurnsFast",
    "ErrorBudgetBurnsSlowly",
    "GatewayCertificateExpires",
    "LoopStopped",
    "ReconciliationGaveUp",
    "RevocationsLag",
    # Not caused in a running mesh yet.
    "PaymentDisputed",
    "PaymentsUnexplained",
    "RedisUnavailable",
    "WaitingListsWait",
    "WebhookDeliveriesFail",
}
"""Not caused here: alerts_test.yaml has their conditions as time series."""


@pytest.fixture(scope="module")
def mesh() -> Iterator[RunningMesh]:
    # No mail server listens on this port.
    with running_mesh(BOXOFFICE_SMTP_URL="smtp://127.0.0.1:9?starttls=false") as running:
        yield running


@pytest.fixture
def api(mesh: RunningMesh) -> Iterator[Api]:
    with httpx.Client(base_url=mesh.url, timeout=60) as client:
        yield Api(client)


@pytest.fixture
def admin(api: Api) -> Api:
    return api.sign_up(admin_secret=ADMIN_SECRET)


class Watch:
    """Scrapes the mesh and evaluates the alerts' expressions."""

    def __init__(self, mesh: RunningMesh) -> None:
        self._targets = json.loads(scrape.path(mesh.home).read_text())
        self._series = Series()
        self.scrape()

    def scrape(self) -> None:
        addresses = [
            (group["labels"], address) for group in self._targets for address in group["targets"]
        ]
        with futures.ThreadPoolExecutor(len(addresses)) as pool:
            pages = pool.map(lambda address: _page(*address), addresses)
            for (labels, address), page in zip(addresses, pages, strict=True):
                self._series.scraped(page, time=time.time(), job=labels["job"], instance=address)

    def holds(self, alert: str, labels: dict[str, str]) -> bool:
        result = evaluate(BY_NAME[alert]["expr"], self._series, time.time())
        return any(labels.items() <= set(series_labels) for series_labels in result)

    def until(
        self, alert: str, *, cause: Callable[[], object] = lambda: None, **labels: str
    ) -> None:
        """Calls `cause` and scrapes until the alert's condition holds."""
        self._wait(alert, labels, cause, expected=True)

    def until_over(self, alert: str, **labels: str) -> None:
        self._wait(alert, labels, lambda: None, expected=False)

    def _wait(
        self, alert: str, labels: dict[str, str], cause: Callable[[], object], *, expected: bool
    ) -> None:
        deadline = time.monotonic() + _DEADLINE_SECONDS
        while True:
            cause()
            self.scrape()
            if self.holds(alert, labels) is expected:
                return
            assert time.monotonic() < deadline, f"{alert}{labels} is not {expected}"
            time.sleep(0.3)


def _page(labels: dict[str, str], address: str) -> str | None:
    path = labels.get("__metrics_path__", "/metrics")
    try:
        answer = httpx.get(f"http://{address}{path}", timeout=_SCRAPE_SECONDS)
    except httpx.HTTPError:
        return None
    return answer.text if answer.is_success else None


@pytest.fixture
def watch(mesh: RunningMesh, admin: Api) -> Watch:
    # A counter without calls has no time series: its first sample would be its increased value, and
    # rate() would not see the increase.
    booking = Booking.placed(admin, admin.create_event())
    booking.pay()
    booking.wait_confirmed()
    return Watch(mesh)


@contextmanager
def stopped(mesh: RunningMesh, process: str) -> Iterator[None]:
    """Suspends a process during the block."""
    pid = mesh.pid(process)
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


@contextmanager
def database(mesh: RunningMesh, name: str) -> Iterator["psycopg.Connection[Any]"]:
    url = libpq_url(PostgresServer(mesh.home).url(name))
    # Without timeouts, because tests hold transactions and locks longer than the role may.
    timeouts = ("transaction", "statement", "lock", "idle_in_transaction_session")
    options = " ".join(f"-c {name}_timeout=0" for name in timeouts)
    with psycopg.connect(url, autocommit=True, options=options) as connection:
        yield connection


@dataclass(frozen=True)
class Booking:
    """A customer's booking with a pending payment."""

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


def test_every_alert_is_caused_in_this_file_or_has_only_a_test_of_its_rule() -> None:
    assert BY_NAME.keys() == CAUSED | RULE_TESTED
    text = Path(__file__).read_text().partition("def test_every_alert")[2]
    assert {name for name in CAUSED if not re.search(rf'[("]{name}"', text)} == set()


def test_every_process_is_a_target_that_answers(mesh: RunningMesh) -> None:
    targets = json.loads(scrape.path(mesh.home).read_text())
    assert {group["labels"]["job"] for group in targets} == {*SERVICES, "gateway"}
    for group in targets:
        for address in group["targets"]:
            assert "boxoffice_ready 1.0" in (page := str(_page(group["labels"], address))) or (
                "envoy_server_live" in page
            )


def test_a_working_mesh_has_no_alerts(watch: Watch) -> None:
    watch.scrape()
    # These two depend on the speed of the machine.
    others = sorted(BY_NAME.keys() - {"BookingIsSlow", "EventLoopIsSlow"})
    assert [alert for alert in others if watch.holds(alert, {})] == []


def test_backlogs_and_stock_differences(mesh: RunningMesh, admin: Api, watch: Watch) -> None:
    """Caused together, because each is measured every 10 to 15 seconds only.

    The queued work is real; its age is written into its row.
    """
    booking, unchecked = [Booking.placed(admin, admin.create_event()) for _ in range(2)]
    with database(mesh, "booking") as connection, database(mesh, "payment") as payments:
        with (
            stopped(mesh, "stock_svc"),
            database(mesh, "booking") as blocking,
            blocking.transaction(),
        ):
            # Reconciliation updates this table with each batch; reads of it are not blocked.
            blocking.execute("LOCK TABLE booking_refunds IN EXCLUSIVE MODE")
            booking.pay()
            age(connection, f"booking_steps WHERE booking_id = '{booking.booking_id}'", "3 minutes")
            age(connection, "mails WHERE status = 'QUEUED'", "40 minutes")
            due = connection.execute(
                "UPDATE bookings SET payment_check_time = now() - interval '20 minutes'"
                " WHERE booking_id = %s AND payment_check_time IS NOT NULL",
                (unchecked.booking_id,),
            )
            # Two refunds that the provider does not make: one is tried again, one waits for staff.
            inserted = payments.execute(
                "INSERT INTO refunds (refund_id, capture_id, payment_id, amount_minor,"
                " currency_code, status, reason, due_time, create_time, update_time)"
                " SELECT gen_random_uuid(), capture_id, payment_id, amount_minor,"
                " currency_code, 'FAILED', 'none', due_time,"
                " now() - interval '20 minutes', now() - interval '5 minutes'"
                " FROM (SELECT * FROM captures LIMIT 1) AS captured,"
                " (VALUES (now() + interval '1 hour'), (NULL)) AS due (due_time)"
            )
            assert (due.rowcount, inserted.rowcount) == (1, 2)
            for alert in ("BookingStepsWait", "MailsWait", "ReconciliationOverdue"):
                watch.until(alert)
            watch.until("RefundBacklog")
            watch.until("RefundFailed")
        payments.execute("DELETE FROM refunds WHERE reason = 'none'")
    change = "UPDATE pools SET sold = sold + %s WHERE event_id = %s"
    event_id = admin.create_event()["eventId"]
    with database(mesh, "stock") as connection:
        connection.execute(change, (1, event_id))
        watch.until("StockAuditMismatch")
        connection.execute(change, (-1, event_id))
    for alert in ("BookingStepsWait", "ReconciliationOverdue", "RefundBacklog", "RefundFailed"):
        watch.until_over(alert)
    watch.until_over("StockAuditMismatch")


def age(connection: "psycopg.Connection[Any]", rows: str, by: str) -> None:
    """Sets the creation time of rows, as soon as there are some."""
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


def test_a_service_that_hangs(mesh: RunningMesh, admin: Api, watch: Watch) -> None:
    order = items(admin.create_event())
    with stopped(mesh, "stock_svc"):
        watch.until("ProcessDown", job="stock_svc")
        watch.until("GatewayNoHealthyUpstream", envoy_cluster_name="stock_svc")
        watch.until("CallsFail", cause=lambda: admin.book(order), rpc="BookingService/PlaceBooking")
    watch.until_over("ProcessDown")
    watch.until_over("GatewayNoHealthyUpstream")


def test_a_service_that_is_slow(mesh: RunningMesh, admin: Api, watch: Watch) -> None:
    order = items(admin.create_event(), 1)

    def book_slowly() -> None:
        with futures.ThreadPoolExecutor(1) as pool, stopped(mesh, "stock_svc"):
            booked = pool.submit(admin.book, order)
            time.sleep(1.5)
            os.kill(mesh.pid("stock_svc"), signal.SIGCONT)
            booked.result()

    watch.until("BookingIsSlow", cause=book_slowly)
    # The suspended process also runs its timers late.
    watch.until("EventLoopIsSlow", cause=book_slowly, job="stock_svc")


def test_more_concurrent_calls_than_connections(
    mesh: RunningMesh, admin: Api, watch: Watch
) -> None:
    async def read(calls: int) -> None:
        headers = {"authorization": f"Bearer {admin.token}"}
        limits = httpx.Limits(max_connections=calls)
        async with httpx.AsyncClient(
            base_url=mesh.url, headers=headers, limits=limits, timeout=60
        ) as client:
            reads = (client.get("/api/v1/bookings") for _ in range(calls))
            for answer in await asyncio.gather(*reads):
                assert answer.status_code in (200, 429, 503, 504), answer.text

    def burst(calls: int) -> None:
        with futures.ThreadPoolExecutor(1) as pool:
            running = pool.submit(asyncio.run, read(calls))
            while not running.done():
                watch.scrape()
                is_exhausted.append(watch.holds("DatabasePoolExhausted", {"job": "booking_svc"}))
            running.result()

    is_exhausted: list[bool] = []
    with database(mesh, "booking") as connection, connection.transaction():
        connection.execute("LOCK TABLE bookings")
        # As many calls as the gateway admits, then more.
        watch.until("Overloaded", cause=lambda: burst(64))
        watch.until("GatewayOverloaded", cause=lambda: burst(300), envoy_cluster_name="booking_svc")
    assert any(is_exhausted)
    watch.until_over("DatabasePoolExhausted")


def test_a_domain_event_whose_transaction_commits_late(mesh: RunningMesh, watch: Watch) -> None:
    def commit_late() -> None:
        with database(mesh, "payment") as connection:
            # A copy of an event that was applied: applying it again has no effect.
            connection.execute(
                "INSERT INTO outbox (aggregate_id, event_type, payload, create_time)"
                " SELECT aggregate_id, event_type, payload, now() - interval '7 seconds'"
                " FROM outbox ORDER BY sequence LIMIT 1"
            )

    watch.until("StreamIsLate", cause=commit_late, job="payment_svc")


def test_a_database_that_refuses_connections(mesh: RunningMesh, admin: Api, watch: Watch) -> None:
    booking = Booking.placed(admin, admin.create_event())
    with database(mesh, "postgres") as connection:
        connection.execute("ALTER DATABASE booking ALLOW_CONNECTIONS false")
        try:
            connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'booking'"
            )
            watch.until("NotReady", job="booking_svc")
            # A consumer notices it with the next event at the latest.
            booking.pay()
            watch.until("StreamIsNotFollowed", job="booking_svc", stream="payment_svc")
            watch.until("LoopHasNoLeader", loop="reconciliation")
            watch.until("DatabaseRefuses", job="booking_svc")
            watch.until("LoopFails")
        finally:
            connection.execute("ALTER DATABASE booking ALLOW_CONNECTIONS true")
    for alert in ("NotReady", "StreamIsNotFollowed", "LoopHasNoLeader"):
        watch.until_over(alert)
