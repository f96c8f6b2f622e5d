"""One customer: signs up, reads the event, books, and then pays or not.

The answers are recorded in one Order per idempotency key, for the audit.
"""

import asyncio
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from uuid import UUID

from chaos.checks.evidence import COMPENSATION, Order, parse_time
from chaos.client import Api, Json, RefusedError, UnansweredError
from chaos.workload.catalogue import Offer, Seat, Show
from chaos.workload.journal import Journal

PLACE = "POST /api/v1/bookings"

_PASSWORD = "Front-Row-2026!"
_MAX_REPICKS = 6
_BEST_BLOCKS = 6
_NO_SEAT = "NO_SEAT_LEFT"
_RETRIED_REASONS = frozenset({"SOLD_OUT", "SEAT_UNAVAILABLE", _NO_SEAT})
_ENDED = frozenset({"CONFIRMED", "CANCELLED", "FAILED", "EXPIRED"})
_WATCH_SECONDS = 45.0
_WEBHOOK_TIME = timedelta(seconds=5)
# The demo does not wait for longer holds.
_LONGEST_WAIT_SECONDS = 40.0


class Behaviour(StrEnum):
    """What a customer does after booking."""

    PAYS = "pays"
    DOUBLE_CLICKS = "double-clicks, then pays"
    BUYS_AGAIN = "pays, then tries to buy more than allowed"
    DECLINES = "payment declined, gives up"
    TRIES_AGAIN = "payment declined, then pays"
    CANCELS = "cancels before paying"
    WALKS_AWAY = "walks away"
    PAYS_LATE = "pays when the hold ends"
    CANCELS_PAID = "pays, then cancels"
    GIVES_BACK = "pays, then returns one of its places"
    MOVES = "pays, then moves to another date"
    IS_COMPENSATED = "pays, then staff refund a part"


MIX: dict[Behaviour, int] = {
    Behaviour.PAYS: 42,
    Behaviour.DOUBLE_CLICKS: 8,
    Behaviour.BUYS_AGAIN: 4,
    Behaviour.DECLINES: 4,
    Behaviour.TRIES_AGAIN: 20,
    Behaviour.CANCELS: 5,
    Behaviour.WALKS_AWAY: 9,
    Behaviour.PAYS_LATE: 8,
}
"""The percentage of customers with each behaviour, in the demo."""


