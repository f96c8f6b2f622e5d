"""Money under faults: a mesh sells through stand-ins for Stripe and Razorpay that fail.

    python -m bench.money --payments 2000
    python -m bench.money --payments 2000 --place-for 600

Webhooks are lost and duplicated, calls end in 5xx, 429 and timeouts, also after they were
carried out, and payment_svc is killed repeatedly. At the end the ledgers of the providers,
payment_svc and booking_svc must agree exactly; otherwise the exit status is 1.
"""

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import Any

import httpx

from mesh.ids import new_id
from mesh.paths import ROOT
from testing.providers import razorpay as razorpay_side
from testing.providers import stripe as stripe_side
from testing.providers.razorpay import RazorpayStandIn
from testing.providers.server import Chances, Entry, Fault, StandIn
from testing.providers.stripe import StripeStandIn

PASSWORD = "Curtain-Up-2026!"
ADMIN_SECRET = "the-admin-secret-of-the-money-benchmark"
PRICES = {"INR": 150_000, "JPY": 8_000, "KWD": 15_000, "EUR": 4_500}
BOOKINGS_PER_CUSTOMER = 5
WORKERS = 16
KILL_EVERY_SECONDS = 12.0
SETTLE_SECONDS = 900.0
PATIENCE_SECONDS = 300.0

CHANCES = Chances(
    faults={
        Fault.ERROR: 0.03,
        Fault.ERROR_AFTER: 0.05,
        Fault.TIMEOUT_AFTER: 0.01,
        Fault.THROTTLE: 0.03,
        Fault.GARBAGE_AFTER: 0.02,
    },
    webhook_lost=0.3,
    webhook_twice=0.2,
)


@dataclass
class Sale:
    """A booking and the actions of its customer."""

    booking_id: str
    payment_id: str
    provider: str
    currency: str
    customer: dict[str, str]
    is_paid: bool = False
    is_cancelled: bool = False
    parts: tuple[int, ...] = ()

    def expected_refund(self, captured: int, booking: dict[str, Any]) -> int:
        """The quote of a cancellation, or the partial refunds of staff."""
        if self.is_cancelled:
            return int(booking["refund"]["amount"]["amountMinor"])
        return sum(self.parts) if captured else 0


