"""What happened in the sale of an event: counts, and when, from the rows that the sale has written.

Differences between the ledgers, and the draw, are not checked here: who reads the report does
(tools/boxoffice/on_sale_report.py), so that the check shares no code with what it checks.
"""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.bookings.bookings import ChangeState, RefundStatus, Status
from booking_svc.bookings.tables import (
    booking_changes,
    booking_items,
    booking_payments,
    booking_refunds,
    booking_steps,
    bookings,
)
from booking_svc.catalogue import events
from booking_svc.catalogue.events import Event
from booking_svc.queueing import durations
from booking_svc.queueing.tables import (
    admission_steps,
    queue_admissions,
    queue_arrivals,
    queue_durations,
    queue_refusals,
    waiting_rooms,
)
from booking_svc.queueing.waiting_list_entries import LIVE, WAITING, State
from booking_svc.queueing.waiting_list_tables import waiting_list_entries

MOST_ADMISSIONS = 20_000

_INTERVALS = (10, 30, 60, 300, 900, 3600, 21_600)
_MOST_INTERVALS = 240
_LONGEST = timedelta(hours=24)
_SOLD = (Status.CONFIRMED, Status.COMPLETED)
_OPEN = (Status.HELD, Status.PENDING_PAYMENT)

Histogram = dict[int, int]


@dataclass(frozen=True, slots=True)
class Interval:
    """What happened in one interval; `histograms` are durations by call and bucket."""

    start_time: datetime
    counts: Mapping[str, int]
    histograms: Mapping[str, Histogram]


@dataclass(frozen=True, slots=True)
class Visitors:
    joined: int
    participants: int
    admitted: int
    claimed: int
    booked: int
    bought: int


@dataclass(frozen=True, slots=True)
class PoolSales:
    pool_id: UUID
    offer_names: Sequence[str]
    sold: int
    held: int


@dataclass(frozen=True, slots=True)
class OnSaleMoney:
    """In minor units of the event's currency."""

    confirmed_minor: int
    captured_minor: int
    refunded_minor: int
    rescheduled: int


@dataclass(frozen=True, slots=True)
class OnSaleReport:
    """Counts of bookings and waiting list entries are by state."""

    event: Event
    report_time: datetime
    interval: timedelta
    intervals: Sequence[Interval]
    visitors: Visitors | None
    refusals: Mapping[str, int]
    histograms: Mapping[str, Histogram]
    bookings: Mapping[Status, int]
    pools: Sequence[PoolSales]
    money: OnSaleMoney
    waiting_list: Mapping[State, int]
    admissions: Sequence[tuple[int, int]]
    open_steps: int


async def read(
    connection: AsyncConnection,
    *,
    event_id: UUID,
    start_time: datetime | None,
    end_time: datetime | None,
    now: datetime,
) -> OnSaleReport:
    """The report as of `now`; the times bound its intervals. Raises EVENT_NOT_FOUND."""
    event = await events.get(connection, event_id=event_id)
    begin, end = await _bounds(connection, event, now)
    begin, end = min(start_time or begin, now), end_time or end
    interval = _interval(end - begin)
    bins = _Bins(begin, max(end, begin + interval), interval)
    visitors = await _visitors(connection, event_id)
    return OnSaleReport(
        event=event,
        report_time=now,
        interval=interval,
        intervals=await _intervals(connection, event_id, bins),
        visitors=visitors,
        refusals=await _refusals(connection, event_id),
        histograms=await _histograms(connection, event_id),
        bookings=await _bookings(connection, event_id),
        pools=await _pools(connection, event),
        money=await _money(connection, event_id),
        waiting_list=await _waiting_list(connection, event_id),
        admissions=await _admissions(connection, event_id),
        open_steps=await _open_steps(connection, event_id),
    )


