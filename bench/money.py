"""Money under faults: a mesh sells through stand-ins for Stripe and Razorpay that fail.

    python -m bench.money --payments 2000
    python -m bench.money --payments 2000 --place-for 600

Webhooks get lost and come twice, calls end in 5xx, timeouts and 429 after they were done,
and payment_svc is killed again and again. In the end the providers' own ledgers,
payment_svc, booking_svc and the book must agree to the last minor unit. Exit status 1
when they do not. With --place-for no more bookings are placed after so many seconds.
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
from testing.providers.server import Chances, Fault, StandIn
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
    """One booking and what its customer did."""

    booking_id: str
    payment_id: str
    provider: str
    currency: str
    customer: dict[str, str]
    is_paid: bool = False
    is_cancelled: bool = False
    parts: tuple[int, ...] = ()

    def given_back(self, taken: int, booking: dict[str, Any]) -> int:
        """What was promised: the quote of a cancellation, or the parts that staff gave."""
        if self.is_cancelled:
            return int(booking["refund"]["amount"]["amountMinor"])
        return sum(self.parts) if taken else 0


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
        """A call as a patient client makes it: again, with the same key, while it may help."""
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
        who = await self.sign_up()
        for _ in range(number):
            await self.buy(who)

    async def buy(self, who: dict[str, str]) -> None:
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
            headers={**who, "idempotency-key": str(new_id())},
            body=body,
        )
        if placed.status_code != 201:
            raise RuntimeError(placed.text)
        booking = placed.json()
        sale = Sale(booking["bookingId"], booking["payment"]["paymentId"], provider, currency, who)
        self.sales.append(sale)
        await self.pay(sale)

    async def pay(self, sale: Sale) -> None:
        """The customer on the provider's page: pays, fails first, pays twice over, or leaves."""
        stand_in: Any = self.stand_ins[sale.provider]
        session = self.session(sale)
        fate = self.random.random()
        if fate < 0.06:
            return
        sale.is_paid = True
        if fate < 0.16:
            stand_in.pay(session, declined="insufficient_funds")
            # A booking whose payment failed can still be paid on the same page.
            await asyncio.sleep(self.random.random())
        if sale.provider == "razorpay" and 0.16 <= fate < 0.3:
            stand_in.pay(session, authorized_only=True)
            return
        with suppress(ValueError):
            stand_in.pay(session)
            return
        # Given up meanwhile: it cannot be paid any more.
        sale.is_paid = False
        self.counts["page closed"] += 1

    def session(self, sale: Sale) -> str:
        stand_in: Any = self.stand_ins[sale.provider]
        if isinstance(stand_in, StripeStandIn):
            found = (
                name
                for name, one in stand_in.sessions.copy().items()
                if one["client_reference_id"] == sale.payment_id
            )
        else:
            found = (
                name
                for name, one in stand_in.links.copy().items()
                if one["reference_id"] == sale.payment_id
            )
        return next(found)

    async def kill(self) -> None:
        """Kills payment_svc again and again, each time after it was well for a while.

        The launcher starts it again; on a busy machine that takes longer than the pause.
        """
        while True:
            await asyncio.sleep(KILL_EVERY_SECONDS)
            with suppress(OSError, ValueError, KeyError):
                pid = json.loads((self.home / "run" / "payment_svc.pid").read_text())["pid"]
                os.kill(pid, signal.SIGKILL)
                self.counts["kills of payment_svc"] += 1
            await asyncio.sleep(1)
            await until(self._takes_webhooks, SETTLE_SECONDS)

    async def _takes_webhooks(self) -> bool:
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
        found: dict[str, Any] = answer.json()
        return found

    async def refund(self, sale: Sale) -> None:
        """Once paid: some cancel, some get two parts back from staff."""
        if not sale.is_paid:
            return
        await until(lambda: self._is(sale, "CONFIRMED"), SETTLE_SECONDS)
        fate = self.random.random()
        if fate < 0.35:
            answer = await self.call(
                "POST",
                f"/api/v1/bookings/{sale.booking_id}/cancel",
                headers={**sale.customer, "idempotency-key": str(new_id())},
                body={},
            )
            if answer.status_code != 200:
                raise RuntimeError(answer.text)
            sale.is_cancelled = True
        elif fate < 0.55:
            sale.parts = (1_000, 500)
            for part in sale.parts:
                key = str(new_id())
                # Twice with one key: one refund.
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

    async def _is_settled(self) -> bool:
        """No refund is on its way: what was promised is what the ledgers say."""
        answer = await self.call("GET", "/api/v1/book-rows?page_size=1000", headers=self.admin)
        booked = sum(int(row.get("refundedMinor", 0)) for row in answer.json().get("rows", []))
        before = self._refunded()
        await asyncio.sleep(3)
        return booked == before == self._refunded() and self._promised_is_done()

    def _refunded(self) -> int:
        return sum(
            one.amount
            for stand_in in self.stand_ins.values()
            for one in stand_in.ledger
            if one.kind == "REFUND"
        )

    def _promised_is_done(self) -> bool:
        refunded = {
            one.payment
            for stand_in in self.stand_ins.values()
            for one in stand_in.ledger
            if one.kind == "REFUND"
        }
        return all(sale.payment_id in refunded for sale in self.sales if sale.is_cancelled)

    async def audit(self) -> list[str]:
        """Every difference between the four; none is what we want."""
        faults: list[str] = []
        totals: Counter[tuple[str, str]] = Counter()
        await in_parallel([self._audit_sale(sale, faults, totals) for sale in self.sales], WORKERS)
        return faults + await self._audit_book(totals)

    async def _audit_sale(
        self, sale: Sale, faults: list[str], totals: Counter[tuple[str, str]]
    ) -> None:
        entries = [
            one for one in self.stand_ins[sale.provider].ledger if one.payment == sale.payment_id
        ]
        taken = sum(one.amount for one in entries if one.kind == "CAPTURE")
        back = sum(one.amount for one in entries if one.kind == "REFUND")
        totals[sale.currency, "captured"] += taken
        totals[sale.currency, "refunded"] += back
        payment, booking = await self.payment(sale), await self.booking(sale)
        name = f"{sale.provider} {sale.payment_id} {payment['status']} {booking['status']}"
        self.counts[f"{payment['status']} for {booking['status']}"] += 1
        amount = int(payment["amount"]["amountMinor"])
        if sum(one.kind == "CAPTURE" for one in entries) > 1:
            faults.append(f"{name}: charged twice")
        is_paid = payment["status"] in {"CAPTURED", "PARTIALLY_REFUNDED", "REFUNDED"}
        if taken != (amount if is_paid else 0):
            faults.append(f"{name}: {taken} taken of {amount}")
        if int(payment["refunded"]["amountMinor"]) != back:
            faults.append(f"{name}: {back} given back, {payment['refunded']} known")
        if back != sale.given_back(taken, booking):
            faults.append(f"{name}: {back} given back, {sale.given_back(taken, booking)} asked for")
        expected = {"CANCELLED"} if sale.is_cancelled else {"CONFIRMED"}
        if taken and booking["status"] not in expected:
            faults.append(f"{name}: paid, but {booking['status']}")
        if not taken and booking["status"] in {"CONFIRMED", "COMPLETED"}:
            faults.append(f"{name}: confirmed without money")

    async def _audit_book(self, totals: Counter[tuple[str, str]]) -> list[str]:
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
                        f"book: {booked[currency, side]} {currency} {side},"
                        f" the ledgers say {totals[currency, side]}"
                    )
            print(
                f"  {currency}  captured {totals[currency, 'captured']:>12,}"
                f"  refunded {totals[currency, 'refunded']:>11,}"
                f"  book: {booked[currency, 'captured']:>12,} {booked[currency, 'refunded']:>11,}"
            )
        listed = await self.call("GET", "/api/v1/reconciliations/unexplained", headers=self.admin)
        faults += [f"unexplained: {one}" for one in listed.json().get("unexplained", [])]
        for name, stand_in in self.stand_ins.items():
            faults += [f"{name} complains: {text}" for text in stand_in.complaints[:5]]
        return faults


