"""A customer who leaves in the middle of calls, sets tiny deadlines, and comes back with the same key.

Every answer must be about what was asked: a reply that reaches another caller is a violation.
"""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from uuid import UUID

import grpc
import httpx

from boxoffice.bookings.v1 import booking_service_pb2, booking_service_pb2_grpc
from chaos.checks.evidence import Order
from chaos.client import Api, Attempt, Json, RefusedError, UnansweredError
from chaos.workload.catalogue import Show
from chaos.workload.journal import Journal

_PASSWORD = "Front-Row-2026!"
_LEAVES_WITHIN_SECONDS = 0.4
_DEADLINES_SECONDS = (0.001, 0.05)
_CALLS_PER_VISIT = 6
# Of outcomes over gRPC. ABORTED: the call that was left is still running under the same key.
_STATUSES = {"": 200, "left": 0, "ABORTED": 409}
_PLACE = "/boxoffice.bookings.v1.BookingService/PlaceBooking"


class Leaver:
    """`urls` are the gateways' addresses for gRPC. `on_attempt` gets the calls over gRPC; those over
    REST are recorded by `api`."""

    def __init__(
        self,
        *,
        api: Api,
        urls: Sequence[str],
        show: Show,
        journal: Journal,
        name: str,
        random_: random.Random,
        on_attempt: Callable[[Attempt], None],
    ) -> None:
        self._api = api
        self._urls = urls
        self._show = show
        self._journal = journal
        self._email = f"leaver.{name}@example.com".lower()
        self._random = random_
        self._on_attempt = on_attempt
        self._token = ""
        self._customer_id = ""

    async def run(self, closing: asyncio.Event) -> None:
        """Comes and leaves until `closing` is set."""
        channels = [grpc.aio.insecure_channel(httpx.URL(url).netloc.decode()) for url in self._urls]
        try:
            await self._sign_up()
            while not closing.is_set():
                with suppress(RefusedError, UnansweredError):
                    await self._visit(channels)
        except (RefusedError, UnansweredError) as error:
            self._journal.unanswered.append(f"leaver: {error}")
        finally:
            for channel in channels:
                await channel.close()

    async def _sign_up(self) -> None:
        account = {"email": self._email, "password": _PASSWORD}
        with suppress(RefusedError):
            # Refused when the answer to an earlier attempt was lost.
            await self._call("POST", "/api/v1/auth/register", {**account, "fullName": "Lea Ver"})
        session = await self._call("POST", "/api/v1/auth/login", account)
        self._token = session["accessToken"]
        self._customer_id = session["user"]["userId"]

    async def _visit(self, channels: Sequence[grpc.aio.Channel]) -> None:
        order = Order(key=self._new_key(), customer_id=self._customer_id, is_uncertain=True)
        self._journal.orders.append(order)
        # An offer without seats, of which there is plenty.
        offer = max(
            (offer for offer in self._show.offers if offer.seat_type is None),
            key=lambda offer: offer.per_customer_limit,
        )
        body = {
            "eventId": self._show.event_id,
            "items": [{"offerId": offer.offer_id, "quantity": 1}],
        }
        for _ in range(self._random.randint(1, 2)):
            await self._leave("POST", "/api/v1/bookings", body, key=order.key)
        await self._place_in_time(self._random.choice(channels), body, order.key)
        booking = await self._call("POST", "/api/v1/bookings", body, key=order.key)
        order.booking_ids.append(booking["bookingId"])
        path = f"/api/v1/bookings/{booking['bookingId']}"
        for _ in range(_CALLS_PER_VISIT):
            method, action, content = self._random.choice(
                (
                    ("GET", "", None),
                    ("GET", "/cancellation", None),
                    ("PATCH", "", {"note": f"from {self._customer_id}"}),
                    ("POST", "/checkout", {"provider": "sandbox"}),
                )
            )
            await self._leave(method, path + action, content)
            self._compare(booking["bookingId"], await self._call("GET", path))
        await self._leave("POST", f"{path}/cancel", {"reason": "left"})
        with suppress(RefusedError):
            await self._call("POST", f"{path}/cancel", {"reason": "left"})

    def _compare(self, booking_id: str, answer: Json) -> None:
        """Notes an answer that belongs to another call."""
        if (answer["bookingId"], answer["customerId"]) != (booking_id, self._customer_id):
            self._journal.violations.append(
                f"{self._customer_id} asked for {booking_id} and got {answer['bookingId']} of "
                f"{answer['customerId']}"
            )

    async def _leave(self, method: str, path: str, body: Json | None, *, key: str = "") -> None:
        """Makes a call and leaves at a random moment, perhaps after the answer."""
        with suppress(TimeoutError, RefusedError, UnansweredError):
            async with asyncio.timeout(self._random.uniform(0, _LEAVES_WITHIN_SECONDS)):
                await self._call(method, path, body, key=key)

    async def _place_in_time(self, channel: grpc.aio.Channel, body: Json, key: str) -> None:
        """Places over gRPC with a deadline that is often too short."""
        request = booking_service_pb2.PlaceBookingRequest(
            event_id=body["eventId"],
            items=[
                booking_service_pb2.PlaceBookingRequest.Item(
                    offer_id=item["offerId"], quantity=item["quantity"]
                )
                for item in body["items"]
            ],
        )
        stub = booking_service_pb2_grpc.BookingServiceStub(channel)
        seconds = self._random.uniform(*_DEADLINES_SECONDS)
        began, reason = time.monotonic(), ""
        try:
            await stub.PlaceBooking(
                request,
                timeout=seconds,
                metadata=(("authorization", f"Bearer {self._token}"), ("idempotency-key", key)),
            )
        except grpc.aio.AioRpcError as error:
            code = error.code()
            # The caller's own deadline is its own wish to leave. At the same moment the gateway
            # resets the stream, which the client may see first, as INTERNAL.
            is_left = (
                code in {grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED}
                or time.monotonic() - began >= seconds
            )
            reason = "left" if is_left else code.name
        status = _STATUSES.get(reason, 503)
        self._on_attempt(
            Attempt(0, "gRPC", _PLACE, key, "", began, time.monotonic(), status, reason)
        )

    async def _call(
        self, method: str, path: str, body: Json | None = None, *, key: str = ""
    ) -> Json:
        return await self._api.call(
            method, path, body=body, token=self._token or None, key=key or None
        )

    def _new_key(self) -> str:
        return str(UUID(int=self._random.getrandbits(128), version=4))