@dataclass
class Run:
    client: httpx.AsyncClient
    stand_ins: dict[str, StandIn]
    home: Path
    admin: dict[str, str] = field(default_factory=dict)
    events: dict[str, dict[str, Any]] = field(default_factory=dict)
    sales: list[Sale] = field(default_factory=list)
    counts: Counter[str] = field(default_factory=Counter)
    random: Random = field(default_factory=lambda: Random(11))

    async def call(
        self, verb: str, path: str, *, headers: dict[str, str], body: Any = None
    ) -> httpx.Response:
        """A call that is repeated with the same key after errors that a retry can resolve."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while True:
            try:
                answer = await self.client.request(verb, path, headers=headers, json=body)
            except httpx.TransportError:
                answer = None
            if answer is not None and answer.status_code not in {429, 502, 503, 504, 500}:
                is_running = answer.status_code == 409 and "IN_PROGRESS" in answer.text
                if not is_running:
                    return answer
            if answer is not None:
                self.counts[f"http {answer.status_code}"] += 1
            if time.monotonic() > deadline:
                raise RuntimeError(f"{verb} {path}: {answer and answer.text}")
            await asyncio.sleep(0.3 + self.random.random() * 0.5)

    async def sign_up(self, secret: str | None = None) -> dict[str, str]:
        account = {"email": f"{new_id()}@example.com", "password": PASSWORD, "fullName": "Mira"}
        path = "/api/v1/auth/register"
        if secret is not None:
            path, account["adminSecret"] = "/api/v1/auth/admin/register", secret
        await self.call("POST", path, headers={}, body=account)
        session = await self.call(
            "POST",
            "/api/v1/auth/login",
            headers={},
            body={"email": account["email"], "password": PASSWORD},
        )
        return {"authorization": f"Bearer {session.json()['accessToken']}"}

    async def prepare(self) -> None:
        self.admin = await self.sign_up(ADMIN_SECRET)
        for currency, price in PRICES.items():
            event = {
                "name": f"Monsoon Nights in {currency}",
                "timeZone": "Asia/Kolkata",
                "startTime": "2099-07-04T14:00:00Z",
                "saleStartTime": "2020-01-01T00:00:00Z",
                "currencyCode": currency,
                "offers": [
                    {
                        "name": "Floor",
                        "price": {"currencyCode": currency, "amountMinor": str(price)},
                        "capacity": 100_000,
                    }
                ],
            }
            made = await self.call("POST", "/api/v1/events", headers=self.admin, body=event)
            if made.status_code != 201:
                raise RuntimeError(made.text)
            self.events[currency] = made.json()

    async def customer(self, number: int, until: float) -> None:
        if time.monotonic() > until:
            return
        headers = await self.sign_up()
        for _ in range(number):
            await self.buy(headers)

    async def buy(self, customer: dict[str, str]) -> None:
        provider = self.random.choice(["stripe", "razorpay"])
        currency = self.random.choice(list(PRICES))
        event = self.events[currency]
        body = {
            "eventId": event["eventId"],
            "items": [
                {
                    "offerId": event["offers"][0]["offerId"],
                    "quantity": self.random.randint(1, 2),
                }
            ],
            "checkout": {"provider": provider},
        }
        placed = await self.call(
            "POST",
            "/api/v1/bookings",
            headers={**customer, "idempotency-key": str(new_id())},
            body=body,
        )
        if placed.status_code != 201:
            raise RuntimeError(placed.text)
        booking = placed.json()
        payment_id = booking["payment"]["paymentId"]
        sale = Sale(booking["bookingId"], payment_id, provider, currency, customer)
        self.sales.append(sale)
        await self.pay(sale)

    async def pay(self, sale: Sale) -> None:
        """The customer pays on the provider's page, fails first, only authorises, or leaves."""
        stand_in: Any = self.stand_ins[sale.provider]
        session = self.session(sale)
        chance = self.random.random()
        if chance < 0.06:
            return
        sale.is_paid = True
        if chance < 0.16:
            stand_in.pay(session, declined="insufficient_funds")
            # After a decline the same page can be paid.
            await asyncio.sleep(self.random.random())
        if sale.provider == "razorpay" and 0.16 <= chance < 0.3:
            stand_in.pay(session, authorized_only=True)
            return
        with suppress(ValueError):
            stand_in.pay(session)
            return
        # The payment was cancelled in the meantime.
        sale.is_paid = False
        self.counts["page closed"] += 1

    def session(self, sale: Sale) -> str:
        """The provider's id of the payment."""
        stand_in = self.stand_ins[sale.provider]
        field = "client_reference_id" if isinstance(stand_in, StripeStandIn) else "reference_id"
        return next(
            name
            for name, session in stand_in.opened.copy().items()
            if session[field] == sale.payment_id
        )

    async def kill(self) -> None:
        """Kills payment_svc repeatedly, KILL_EVERY_SECONDS after it answers again."""
        while True:
            await asyncio.sleep(KILL_EVERY_SECONDS)
            with suppress(OSError, ValueError, KeyError):
                pid = json.loads((self.home / "run" / "payment_svc.pid").read_text())["pid"]
                os.kill(pid, signal.SIGKILL)
                self.counts["kills of payment_svc"] += 1
            await asyncio.sleep(1)
            await until(self._answers, SETTLE_SECONDS)

    async def _answers(self) -> bool:
        """Whether payment_svc answers."""
        with suppress(httpx.TransportError):
            return (await self.client.get("/webhooks/health")).status_code == 200
        return False

    async def booking(self, sale: Sale) -> dict[str, Any]:
        return await self.read(f"/api/v1/bookings/{sale.booking_id}")

    async def payment(self, sale: Sale) -> dict[str, Any]:
        return await self.read(f"/api/v1/payments/{sale.payment_id}")

    async def read(self, path: str) -> dict[str, Any]:
        answer = await self.call("GET", path, headers=self.admin)
        if answer.status_code != 200:
            raise RuntimeError(f"{path}: {answer.text}")
        resource: dict[str, Any] = answer.json()
        return resource

    async def refund(self, sale: Sale) -> None:
        """After the payment some customers cancel, and some get two partial refunds of staff."""
        if not sale.is_paid:
            return
        await until(lambda: self._is(sale, "CONFIRMED"), SETTLE_SECONDS)
        chance = self.random.random()
        if chance < 0.35:
            answer = await self.call(
                "POST",
                f"/api/v1/bookings/{sale.booking_id}/cancel",
                headers={**sale.customer, "idempotency-key": str(new_id())},
                body={},
            )
            if answer.status_code != 200:
                raise RuntimeError(answer.text)
            sale.is_cancelled = True
        elif chance < 0.55:
            sale.parts = (1_000, 500)
            for part in sale.parts:
                key = str(new_id())
                # Two calls with one key are one refund.
                for _ in range(2):
                    await self.call(
                        "POST",
                        f"/api/v1/payments/{sale.payment_id}/refund",
                        headers={**self.admin, "idempotency-key": key},
                        body={
                            "amount": {"currencyCode": sale.currency, "amountMinor": str(part)},
                            "reason": "rain",
                        },
                    )

    async def _is(self, sale: Sale, status: str) -> bool:
        return bool((await self.booking(sale))["status"] == status)

    async def _is_refunded(self) -> bool:
        """Whether all refunds are completed, in the ledgers of payment_svc and of the providers."""
        answer = await self.call("GET", "/api/v1/book-rows?page_size=1000", headers=self.admin)
        booked = sum(int(row.get("refundedMinor", 0)) for row in answer.json().get("rows", []))
        before = self._refunded()
        await asyncio.sleep(3)
        return booked == before == self._refunded() and self._cancelled_are_refunded()

    def _refunded(self) -> int:
        return sum(refund.amount for refund in self._refunds())

    def _cancelled_are_refunded(self) -> bool:
        refunded = {refund.payment for refund in self._refunds()}
        return all(sale.payment_id in refunded for sale in self.sales if sale.is_cancelled)

    def _refunds(self) -> list[Entry]:
        return [
            entry
            for stand_in in self.stand_ins.values()
            for entry in stand_in.ledger
            if entry.kind == "REFUND"
        ]

    async def audit(self) -> list[str]:
        """Every difference between the providers, payment_svc, its ledger and booking_svc."""
        faults: list[str] = []
        totals: Counter[tuple[str, str]] = Counter()
        await in_parallel([self._audit_sale(sale, faults, totals) for sale in self.sales], WORKERS)
        return faults + await self._audit_ledger(totals)

    async def _audit_sale(
        self, sale: Sale, faults: list[str], totals: Counter[tuple[str, str]]
    ) -> None:
        ledger = self.stand_ins[sale.provider].ledger
        entries = [entry for entry in ledger if entry.payment == sale.payment_id]
        captured = sum(entry.amount for entry in entries if entry.kind == "CAPTURE")
        refunded = sum(entry.amount for entry in entries if entry.kind == "REFUND")
        totals[sale.currency, "captured"] += captured
        totals[sale.currency, "refunded"] += refunded
        payment, booking = await self.payment(sale), await self.booking(sale)
        name = f"{sale.provider} {sale.payment_id} {payment['status']} {booking['status']}"
        self.counts[f"{payment['status']} for {booking['status']}"] += 1
        amount = int(payment["amount"]["amountMinor"])
        if sum(entry.kind == "CAPTURE" for entry in entries) > 1:
            faults.append(f"{name}: charged twice")
        is_paid = payment["status"] in {"CAPTURED", "PARTIALLY_REFUNDED", "REFUNDED"}
        if captured != (amount if is_paid else 0):
            faults.append(f"{name}: {captured} captured of {amount}")
        if int(payment["refunded"]["amountMinor"]) != refunded:
            faults.append(f"{name}: {refunded} refunded, payment_svc has {payment['refunded']}")
        expected_refund = sale.expected_refund(captured, booking)
        if refunded != expected_refund:
            faults.append(f"{name}: {refunded} refunded, {expected_refund} requested")
        expected = {"CANCELLED"} if sale.is_cancelled else {"CONFIRMED"}
        if captured and booking["status"] not in expected:
            faults.append(f"{name}: paid, but {booking['status']}")
        if not captured and booking["status"] in {"CONFIRMED", "COMPLETED"}:
            faults.append(f"{name}: confirmed without a capture")

    async def _audit_ledger(self, totals: Counter[tuple[str, str]]) -> list[str]:
        faults = []
        answer = await self.call("GET", "/api/v1/book-rows?page_size=1000", headers=self.admin)
        booked: Counter[tuple[str, str]] = Counter()
        for row in answer.json()["rows"]:
            booked[row["currencyCode"], "captured"] += int(row["capturedMinor"])
            booked[row["currencyCode"], "refunded"] += int(row["refundedMinor"])
            booked[row["currencyCode"], "suspense"] += int(row["suspenseMinor"])
        for currency in PRICES:
            for side in ("captured", "refunded"):
                if booked[currency, side] != totals[currency, side]:
                    faults.append(
                        f"payment_svc's ledger: {booked[currency, side]} {currency} {side},"
                        f" the providers have {totals[currency, side]}"
                    )
            print(
                f"  {currency}  captured {totals[currency, 'captured']:>12,}"
                f"  refunded {totals[currency, 'refunded']:>11,}"
                f"  payment_svc: {booked[currency, 'captured']:>12,} {booked[currency, 'refunded']:>11,}"
            )
        listed = await self.call("GET", "/api/v1/reconciliations/unexplained", headers=self.admin)
        faults += [f"unexplained: {item}" for item in listed.json().get("unexplained", [])]
        for name, stand_in in self.stand_ins.items():
            faults += [f"{name}: API violation: {text}" for text in stand_in.violations[:5]]
        return faults