async def until(condition: Callable[[], Awaitable[bool]], seconds: float) -> None:
    """Asks ever less often: those who wait must not be what keeps the mesh busy."""
    deadline = time.monotonic() + seconds
    pause_seconds = 2.0
    while not await condition():
        if time.monotonic() > deadline:
            raise TimeoutError("it never came to that")
        await asyncio.sleep(pause_seconds)
        pause_seconds = min(pause_seconds * 1.5, 15)


async def in_parallel(jobs: list[Awaitable[None]], limit: int) -> None:
    slots = asyncio.Semaphore(limit)

    async def one(job: Awaitable[None]) -> None:
        async with slots:
            await job

    await asyncio.gather(*map(one, jobs))


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
    print(f"all paid ones confirmed after {time.monotonic() - started:.0f} s", flush=True)
    killer.cancel()
    await until(run._is_settled, SETTLE_SECONDS)
    print(f"all refunds done after {time.monotonic() - started:.0f} s", flush=True)
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
            # Longer than any run: a customer comes back at its end to cancel.
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
    print("agree to the last minor unit" if not faults else f"{len(faults)} differences")
    return 1 if faults else 0


async def _is_up(client: httpx.AsyncClient) -> bool:
    with suppress(httpx.TransportError):
        return (await client.get("/health")).status_code == 200
    return False


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--payments", type=int, default=2000)
    parser.add_argument("--place-for", type=float, default=float("inf"), metavar="SECONDS")
    arguments = parser.parse_args()
    sys.exit(asyncio.run(main(arguments.payments, arguments.place_for)))
