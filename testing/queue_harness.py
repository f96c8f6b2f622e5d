"""A waiting room on a real database with a manual clock: what a process of booking_svc runs."""

from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from booking_svc.catalogue.events import Event
from booking_svc.clients.ports import Captchas
from booking_svc.queueing import reports
from booking_svc.queueing.admission_loop import AdmissionLoop
from booking_svc.queueing.durations import Durations
from booking_svc.queueing.gate import Gate, Refusals
from booking_svc.queueing.queues import Position, Queues
from booking_svc.queueing.room_memory import FRESH
from booking_svc.queueing.steering import SalesMonitor
from booking_svc.queueing.tokens import Signer
from booking_svc.queueing.waiting_rooms import RoomTerms
from mesh.db.database import Database
from testing.booking_harness import BookingHarness, Clock, an_offer

KEYS = ("a key of waiting rooms that only tests have",)
OPENS_BEFORE = timedelta(minutes=30)
SESSION = timedelta(minutes=10)
TERMS = RoomTerms(
    opens_before_sale=OPENS_BEFORE,
    per_minute=60,
    max_per_minute=None,
    session=SESSION,
    proof_of_work_bits=0,
)


class QueueHarness:
    """The queueing part of a process of booking_svc."""

    def __init__(
        self, database: Database, clock: Clock, *, captchas: Captchas | None = None
    ) -> None:
        self.database = database
        self.clock = clock
        self.monitor = SalesMonitor()
        self.refusals = Refusals()
        self.durations = Durations()
        self.gate = Gate(Signer(KEYS), self.monitor, self.refusals, self.durations)
        self.queues = Queues(
            database,
            clock,
            keys=KEYS,
            refusals=self.refusals,
            durations=self.durations,
            captchas=captchas,
        )
        self.loop = AdmissionLoop(database, clock, keys=KEYS)

    @classmethod
    def of(cls, harness: BookingHarness, **options: Any) -> "QueueHarness":
        """The waiting rooms of a harness, whose PlaceBooking then requires admissions."""
        queueing = cls(harness.database, harness.clock, **options)
        harness.deps = replace(harness.deps, admissions=queueing.gate)
        return queueing

    async def join(
        self, event: Event, user_id: UUID | None = None, *, proof: str = "", captcha: str = ""
    ) -> Position:
        return await self.queues.join(
            event_id=event.event_id,
            user_id=user_id,
            proof=proof,
            captcha_token=captcha,
            address="192.0.2.7",
        )

    async def poll(self, position: Position, user_id: UUID | None = None) -> Position:
        return await self.queues.position(ticket_id=position.ticket_id, user_id=user_id)

    async def advance(self, by: timedelta) -> None:
        """Lets time pass, with a turn of the admission loop each second."""
        until = self.clock.now + by
        while self.clock.now < until:
            self.clock.advance(min(timedelta(seconds=1), until - self.clock.now))
            await self.loop.turn()

    async def open_sale(self, event: Event) -> None:
        """Lets time pass until the sale has started and the draw has been held."""
        self.clock.now = event.sale_start_time
        await self.loop.turn()
        self.clock.advance(FRESH)

    async def store_reports(self) -> None:
        await reports.store_finished(self.database, self.clock, self.gate)
        await reports.store_refusals(self.database, self.refusals)
        await reports.store_durations(self.database, self.clock, self.durations)
        await self.monitor.store(self.database)


async def an_event_with_room(
    harness: BookingHarness,
    queueing: QueueHarness,
    *,
    capacity: int = 100,
    sale_start_time: datetime | None = None,
    **terms: Any,
) -> Event:
    """An event whose sale starts in an hour, with a waiting room that opens in half an hour."""
    event = await harness.an_event(
        an_offer(capacity=capacity, per_customer_limit=100, max_per_booking=100),
        sale_start_time=sale_start_time or harness.clock.now + timedelta(hours=1),
    )
    await queueing.queues.put_room(event_id=event.event_id, terms=replace(TERMS, **terms))
    return event
