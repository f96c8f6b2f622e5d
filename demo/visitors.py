"""Visitors of the on-sale: in the waiting room, then buying, or on the waiting list. And bots.

All are clients of the REST API. Each visitor has an address of its own, as behind a load balancer.
"""

import asyncio
import hashlib
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from uuid import UUID

from chaos.checks.evidence import Order
from chaos.client import DEADLINE_SECONDS, Api, Json, RefusedError, UnansweredError
from chaos.workload.journal import Journal

JOIN, POLL, PLACE = "JoinQueue", "GetQueuePosition", "PlaceBooking"
PROOF_BITS = 8

_PASSWORD = "Front-Row-2026!"
_ABSENT_SHARE = 0.12
_WALKS_AWAY_SHARE = 0.2
_LISTED_SHARE = 0.04
_LISTED_SECONDS = 45.0
_WATCH_SECONDS = 45.0
_PAUSE_SECONDS = 2.0
_POLLERS = 8
_MOST_PLACES = 4
_ENDED = frozenset({"CONFIRMED", "CANCELLED", "FAILED", "EXPIRED"})
_BITS_OF_DIGEST = 256
_SECONDS_PER_MINUTE = 60


@dataclass
class Sale:
    """The event, and what its visitors see. `positions` are by the number of the ticket.

    `refused_bots` counts by what the bots did and why that was refused.
    """

    event_id: str
    offer_ids: tuple[str, ...]
    run: str
    positions: dict[int, int] = field(default_factory=dict)
    joined: int = 0
    admitted: int = 0
    absent: int = 0
    listed: int = 0
    offered: int = 0
    refused_bots: Counter[tuple[str, str]] = field(default_factory=Counter)

    @property
    def path(self) -> str:
        return f"/api/v1/events/{self.event_id}"


def proof_of_work(event_id: str, randomness: random.Random) -> str:
    """As docs/queueing.md describes it."""
    prefix = f"{int(time.time()) // _SECONDS_PER_MINUTE}.{randomness.getrandbits(64):016x}."
    counter = 0
    while True:
        digest = hashlib.sha256(f"boxoffice-queue:{event_id}:{prefix}{counter}".encode()).digest()
        if int.from_bytes(digest, "big") >> (_BITS_OF_DIGEST - PROOF_BITS) == 0:
            return f"{prefix}{counter}"
        counter += 1


def address_of(number: int) -> str:
    """Of a visitor: in 10.0.0.0/8."""
    return f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"


class Client:
    """Calls from one address, of one account once it has signed up."""

    def __init__(self, sale: Sale, api: Api, *, number: int, address: str, seed: str) -> None:
        self.sale = sale
        self.random = random.Random(seed)
        self._api = api
        self._number = number
        self._address = address
        self.token: str | None = None
        self.customer_id = ""

    async def call(
        self,
        method: str,
        path: str,
        body: Json | None = None,
        *,
        key: str | None = None,
        label: str = "",
        is_patient: bool = True,
    ) -> Json:
        """Without patience there is no second attempt, e.g. at a rate limit."""
        seconds = DEADLINE_SECONDS if is_patient else 0.0
        return await self._api.call(
            method,
            path,
            body=body,
            token=self.token,
            key=key,
            label=label,
            address=self._address,
            deadline_seconds=seconds,
        )

    async def sign_up(self) -> None:
        name = f"visitor.{self.sale.run}.{self._number}"
        account = {"email": f"{name}@example.com", "password": _PASSWORD}
        try:
            await self.call("POST", "/api/v1/auth/register", {**account, "fullName": "A Visitor"})
        except RefusedError as refusal:
            # The answer to an earlier attempt was lost; signing in proves that the account exists.
            if refusal.reason != "EMAIL_ALREADY_REGISTERED" or refusal.is_first:
                raise
        session = await self.call("POST", "/api/v1/auth/login", account)
        self.token, self.customer_id = session["accessToken"], session["user"]["userId"]

    async def join(self) -> Json:
        proof = proof_of_work(self.sale.event_id, self.random)
        return await self.call(
            "POST", f"{self.sale.path}/queue", {"proofOfWork": proof}, label=JOIN
        )

    async def poll(self, ticket: Json) -> Json:
        ticket = await self.call("GET", f"/api/v1/queue/{ticket['ticketId']}", label=POLL)
        if "position" in ticket:
            self.sale.positions[ticket["number"]] = ticket["position"]
        return ticket

    def new_key(self) -> str:
        return str(UUID(int=self.random.getrandbits(128), version=4))