_Act = Callable[[Order, Json], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Person:
    name: str
    email: str


class Customer:
    """A customer of one show. All random choices come from `randomness`.

    `other_date` is where one that moves goes. `staff_token` is needed for a compensation.
    """

    def __init__(
        self,
        person: Person,
        *,
        show: Show,
        behaviour: Behaviour,
        api: Api,
        journal: Journal,
        randomness: random.Random,
        other_date: Show | None = None,
        staff_token: str = "",
    ) -> None:
        self._other_date = other_date
        self._staff_token = staff_token
        self._person = person
        self._show = show
        self._behaviour = behaviour
        self._api = api
        self._journal = journal
        self._random = randomness
        self._token = ""
        self._customer_id = ""
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
            # The answer violates the contract; the report shows it.
            self._journal.violations.append(f"{self._doing}: unexpected answer, {error!r}")
        finally:
            self._journal.active -= 1
            self._journal.done += 1

    async def _visit(self) -> None:
        await self._sign_up()
        await self._read_event()
        offer = self._random.choices(self._show.offers, self._show.demand)[0]
        quantity = self._random.randint(1, min(4, offer.max_per_booking))
        order, booking = await self._buy(offer, quantity)
        await self._think()
        act: dict[Behaviour, _Act] = {
            Behaviour.PAYS: self._pay,
            Behaviour.DOUBLE_CLICKS: self._pay,
            Behaviour.BUYS_AGAIN: self._pay,
            Behaviour.DECLINES: self._decline,
            Behaviour.TRIES_AGAIN: self._decline_then_pay,
            Behaviour.CANCELS: self._cancel,
            Behaviour.WALKS_AWAY: self._walk_away,
            Behaviour.PAYS_LATE: self._pay_late,
            Behaviour.CANCELS_PAID: self._pay_and(self._cancel),
            Behaviour.GIVES_BACK: self._pay_and(self._return_place),
            Behaviour.MOVES: self._pay_and(self._move),
            Behaviour.IS_COMPENSATED: self._pay_and(self._be_compensated),
        }
        await act[self._behaviour](order, booking)
        if self._behaviour is Behaviour.BUYS_AGAIN:
            await self._buy(offer, offer.per_customer_limit)

    async def _sign_up(self) -> None:
        self._doing = "signing up"
        account = {"email": self._person.email, "password": _PASSWORD}
        try:
            await self._api.call(
                "POST",
                "/api/v1/auth/register",
                body={**account, "fullName": self._person.name},
            )
        except RefusedError as refusal:
            # The answer to an earlier attempt was lost; signing in proves that the account exists.
            if refusal.reason != "EMAIL_ALREADY_REGISTERED" or refusal.is_first:
                raise
        self._doing = "signing in"
        session = await self._api.call("POST", "/api/v1/auth/login", body=account)
        self._token = session["accessToken"]
        self._customer_id = session["user"]["userId"]

    async def _read_event(self) -> None:
        self._doing = "reading the event"
        await self._api.call("GET", f"/api/v1/events/{self._show.event_id}")
        await self._think()

    async def _buy(self, offer: Offer, quantity: int) -> tuple[Order, Json]:
        """Books, with other seats if they were taken meanwhile. Raises RefusedError if sold out.

        A third of the customers retry for a while: held places of others may become available.
        """
        self._doing = "booking"
        patience = self._random.uniform(8, 20) if self._random.random() < 0.33 else 0.0
        end = time.monotonic() + patience
        repicks = 0
        while True:
            try:
                return await self._place(await self._pick(offer, quantity))
            except RefusedError as refusal:
                if refusal.reason == "SEAT_UNAVAILABLE" and repicks < _MAX_REPICKS:
                    repicks += 1
                    self._journal.repicks += 1
                    continue
                if refusal.reason not in _RETRIED_REASONS or time.monotonic() > end:
                    raise
            await asyncio.sleep(self._random.uniform(1.5, 3))

    async def _pick(self, offer: Offer, quantity: int) -> list[Json]:
        """The items of the request: places, or the best available seats."""
        if offer.seat_type is None:
            return [{"offerId": offer.offer_id, "quantity": quantity}]
        path = f"/api/v1/events/{self._show.event_id}/availability"
        answer = await self._api.call("GET", path)
        free = {seat["seatId"] for seat in answer["seats"] if seat["state"] == "AVAILABLE"}
        seats = [
            seat
            for seat in self._show.seats
            if seat.seat_id in free and seat.seat_type == offer.seat_type
        ]
        if not seats:
            raise RefusedError(
                _NO_SEAT, "no seat of this type is available on the map", {}, is_first=True
            )
        return [{"seatId": seat.seat_id} for seat in best_seats(seats, quantity, self._random)]

    async def _place(self, items: list[Json]) -> tuple[Order, Json]:
        order = Order(key=self._new_key(), customer_id=self._customer_id)
        self._journal.orders.append(order)
        body: Json = {"eventId": self._show.event_id, "items": items}
        if self._behaviour is not Behaviour.WALKS_AWAY and self._random.random() < 0.5:
            body["checkout"] = {"provider": "sandbox"}
        clicks = 2 if self._behaviour is Behaviour.DOUBLE_CLICKS else 1
        clicked_at = time.monotonic()
        answers = await asyncio.gather(
            *(self._click(order, body) for _ in range(clicks)), return_exceptions=True
        )
        for answer in answers:
            if not isinstance(answer, BaseException):
                self._journal.placed(clicked_at)
                return order, answer
        failed = answers[0]
        if isinstance(failed, BaseException):
            raise failed
        raise AssertionError("neither an answer nor an error")

    async def _click(self, order: Order, body: Json) -> Json:
        try:
            booking = await self._api.call(
                "POST",
                "/api/v1/bookings",
                body=body,
                token=self._token,
                key=order.key,
                label=PLACE,
            )
        except RefusedError as refusal:
            order.is_uncertain |= not refusal.is_first
            # The booking was placed, but its checkout was refused.
            if placed := refusal.metadata.get("bookingId"):
                order.booking_ids.append(placed)
            raise
        except (UnansweredError, asyncio.CancelledError):
            order.is_uncertain = True
            raise
        order.booking_ids.append(booking["bookingId"])
        return booking

    async def _pay(self, order: Order, booking: Json) -> None:
        booking = await self._checkout(booking)
        await self._think()
        await self._choose(order, booking, "SUCCEEDED")
        await self._watch(order, booking)

    def _pay_and(self, act: _Act) -> _Act:
        """Pays, and acts when the booking is confirmed."""

        async def both(order: Order, booking: Json) -> None:
            await self._pay(order, booking)
            if order.was_confirmed:
                await self._think()
                await act(order, await self._read(booking))

        return both

    async def _return_place(self, _: Order, booking: Json) -> None:
        """Returns one place or seat, if there are several."""
        self._doing = "returning a place"
        items = [_requested(item) for item in booking["items"]]
        if "seatId" in items[0]:
            items.pop()
        else:
            items[0]["quantity"] -= 1
            items = [item for item in items if item["quantity"]]
        if items:
            await self._change("PATCH", booking, "", {"items": items})

    async def _move(self, _: Order, booking: Json) -> None:
        """Moves to the other date; pays the difference if that is dearer."""
        self._doing = "moving to another date"
        if self._other_date is None or self._show.seats:
            return
        checkout = {"provider": "sandbox"}
        body = {"eventId": self._other_date.event_id, "checkout": checkout}
        booking = await self._change("POST", booking, "/reschedule", body)
        change = booking.get("change")
        if change and self._random.random() < 0.8:
            payment_id = change["payment"]["paymentId"]
            self._doing = "paying the difference"
            await self._api.call(
                "POST", f"/sandbox/pay/{payment_id}", body={"outcome": "SUCCEEDED"}
            )

    async def _be_compensated(self, _: Order, booking: Json) -> None:
        """Staff refund a tenth, and click twice."""
        self._doing = "refunding a part"
        paid = booking["total"]
        amount = int(paid["amountMinor"]) // 10
        if not amount:
            return
        body = {"amount": {**paid, "amountMinor": str(amount)}, "reason": COMPENSATION}
        key = self._new_key()
        refunds = await asyncio.gather(
            *(
                self._api.call(
                    "POST",
                    f"/api/v1/payments/{booking['payment']['paymentId']}/refund",
                    body=body,
                    token=self._staff_token,
                    key=key,
                )
                for _ in range(2)
            )
        )
        if refunds[0]["refundId"] != refunds[1]["refundId"]:
            raise ValueError(f"one key, two refunds: {refunds}")

    async def _change(self, method: str, booking: Json, action: str, body: Json) -> Json:
        path = f"/api/v1/bookings/{booking['bookingId']}{action}"
        return await self._api.call(method, path, body=body, token=self._token, key=self._new_key())

    async def _read(self, booking: Json) -> Json:
        path = f"/api/v1/bookings/{booking['bookingId']}"
        return await self._api.call("GET", path, token=self._token)

    def _new_key(self) -> str:
        return str(UUID(int=self._random.getrandbits(128), version=4))

    async def _decline(self, order: Order, booking: Json) -> None:
        booking = await self._checkout(booking)
        await self._think()
        await self._choose(order, booking, "FAILED")

    async def _decline_then_pay(self, order: Order, booking: Json) -> None:
        """Pays at the second try: on the same page, or on a new one with other addresses."""
        booking = await self._checkout(booking)
        await self._choose(order, booking, "FAILED")
        await self._think()
        if self._random.random() < 0.5:
            booking = await self._checkout(booking, success_url="https://shop.example/thanks")
        await self._choose(order, booking, "SUCCEEDED", doing="paying after a decline")
        # With enough time for the webhook: as any other payment, a late one may be refunded.
        order.is_second_try = datetime.now(UTC) + _WEBHOOK_TIME < parse_time(
            booking["holdExpireTime"]
        )
        await self._watch(order, booking)

    async def _pay_late(self, order: Order, booking: Json) -> None:
        """Pays around the end of the hold: the booking is confirmed or the payment refunded."""
        booking = await self._checkout(booking)
        remaining = (parse_time(booking["holdExpireTime"]) - datetime.now(UTC)).total_seconds()
        if remaining < _LONGEST_WAIT_SECONDS:
            await asyncio.sleep(max(0.0, remaining + self._random.uniform(-0.3, 1.2)))
        await self._choose(order, booking, "SUCCEEDED", doing="paying late")
        await self._watch(order, booking)

    async def _cancel(self, order: Order, booking: Json) -> None:
        self._doing = "cancelling"
        order.was_confirmed = False
        try:
            booking = await self._api.call(
                "POST",
                f"/api/v1/bookings/{booking['bookingId']}/cancel",
                body={"reason": "changed my mind"},
                token=self._token,
            )
        except RefusedError as refusal:
            if refusal.reason != "ALREADY_CANCELLED" or refusal.is_first:
                raise
        await self._watch(order, booking)

    async def _walk_away(self, _: Order, booking: Json) -> None:
        if self._random.random() < 0.5:
            await self._checkout(booking)

    async def _checkout(self, booking: Json, *, success_url: str = "") -> Json:
        self._doing = "checking out"
        if (booking.get("payment") or {}).get("paymentUrl") and not success_url:
            return booking
        return await self._api.call(
            "POST",
            f"/api/v1/bookings/{booking['bookingId']}/checkout",
            body={"provider": "sandbox", **({"successUrl": success_url} if success_url else {})},
            token=self._token,
        )

    async def _choose(
        self, order: Order, booking: Json, outcome: str, *, doing: str = "paying"
    ) -> None:
        """Chooses Pay or Decline on the payment page."""
        self._doing = doing
        payment_id = booking["payment"]["paymentId"]
        await self._api.call("POST", f"/sandbox/pay/{payment_id}", body={"outcome": outcome})
        if outcome == "SUCCEEDED":
            order.paid = payment_id

    async def _watch(self, order: Order, booking: Json) -> None:
        """Polls until the booking is confirmed, refunded, or ended without a payment."""
        self._doing = "waiting for the outcome"
        start = time.monotonic()
        pause = 0.15
        while time.monotonic() < start + _WATCH_SECONDS:
            await asyncio.sleep(pause)
            booking = await self._read(booking)
            refunded = (booking.get("refund") or {}).get("status") == "PROCESSED"
            if booking["status"] == "CONFIRMED":
                order.was_confirmed = True
                self._journal.confirmed += 1
                self._journal.confirming_seconds.append(time.monotonic() - start)
                return
            if refunded or (booking["status"] in _ENDED and not order.paid):
                return
            pause = min(pause * 1.5, 1.5)
        self._journal.undecided += 1

    async def _think(self) -> None:
        await asyncio.sleep(self._random.uniform(0.05, 0.5))


def _requested(item: Json) -> Json:
    """The item of a booking as one of a request."""
    if item.get("seatId"):
        return {"seatId": item["seatId"]}
    return {"offerId": item["offerId"], "quantity": int(item["quantity"])}


def best_seats(seats: list[Seat], quantity: int, randomness: random.Random) -> list[Seat]:
    """One of the best blocks of adjacent seats in a row, or the best single seats."""
    rows: dict[str, dict[int, Seat]] = {}
    for seat in seats:
        rows.setdefault(seat.row, {})[seat.number] = seat
    blocks = [
        [row[number + n] for n in range(quantity)]
        for row in rows.values()
        for number in row
        if all(number + n in row for n in range(quantity))
    ]
    if not blocks:
        return sorted(seats, key=lambda seat: seat.distance)[:quantity]
    blocks.sort(key=lambda block: sum(seat.distance for seat in block))
    return randomness.choice(blocks[:_BEST_BLOCKS])