async def until(condition: Callable[[], Awaitable[bool]], seconds: float) -> None:
    """Polls with growing pauses, so that the polls do not load the mesh."""
    deadline = time.monotonic() + seconds
    pause_seconds = 2.0
    while not await condition():
        if time.monotonic() > deadline:
            raise TimeoutError("the condition was not met in time")
        await asyncio.sleep(pause_seconds)
        pause_seconds = min(pause_seconds * 1.5, 15)


async def in_parallel(jobs: list[Awaitable[None]], limit: int) -> None:
    slots = asyncio.Semaphore(limit)

    async def run_job(job: Awaitable[None]) -> None:
        async with slots:
            await job

    await asyncio.gather(*map(run_job, jobs))


async def drive(run: Run, number: int, place_for: float) -> list[str]:
    await run.prepare()
    killer = asyncio.create_task(run.kill())
    started = time.monotonic()
    await in_parallel(
        [
            run.customer(BOOKINGS_PER_CUSTOMER, started + place_for)
            for _ in range(number // BOOKINGS_PER_CUSTOMER)
        ],
        WORKERS,
    )
    print(f"{len(run.sales)} bookings placed in {time.monotonic() - started:.0f} s", flush=True)
    await in_parallel([run.refund(sale) for sale in run.sales], 200)
    print(f"all paid bookings confirmed after {time.monotonic() - started:.0f} s", flush=True)
    killer.cancel()
    await until(run._is_refunded, SETTLE_SECONDS)
    print(f"all refunds completed after {time.monotonic() - started:.0f} s", flush=True)
    paid = sum(sale.is_paid for sale in run.sales)
    cancelled = sum(sale.is_cancelled for sale in run.sales)
    print(f"{paid} paid, {cancelled} cancelled; {dict(run.counts)}", flush=True)
    run.counts.clear()
    faults = await run.audit()
    print(f"audited after {time.monotonic() - started:.0f} s; {dict(run.counts)}", flush=True)
    return faults


async def main(number: int, place_for: float) -> int:
    gateway = int(os.environ.get("BOXOFFICE_GATEWAY_PORT", "18150"))
    base = int(os.environ.get("BOXOFFICE_PORT_BASE", "51500"))
    url = f"http://127.0.0.1:{gateway}"
    with ExitStack() as stack:
        folder = stack.enter_context(
            tempfile.TemporaryDirectory(prefix="boxoffice-", ignore_cleanup_errors=True)
        )
        stripe, razorpay = StripeStandIn(), RazorpayStandIn()
        stack.enter_context(stripe.running(webhook_url=f"{url}/webhooks/stripe"))
        stack.enter_context(razorpay.running(webhook_url=f"{url}/webhooks/razorpay"))
        stripe.chances = razorpay.chances = CHANCES
        variables = {
            "BOXOFFICE_HOME": folder,
            "BOXOFFICE_GATEWAY_PORT": str(gateway),
            "BOXOFFICE_PORT_BASE": str(base),
            "BOXOFFICE_ENVOY_ADMIN_PORT": str(gateway + 1),
            "BOXOFFICE_RATE_LIMIT_SCALE": "1000",
            "BOXOFFICE_PASSWORD_COST": "4",
            # Longer than a run: customers cancel at its end.
            "BOXOFFICE_ACCESS_TOKEN_TTL_SECONDS": "86400",
            "BOXOFFICE_ADMIN_REGISTRATION_SECRET": ADMIN_SECRET,
            "BOXOFFICE_STRIPE_SECRET_KEY": stripe_side.SECRET_KEY,
            "BOXOFFICE_STRIPE_WEBHOOK_SECRETS": stripe_side.WEBHOOK_SECRET,
            "BOXOFFICE_STRIPE_API_BASE": stripe.url,
            "BOXOFFICE_RAZORPAY_KEY_ID": razorpay_side.KEY_ID,
            "BOXOFFICE_RAZORPAY_KEY_SECRET": razorpay_side.KEY_SECRET,
            "BOXOFFICE_RAZORPAY_WEBHOOK_SECRETS": razorpay_side.WEBHOOK_SECRET,
            "BOXOFFICE_RAZORPAY_API_BASE": razorpay.url,
        }
        log = Path(folder) / "up.log"
        with log.open("wb") as output:
            mesh = subprocess.Popen(  # noqa: ASYNC220 - before anything else runs
                [sys.executable, "-m", "launcher", "up"],
                cwd=ROOT,
                env={**os.environ, **variables},
                stdout=output,
                stderr=subprocess.STDOUT,
            )
        try:
            async with httpx.AsyncClient(base_url=url, timeout=20, trust_env=False) as client:
                await until(lambda: _is_up(client), 120)
                run = Run(client, {"stripe": stripe, "razorpay": razorpay}, Path(folder))
                faults = await drive(run, number, place_for)
        finally:
            mesh.send_signal(signal.SIGTERM)
            mesh.wait(60)
    for fault in faults[:40]:
        print("  ✗", fault)
    print("all ledgers agree" if not faults else f"{len(faults)} differences")
    return 1 if faults else 0


async def _is_up(client: httpx.AsyncClient) -> bool:
    with suppress(httpx.TransportError):
        return (await client.get("/health")).status_code == 200
    return False


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--payments", type=int, default=2000)
    parser.add_argument(
        "--place-for",
        type=float,
        default=float("inf"),
        metavar="SECONDS",
        help="place no more bookings after this time",
    )
    arguments = parser.parse_args()
    sys.exit(asyncio.run(main(arguments.payments, arguments.place_for)))