class Visitor(Client):
    """One visitor. Random choices come from the seed."""

    def __init__(self, sale: Sale, api: Api, journal: Journal, *, number: int, seed: int) -> None:
        super().__init__(
            sale, api, number=number, address=address_of(number), seed=f"{seed}:{number}"
        )
        self._journal = journal
        self._doing = ""

    async def run(self, arrives_after: float) -> None:
        """Starts after `arrives_after` seconds; ends when done or refused."""
        await asyncio.sleep(arrives_after)
        self._journal.active += 1
        try:
            await self._visit()
        except RefusedError as refusal:
            self._journal.refusals[self._doing, refusal.reason] += 1
        except UnansweredError as error:
            self._journal.unanswered.append(f"{self._doing}: {error}")
        except (KeyError, TypeError, ValueError) as error:
            self._journal.violations.append(f"{self._doing}: unexpected answer, {error!r}")
        finally:
            self._journal.active -= 1
            self._journal.done += 1

    async def _visit(self) -> None:
        self._doing = "joining the queue"
        ticket = await self.join()
        self.sale.joined += 1
        if self.random.random() < _ABSENT_SHARE:
            self.sale.absent += 1
            return
        self._doing = "waiting in the queue"
        while ticket["state"] == "WAITING":
            await asyncio.sleep(ticket["pollAfterSeconds"])
            ticket = await self.poll(ticket)
        if ticket["state"] == "ADMITTED":
            await self._buy(ticket)
        elif ticket["state"] == "ENDED" and self.random.random() < _LISTED_SHARE:
            await self.sign_up()
            await self._wait_on_list()

    async def _buy(self, ticket: Json) -> None:
        self.sale.admitted += 1
        self._doing = "signing up"
        await self.sign_up()
        self._doing = "claiming the admission"
        ticket = await self.poll(ticket)
        if "admissionToken" not in ticket:
            return
        self._doing = "booking"
        try:
            order, booking = await self._place(ticket["admissionToken"])
        except RefusedError as refusal:
            if refusal.reason != "SOLD_OUT":
                raise
            self._journal.refusals[self._doing, refusal.reason] += 1
            await self._wait_on_list()
            return
        if self.random.random() >= _WALKS_AWAY_SHARE:
            await self._pay(order, booking)

    def _items(self) -> list[Json]:
        quantity = self.random.randint(1, _MOST_PLACES)
        return [{"offerId": self.random.choice(self.sale.offer_ids), "quantity": quantity}]

    async def _place(self, admission_token: str) -> tuple[Order, Json]:
        order = Order(key=self.new_key(), customer_id=self.customer_id)
        self._journal.orders.append(order)
        clicked_at = time.monotonic()
        body = {
            "eventId": self.sale.event_id,
            "items": self._items(),
            "admissionToken": admission_token,
        }
        booking = await self._recorded(
            order, lambda: self.call("POST", "/api/v1/bookings", body, key=order.key, label=PLACE)
        )
        self._journal.placed(clicked_at)
        return order, booking

    async def _recorded(self, order: Order, work: Callable[[], Awaitable[Json]]) -> Json:
        try:
            booking = await work()
        except RefusedError as refusal:
            order.is_uncertain |= not refusal.is_first
            raise
        except (UnansweredError, asyncio.CancelledError):
            order.is_uncertain = True
            raise
        order.booking_ids.append(booking["bookingId"])
        return booking

    async def _pay(self, order: Order, booking: Json) -> None:
        path = f"/api/v1/bookings/{booking['bookingId']}"
        self._doing = "checking out"
        booking = await self.call("POST", f"{path}/checkout", {"provider": "sandbox"})
        self._doing = "paying"
        payment_id = booking["payment"]["paymentId"]
        await self.call("POST", f"/sandbox/pay/{payment_id}", {"outcome": "SUCCEEDED"})
        order.paid = payment_id
        self._doing = "waiting for the confirmation"
        start = time.monotonic()
        while booking["status"] not in _ENDED:
            if time.monotonic() - start > _WATCH_SECONDS:
                self._journal.undecided += 1
                return
            await asyncio.sleep(_PAUSE_SECONDS)
            booking = await self.call("GET", path)
        if booking["status"] == "CONFIRMED":
            order.was_confirmed = True
            self._journal.confirmed += 1
            self._journal.confirming_seconds.append(time.monotonic() - start)

    async def _wait_on_list(self) -> None:
        """Waits a while for places that come back; then leaves, so that others get them."""
        self._doing = "joining the waiting list"
        entry = await self.call("POST", f"{self.sale.path}/waiting-list", {"items": self._items()})
        self.sale.listed += 1
        path = f"/api/v1/waiting-list/{entry['entryId']}"
        self._doing = "waiting on the list"
        end = time.monotonic() + _LISTED_SECONDS
        while entry["state"] == "WAITING" and time.monotonic() < end:
            await asyncio.sleep(_PAUSE_SECONDS)
            entry = await self.call("GET", path)
        if entry["state"] != "OFFERED":
            await self._leave_list(path)
            return
        self.sale.offered += 1
        self._doing = "claiming the offer"
        order = Order(key=path, customer_id=self.customer_id)
        self._journal.orders.append(order)
        booking = await self._recorded(order, lambda: self.call("POST", f"{path}/claim", {}))
        await self._pay(order, booking)

    async def _leave_list(self, path: str) -> None:
        self._doing = "leaving the list"
        await self.call("DELETE", path)


