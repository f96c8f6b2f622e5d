"""Asks payment_svc and stock_svc for their state, in case an event never arrives.

Open payments and refunds are asked for, less often as they age; the answer is applied as their
event would be. Confirmed bookings are compared with the ledger, a batch at a time.
"""

import asyncio
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.bookings import payment_events
from booking_svc.bookings.bookings import ChangeState, Status
from booking_svc.bookings.confirmation import RESERVATION_LOST
from booking_svc.bookings.dependencies import Dependencies
from booking_svc.bookings.state_machine import FIRST_CHECK
from booking_svc.bookings.tables import booking_changes, booking_refunds, bookings
from booking_svc.clients.ports import PaymentEvent
from booking_svc.tables import event_cursors
from mesh.db.jobs import JobQueue
from mesh.errors import DomainError
from mesh.observability import metrics

INTERVAL_SECONDS = 5.0
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

_log = logging.getLogger(__name__)

_GIVEN_UP = metrics.counter(
    "reconciliation_given_up", "Payments and refunds that are not checked any more after 3 days."
)


@dataclass(frozen=True, slots=True)
class DueCheck:
    """A payment, or a refund of it, to ask payment_svc about. `is_last`: it is too old for more."""

    booking_id: UUID
    payment_id: UUID
    refund_id: UUID | None
    is_last: bool


async def take_due(connection: AsyncConnection, *, now: datetime, limit: int) -> Sequence[DueCheck]:
    """Takes up to `limit` due payments and as many refunds, and sets when they are due again."""
    payments = await _PAYMENT_CHECKS.lease_where(
        connection,
        now=now,
        until=_next(bookings.c.create_time, now),
        limit=limit,
        returning=[
            bookings.c.booking_id,
            bookings.c.payment_id,
            bookings.c.payment_check_time.label("next_time"),
        ],
    )
    refunds = await _REFUND_CHECKS.lease_where(
        connection, now=now, until=_next(booking_refunds.c.create_time, now), limit=limit
    )
    return [
        *(
            DueCheck(row.booking_id, row.payment_id, None, is_last=row.next_time is None)
            for row in payments
            if row.payment_id
        ),
        *(
            DueCheck(row.booking_id, row.payment_id, row.refund_id, is_last=row.check_time is None)
            for row in refunds
        ),
    ]


async def oldest_due(connection: AsyncConnection) -> datetime | None:
    """The time of the next check of a payment or a refund, in the past when it is late.

    None when every payment and refund has ended.
    """
    times = [await checks.oldest_due(connection) for checks in (_PAYMENT_CHECKS, _REFUND_CHECKS)]
    return min(filter(None, times), default=None)


async def run_once(deps: Dependencies) -> None:
    """One turn of the background loop."""
    if await ask_payments(deps) < _BATCH:
        await compare_stock(deps)
        await asyncio.sleep(INTERVAL_SECONDS)


async def ask_payments(deps: Dependencies) -> int:
    """Asks payment_svc about a batch of payments and refunds. Returns how many."""
    async with deps.database.transaction() as connection:
        checks = await take_due(connection, now=deps.clock(), limit=_BATCH)
    applied = 0
    for check in checks:
        event = await _ask(deps, check)
        if event is not None:
            async with deps.database.transaction() as connection:
                await payment_events.apply(connection, event=event, now=deps.clock())
            applied += 1
        elif check.is_last:
            _GIVEN_UP.inc()
            _log.error(
                "a payment or refund has had no final state for three days and is not checked again",
                extra={"booking_id": str(check.booking_id), "payment_id": str(check.payment_id)},
            )
    if applied:
        deps.on_steps_enqueued()
    return len(checks)


async def compare_stock(deps: Dependencies) -> int:
    """Compares the next confirmed bookings with the ledger. Returns the number of mismatches.

    A commit of a committed reservation changes nothing; any other reservation refuses it.
    """
    async with deps.database.transaction() as connection:
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
    mismatches = 0
    for row in rows:
        try:
            await deps.stock.commit(event_id=row.event_id, reservation_id=row.reservation_id)
        except DomainError as refusal:
            if refusal.reason not in RESERVATION_LOST:
                raise
            mismatches += await _is_mismatch(deps, row.booking_id, row.reservation_id)
    position, now = str(rows[-1].booking_id) if len(rows) == _BATCH else "", deps.clock()
    cursor = {"position": position, "update_time": now}
    async with deps.database.transaction() as connection:
        await connection.execute(
            postgresql.insert(event_cursors)
            .values(stream=_CURSOR, **cursor)
            .on_conflict_do_update(index_elements=[event_cursors.c.stream], set_=cursor)
        )
    return mismatches


async def _is_mismatch(deps: Dependencies, booking_id: UUID, reservation_id: UUID) -> bool:
    """Whether the booking is still confirmed with a reservation that is not committed.

    Not during an exchange: the ledger returns the old reservation before the booking has the new.
    """
    is_exchanged = sa.exists().where(
        booking_changes.c.booking_id == bookings.c.booking_id,
        booking_changes.c.state == ChangeState.EXCHANGING,
    )
    async with deps.database.reading() as connection:
        is_owner = await connection.scalar(
            sa.select(sa.true())
            .where(bookings.c.booking_id == booking_id)
            .where(bookings.c.reservation_id == reservation_id)
            .where(bookings.c.status == Status.CONFIRMED, ~is_exchanged)
        )
    if is_owner:
        _log.error(
            "a confirmed booking has no places in the ledger",
            extra={"booking_id": str(booking_id), "reservation_id": str(reservation_id)},
        )
    return bool(is_owner)


async def _ask(deps: Dependencies, check: DueCheck) -> PaymentEvent | None:
    """The event that matches what payment_svc knows; None if there is none yet."""
    try:
        if check.refund_id is not None:
            return await deps.payments.refunded(
                booking_id=check.booking_id, refund_id=check.refund_id
            )
        return await deps.payments.outcome(booking_id=check.booking_id, payment_id=check.payment_id)
    except DomainError as refusal:
        # payment_svc is unavailable or does not know the payment yet: the next check asks again.
        _log.info("no answer about a payment", extra={"reason": refusal.reason})
        return None


def _next(create_time: sa.Column[datetime], now: datetime) -> sa.ColumnElement[datetime]:
    """The next check: after a pause as long as the age, 60 s to 6 h; none after 3 days."""
    age = sa.literal(now) - create_time
    pause = sa.func.least(sa.func.greatest(age, FIRST_CHECK), _LONGEST_PAUSE)
    return sa.case((age < _LAST_CHECK, sa.literal(now) + pause), else_=sa.null())
