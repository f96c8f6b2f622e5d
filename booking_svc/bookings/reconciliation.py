"""Asks payment_svc and stock_svc what they know, in case that an event never came.

Payments and refunds without an end are asked for, less often as they age. Confirmed
bookings are walked through, slowly, and compared with the ledger. What is found is
applied as if its event had come: that happens once, whoever is quicker.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.bookings import payment_events
from booking_svc.bookings.bookings import Status
from booking_svc.bookings.state_machine import FIRST_CHECK
from booking_svc.bookings.tables import booking_refunds, bookings
from booking_svc.clients.ports import PaymentEvent, Payments, Stock
from booking_svc.tables import event_cursors
from mesh.clock import Clock
from mesh.db.database import Database
from mesh.db.jobs import JobQueue
from mesh.errors import DomainError, Reason

INTERVAL_SECONDS = 2.0
_LAST_CHECK = timedelta(days=3)
_LONGEST_PAUSE = timedelta(hours=6)
_BATCH = 20
_CURSOR = "reconciliation with stock_svc"

_PAYMENT_CHECKS = JobQueue(
    bookings,
    due_time=bookings.c.payment_check_time,
    waiting_since=bookings.c.payment_check_time,
)
_REFUND_CHECKS = JobQueue(
    booking_refunds,
    due_time=booking_refunds.c.check_time,
    waiting_since=booking_refunds.c.check_time,
)
_LOST = frozenset(
    {Reason.HOLD_EXPIRED, Reason.RESERVATION_STATE_INVALID, Reason.RESERVATION_NOT_FOUND}
)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Due:
    """A payment or a refund to be asked for."""

    booking_id: UUID
    payment_id: UUID
    refund_id: UUID | None


async def due(connection: AsyncConnection, *, now: datetime, limit: int) -> Sequence[Due]:
    """Takes up to `limit` due payments and as many due refunds, until their next check."""
    payments = await _PAYMENT_CHECKS.lease(
        connection,
        now=now,
        until=_next(bookings.c.create_time, now),
        limit=limit,
        returning=[bookings.c.booking_id, bookings.c.payment_id],
    )
    refunds = await _REFUND_CHECKS.lease(
        connection, now=now, until=_next(booking_refunds.c.create_time, now), limit=limit
    )
    return [
        *(Due(row.booking_id, row.payment_id, None) for row in payments if row.payment_id),
        *(Due(row.booking_id, row.payment_id, row.refund_id) for row in refunds),
    ]


async def oldest_due(connection: AsyncConnection) -> datetime | None:
    """The time of the next check of a payment or a refund, in the past when it is late.

    None when every payment and refund has ended.
    """
    times = [await checks.oldest_due(connection) for checks in (_PAYMENT_CHECKS, _REFUND_CHECKS)]
    return min(filter(None, times), default=None)


class Reconciliation:
    """`on_steps_enqueued` is called when something was found that a step must follow."""

    def __init__(
        self,
        *,
        database: Database,
        stock: Stock,
        payments: Payments,
        clock: Clock,
        on_steps_enqueued: Callable[[], None],
    ) -> None:
        self._database = database
        self._stock = stock
        self._payments = payments
        self._clock = clock
        self._on_owed = on_steps_enqueued

    async def run_once(self) -> None:
        """One turn of the background loop."""
        if await self.ask_payments() < _BATCH:
            await self.compare_stock()
            await asyncio.sleep(INTERVAL_SECONDS)

    async def ask_payments(self) -> int:
        """Asks for a batch of payments and refunds. Returns how many."""
        async with self._database.transaction() as connection:
            taken = await due(connection, now=self._clock(), limit=_BATCH)
        found = 0
        for each in taken:
            event = await self._ask(each)
            if event is not None:
                async with self._database.transaction() as connection:
                    await payment_events.apply(connection, event=event, now=self._clock())
                found += 1
        if found:
            self._on_owed()
        return len(taken)

    async def compare_stock(self) -> int:
        """Compares the next confirmed bookings with the ledger. Returns how many disagree.

        Selling what is sold changes nothing, and fails for what is not.
        """
        async with self._database.transaction() as connection:
            after = await connection.scalar(
                sa.select(event_cursors.c.position).where(event_cursors.c.stream == _CURSOR)
            )
            rows = (
                await connection.execute(
                    sa.select(bookings.c.booking_id, bookings.c.event_id, bookings.c.reservation_id)
                    .where(bookings.c.status == Status.CONFIRMED)
                    .where(bookings.c.booking_id > UUID(after) if after else sa.true())
                    .order_by(bookings.c.booking_id)
                    .limit(_BATCH)
                )
            ).all()
        wrong = 0
        for row in rows:
            try:
                await self._stock.commit(event_id=row.event_id, reservation_id=row.reservation_id)
            except DomainError as refusal:
                if refusal.reason not in _LOST:
                    raise
                wrong += await self._is_wrong(row.booking_id, row.reservation_id)
        async with self._database.transaction() as connection:
            position = str(rows[-1].booking_id) if len(rows) == _BATCH else ""
            put = postgresql.insert(event_cursors).values(
                stream=_CURSOR, position=position, update_time=self._clock()
            )
            await connection.execute(
                put.on_conflict_do_update(
                    index_elements=[event_cursors.c.stream],
                    set_={"position": position, "update_time": self._clock()},
                )
            )
        return wrong

    async def _is_wrong(self, booking_id: UUID, reservation_id: UUID) -> bool:
        """Whether the booking still says that it owns what the ledger has not sold to it."""
        async with self._database.reading() as connection:
            is_owner = await connection.scalar(
                sa.select(sa.true())
                .where(bookings.c.booking_id == booking_id)
                .where(bookings.c.reservation_id == reservation_id)
                .where(bookings.c.status == Status.CONFIRMED)
            )
        if is_owner:
            _log.error(
                "a confirmed booking has no places in the ledger",
                extra={"booking_id": str(booking_id), "reservation_id": str(reservation_id)},
            )
        return bool(is_owner)

    async def _ask(self, each: Due) -> PaymentEvent | None:
        """What payment_svc knows and we do not, perhaps."""
        try:
            if each.refund_id is not None:
                return await self._payments.refunded(
                    booking_id=each.booking_id, refund_id=each.refund_id
                )
            return await self._payments.outcome(
                booking_id=each.booking_id, payment_id=each.payment_id
            )
        except DomainError as refusal:
            # Away for now, or it has not heard of it yet: the next time, then.
            _log.info("no answer about a payment", extra={"reason": refusal.reason})
            return None


def _next(begun: sa.Column[datetime], now: datetime) -> sa.ColumnElement[datetime]:
    """As long as it has taken so far, within bounds; never, once it has taken days."""
    age = sa.literal(now) - begun
    pause = sa.func.least(sa.func.greatest(age, FIRST_CHECK), _LONGEST_PAUSE)
    return sa.case((age < _LAST_CHECK, sa.literal(now) + pause), else_=sa.null())