class Bots:
    """What bots try. Each attempt must be refused, or give nothing that a visitor does not get."""

    def __init__(self, sale: Sale, api: Api, journal: Journal, *, visitors: int, seed: int) -> None:
        self._sale = sale
        self._api = api
        self._journal = journal
        self._seed = seed
        self._tries = max(4, visitors // 50)
        self._clients = 0

    async def before_the_sale(self) -> None:
        async with asyncio.TaskGroup() as group:
            for attack in (
                self._without_proof,
                self._with_a_reused_proof,
                self._twice_with_one_account,
                self._with_forged_tickets,
                self._polling_too_fast,
            ):
                group.create_task(self._contained(attack))

    async def during_the_sale(self) -> None:
        """One account with many tickets: it is admitted once."""
        await self._contained(self._with_many_tickets)

    async def _contained(self, attack: Callable[[], Awaitable[None]]) -> None:
        try:
            await attack()
        except (RefusedError, UnansweredError, KeyError, TypeError, ValueError) as error:
            self._journal.violations.append(f"{attack.__name__}: {error!r}")

    async def _try(self, doing: str, work: Awaitable[Json]) -> Json | None:
        try:
            return await work
        except RefusedError as refusal:
            cause = refusal.metadata.get("cause") or refusal.reason
            self._sale.refused_bots[doing, cause] += 1
        except UnansweredError as error:
            cause = "RATE_LIMITED" if ": 429 " in str(error) else "NOT_ANSWERED"
            self._sale.refused_bots[doing, cause] += 1
        return None

    def _client(self) -> Client:
        """At an address of its own, in a network for documentation."""
        self._clients += 1
        return Client(
            self._sale,
            self._api,
            number=10_000_000 + self._clients,
            address=f"203.0.113.{self._clients % 250 + 1}",
            seed=f"{self._seed}:bot:{self._clients}",
        )

    async def _without_proof(self) -> None:
        bot, path = self._client(), f"{self._sale.path}/queue"
        for _ in range(2 * self._tries):
            await self._try("no proof of work", bot.call("POST", path, {}, is_patient=False))

    async def _with_a_reused_proof(self) -> None:
        bot, path = self._client(), f"{self._sale.path}/queue"
        proof = {"proofOfWork": proof_of_work(self._sale.event_id, bot.random)}
        for _ in range(self._tries):
            await self._try("reused proof", bot.call("POST", path, proof, is_patient=False))

    async def _twice_with_one_account(self) -> None:
        bot = self._client()
        await bot.sign_up()
        tickets = {(await bot.join())["ticketId"] for _ in range(5)}
        if len(tickets) != 1:
            self._journal.violations.append("one account got several tickets")
        self._sale.refused_bots["joined again with one account", "THE_SAME_TICKET"] += 4

    async def _with_forged_tickets(self) -> None:
        bot = self._client()
        ticket_id = (await bot.join())["ticketId"]
        for number in range(self._tries):
            forged = f"{ticket_id[:-6]}{number % 10_000:04d}{ticket_id[-2:]}"
            path = f"/api/v1/queue/{forged}"
            await self._try("forged ticket", bot.call("GET", path, is_patient=False))

    async def _polling_too_fast(self) -> None:
        bot = self._client()
        path = f"/api/v1/queue/{(await bot.join())['ticketId']}"

        async def poll() -> None:
            for _ in range(2 * self._tries):
                await self._try("polling too fast", bot.call("GET", path, is_patient=False))

        # Together: from about 4,000 visitors on, more than the limit of an address per minute.
        await asyncio.gather(*(poll() for _ in range(_POLLERS)))

    async def _with_many_tickets(self) -> None:
        first = self._client()
        await first.sign_up()
        tickets = []
        for _ in range(self._tries):
            # Each from an address of its own: the limit of an address does not stop them.
            tickets.append(await self._client().join())
        admitted: list[Json] = []
        while tickets:
            waiting = []
            for ticket in tickets:
                path = f"/api/v1/queue/{ticket['ticketId']}"
                polled = await self._try(
                    "second admission", first.call("GET", path, is_patient=False)
                )
                if polled and "admissionToken" in polled:
                    admitted.append(polled)
                elif polled and polled["state"] == "WAITING":
                    waiting.append(ticket)
            tickets = waiting
            await asyncio.sleep(_PAUSE_SECONDS * 2)
        if len(admitted) > 1:
            self._journal.violations.append("one account was admitted twice")
        other = self._client()
        await other.sign_up()
        for token in ("forged", *(ticket["admissionToken"] for ticket in admitted)):
            body = {
                "eventId": self._sale.event_id,
                "items": [{"offerId": self._sale.offer_ids[0], "quantity": 1}],
                "admissionToken": token,
            }
            work = other.call("POST", "/api/v1/bookings", body, key=other.new_key())
            if await self._try("foreign or forged admission", work):
                self._journal.violations.append("a foreign admission was accepted")