@dataclass(frozen=True, slots=True)
class _Bins:
    begin: datetime
    end: datetime
    length: timedelta

    def of(self, column: sa.ColumnElement[Any]) -> sa.ColumnElement[Any]:
        """The bin of a time."""
        return sa.func.date_bin(self.length, column, self.begin)

    def within(self, column: sa.ColumnElement[Any]) -> sa.ColumnElement[bool]:
        return sa.and_(column >= self.begin, column < self.end)

    def starts(self) -> list[datetime]:
        count = -(-(self.end - self.begin) // self.length)
        return [self.begin + number * self.length for number in range(count)]


def _interval(span: timedelta) -> timedelta:
    for seconds in _INTERVALS:
        interval = timedelta(seconds=seconds)
        if span <= _MOST_INTERVALS * interval:
            return interval
    return timedelta(days=-(-span // timedelta(days=_MOST_INTERVALS)))


async def _bounds(
    connection: AsyncConnection, event: Event, now: datetime
) -> tuple[datetime, datetime]:
    """When something happened first and last: the latter within 24 hours from the sale's start."""
    latest = min(now, event.sale_start_time + _LONGEST)
    times = [
        sa.select(column.label("time")).where(table.c.event_id == event.event_id)
        for table, column in (
            (queue_arrivals, queue_arrivals.c.time),
            (admission_steps, admission_steps.c.time),
            (bookings, bookings.c.create_time),
            (bookings, bookings.c.confirm_time),
            (waiting_list_entries, waiting_list_entries.c.create_time),
            (waiting_list_entries, waiting_list_entries.c.update_time),
        )
    ]
    happened = sa.union_all(*times).subquery()
    first, last = (
        await connection.execute(
            sa.select(
                sa.func.min(happened.c.time),
                sa.func.max(happened.c.time).filter(happened.c.time <= latest),
            )
        )
    ).one()
    begin = durations.slot_of(min(event.sale_start_time, first or now, now))
    # The slot in which it happened belongs to it.
    return begin, durations.slot_of(last or latest) + durations.SLOT


async def _intervals(connection: AsyncConnection, event_id: UUID, bins: _Bins) -> list[Interval]:
    starts = bins.starts()
    counts: dict[datetime, Counter[str]] = {start: Counter() for start in starts}

    async def count(
        name: str,
        time: sa.ColumnElement[Any],
        value: sa.ColumnElement[Any],
        *where: sa.ColumnElement[bool],
    ) -> None:
        time_bin = bins.of(time)
        rows = await connection.execute(
            sa.select(time_bin, value).where(bins.within(time), *where).group_by(time_bin)
        )
        for start, number in rows:
            if start in counts:
                counts[start][name] = int(number)

    arrival, claim, booking = queue_arrivals.c, queue_admissions.c, bookings.c
    entry, of_rows = waiting_list_entries.c, sa.func.count()
    await count("joined", arrival.time, sa.func.sum(arrival.count), arrival.event_id == event_id)
    step = _step_sizes(event_id)
    await count("admitted", step.c.time, sa.func.sum(step.c.size))
    await count("claimed", claim.create_time, of_rows, claim.event_id == event_id)
    of_event = booking.event_id == event_id
    await count("bookings_placed", booking.create_time, of_rows, of_event)
    is_sold = booking.status.in_(_SOLD)
    await count("bookings_confirmed", booking.confirm_time, of_rows, of_event, is_sold)
    places = (
        sa.select(sa.func.sum(booking_items.c.quantity))
        .where(booking_items.c.booking_id == booking.booking_id)
        .scalar_subquery()
    )
    await count("places_sold", booking.confirm_time, sa.func.sum(places), of_event, is_sold)
    listed = entry.event_id == event_id
    await count("waiting_list_joined", entry.create_time, of_rows, listed)
    await count("waiting_list_ended", entry.update_time, of_rows, listed, entry.state.not_in(LIVE))
    histograms: dict[datetime, dict[str, Histogram]] = defaultdict(lambda: defaultdict(dict))
    call = queue_durations.c
    time_bin = bins.of(call.time)
    rows = await connection.execute(
        sa.select(time_bin, call.call, call.bucket, sa.func.sum(call.count))
        .where(call.event_id == event_id, bins.within(call.time))
        .group_by(time_bin, call.call, call.bucket)
    )
    for start, name, bucket, number in rows:
        histograms[start][name][bucket] = int(number)
    return [Interval(start, counts[start], histograms[start]) for start in starts]


def _step_sizes(event_id: UUID) -> sa.Subquery:
    """The steps of admission, and how many places each admitted."""
    step = admission_steps.c
    before = sa.func.lag(step.admitted, 1, 0).over(order_by=step.admitted)
    return (
        sa.select(step.time, (step.admitted - before).label("size"))
        .where(step.event_id == event_id)
        .subquery()
    )


async def _visitors(connection: AsyncConnection, event_id: UUID) -> Visitors | None:
    room = (
        await connection.execute(
            sa.select(
                waiting_rooms.c.issued, waiting_rooms.c.participants, waiting_rooms.c.admitted
            ).where(waiting_rooms.c.event_id == event_id)
        )
    ).one_or_none()
    if room is None:
        return None
    claim, booking = queue_admissions.c, bookings.c
    placed = sa.exists().where(booking.event_id == event_id, booking.customer_id == claim.user_id)
    bought = placed.where(booking.status.in_(_SOLD))
    claimed, booked, buyers = (
        await connection.execute(
            sa.select(
                sa.func.count(), sa.func.count().filter(placed), sa.func.count().filter(bought)
            ).where(claim.event_id == event_id)
        )
    ).one()
    return Visitors(room.issued, room.participants or 0, room.admitted, claimed, booked, buyers)


async def _refusals(connection: AsyncConnection, event_id: UUID) -> dict[str, int]:
    refusal = queue_refusals.c
    rows = await connection.execute(
        sa.select(refusal.cause, refusal.count)
        .where(refusal.event_id == event_id)
        .order_by(refusal.count.desc(), refusal.cause)
    )
    return {row[0]: row[1] for row in rows}


async def _histograms(connection: AsyncConnection, event_id: UUID) -> dict[str, Histogram]:
    call = queue_durations.c
    rows = await connection.execute(
        sa.select(call.call, call.bucket, sa.func.sum(call.count))
        .where(call.event_id == event_id)
        .group_by(call.call, call.bucket)
        .order_by(call.call)
    )
    histograms: dict[str, Histogram] = defaultdict(dict)
    for name, bucket, count in rows:
        histograms[name][bucket] = int(count)
    return histograms


async def _bookings(connection: AsyncConnection, event_id: UUID) -> dict[Status, int]:
    rows = await connection.execute(
        sa.select(bookings.c.status, sa.func.count())
        .where(bookings.c.event_id == event_id)
        .group_by(bookings.c.status)
    )
    return {Status(status): count for status, count in rows}


async def _pools(connection: AsyncConnection, event: Event) -> list[PoolSales]:
    item, booking = booking_items.c, bookings.c
    rows = await connection.execute(
        sa.select(
            item.offer_id,
            sa.func.coalesce(sa.func.sum(item.quantity).filter(booking.status.in_(_SOLD)), 0),
            sa.func.coalesce(sa.func.sum(item.quantity).filter(booking.status.in_(_OPEN)), 0),
        )
        .join_from(bookings, booking_items)
        .where(booking.event_id == event.event_id)
        .group_by(item.offer_id)
    )
    sold, held, names = Counter[UUID](), Counter[UUID](), defaultdict[UUID, list[str]](list)
    pool_of = {}
    for offer in event.offers:
        pool_of[offer.offer_id] = offer.pool_id
        names[offer.pool_id].append(offer.name)
    for offer_id, offer_sold, offer_held in rows:
        sold[pool_of[offer_id]] += offer_sold
        held[pool_of[offer_id]] += offer_held
    return [PoolSales(pool_id, names[pool_id], sold[pool_id], held[pool_id]) for pool_id in names]


async def _money(connection: AsyncConnection, event_id: UUID) -> OnSaleMoney:
    booking, payment, refund = bookings.c, booking_payments.c, booking_refunds.c
    change = booking_changes.c

    def total(column: sa.Column[Any], table: sa.Table) -> sa.ScalarSelect[Any]:
        return (
            sa.select(sa.func.coalesce(sa.func.sum(column), 0))
            .join_from(bookings, table)
            .where(booking.event_id == event_id)
            .scalar_subquery()
        )

    refunded = (
        sa.select(sa.func.coalesce(sa.func.sum(refund.amount_minor), 0))
        .join_from(bookings, booking_refunds)
        .where(booking.event_id == event_id, refund.status == RefundStatus.PROCESSED)
        .scalar_subquery()
    )
    rescheduled = (
        sa.select(sa.func.count())
        .where(
            change.state == ChangeState.DONE,
            change.from_event_id != change.to_event_id,
            sa.or_(change.from_event_id == event_id, change.to_event_id == event_id),
        )
        .scalar_subquery()
    )
    confirmed = (
        sa.select(sa.func.coalesce(sa.func.sum(booking.total_minor), 0))
        .where(booking.event_id == event_id, booking.status.in_(_SOLD))
        .scalar_subquery()
    )
    captured = total(payment.captured_minor, booking_payments)
    row = (await connection.execute(sa.select(confirmed, captured, refunded, rescheduled))).one()
    return OnSaleMoney(*(int(value) for value in row))


async def _waiting_list(connection: AsyncConnection, event_id: UUID) -> dict[State, int]:
    """By state; RESERVING counts as WAITING, as clients see it."""
    entry = waiting_list_entries.c
    rows = await connection.execute(
        sa.select(entry.state, sa.func.count())
        .where(entry.event_id == event_id)
        .group_by(entry.state)
    )
    counts = Counter[State]()
    for state, count in rows:
        counts[State.WAITING if state in WAITING else State(state)] += count
    return counts


async def _admissions(connection: AsyncConnection, event_id: UUID) -> list[tuple[int, int]]:
    claim = queue_admissions.c
    rows = await connection.execute(
        sa.select(claim.number, claim.place)
        .where(claim.event_id == event_id)
        .order_by(claim.place)
        .limit(MOST_ADMISSIONS)
    )
    return [(row[0], row[1]) for row in rows]


async def _open_steps(connection: AsyncConnection, event_id: UUID) -> int:
    steps = await connection.scalar(
        sa.select(sa.func.count())
        .join_from(bookings, booking_steps)
        .where(bookings.c.event_id == event_id)
    )
    refunds = await connection.scalar(
        sa.select(sa.func.count())
        .join_from(bookings, booking_refunds)
        .where(bookings.c.event_id == event_id, booking_refunds.c.status == RefundStatus.PENDING)
    )
    return int(steps or 0) + int(refunds or 0)
