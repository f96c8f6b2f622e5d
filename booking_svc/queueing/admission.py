"""Admitting: how far the places admitted advance, and the admission of one account.

A room admits the places below its `admitted`. One process advances it (admission_loop.py), one
statement a step; two that overlap do not advance it twice.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.queueing.tables import admission_steps, queue_admissions, waiting_rooms
from booking_svc.queueing.tokens import Ticket
from booking_svc.queueing.waiting_rooms import Room
from mesh.errors import DomainError, Reason

# A loop that was away catches up at most this much of its rate at once.
_MOST_CREDIT = timedelta(seconds=5)
# Who has not claimed the admission by then is taken for gone: the next is admitted. The admission
# still holds until its end.
_CLAIM_GRACE = timedelta(seconds=60)
# Of admissions given on at once, in multiples of what the rate admits.
_MOST_GIVEN_ON = 10
_MOST_ADMITTED_AT_ONCE = 10_000


@dataclass(frozen=True, slots=True)
class Activity:
    """Counts of a room's admissions.

    `active`: claimed, not over, and without a booking so far. `unclaimed_late` and
    `unclaimed_recent`: nobody asked for the token, past the grace or within it.
    """

    active: int
    unclaimed_late: int
    unclaimed_recent: int


@dataclass(frozen=True, slots=True)
class Advance:
    """The new values of a room: its `admitted`, the time its rate is spent to, and `given_on`."""

    admitted: int
    advance_time: datetime | None
    given_on: int


def planned(room: Room, activity: Activity, now: datetime) -> Advance:
    """How far to advance a room that is selling. Never beyond the tickets there are.

    A rate counts visitors who claim their admission: for each who does not, another follows.
    AUTO fills up to `active_target` active visitors, at most at `max_per_minute`.
    """
    waiting = room.issued - room.admitted
    limit = room.terms.per_minute or room.terms.max_per_minute
    count_allowed, given_on = waiting, room.given_on
    if room.terms.per_minute is None:
        free = room.active_target - activity.active - activity.unclaimed_recent
        count_allowed = min(waiting, max(0, int(free)))
    count_allowed = min(count_allowed, _MOST_ADMITTED_AT_ONCE)
    if limit is None:
        return Advance(
            room.admitted + count_allowed, now if count_allowed else room.advance_time, given_on
        )
    interval = timedelta(minutes=1) / limit
    most = max(_MOST_CREDIT, interval)
    begin = max(room.advance_time or room.draw_time or now, now - most)
    credit = int((now - begin) / interval)
    count = min(count_allowed, credit)
    # What the rate would have allowed and nobody used does not accumulate.
    advance_time = begin + count * interval if count == credit else now
    if room.terms.per_minute is not None:
        late = max(0, activity.unclaimed_late - given_on)
        extra = min(late, waiting - count, _MOST_GIVEN_ON * max(1, credit))
        count, given_on = count + extra, given_on + extra
    return Advance(room.admitted + count, advance_time if count else room.advance_time, given_on)


async def activity(connection: AsyncConnection, *, room: Room, now: datetime) -> Activity:
    step, admission = admission_steps.c, queue_admissions.c
    is_of_room = admission.event_id == room.event_id
    early = sa.func.coalesce(
        sa.select(sa.func.max(step.admitted))
        .where(step.event_id == room.event_id, step.time <= now - _CLAIM_GRACE)
        .scalar_subquery(),
        0,
    )
    row = (
        await connection.execute(
            sa.select(
                early.label("early"),
                sa.func.count().filter(admission.place < early).label("claimed_early"),
                sa.func.count().label("claimed"),
                sa.func.count()
                .filter(admission.finish_time.is_(None), admission.expire_time > now)
                .label("active"),
            ).where(is_of_room)
        )
    ).one()
    claimed_recent = row.claimed - row.claimed_early
    return Activity(
        active=row.active,
        unclaimed_late=max(0, row.early - row.claimed_early),
        unclaimed_recent=max(0, room.admitted - row.early - claimed_recent),
    )


async def advance(connection: AsyncConnection, *, room: Room, to: Advance, now: datetime) -> bool:
    """Advances a room, unless another process has since. Returns whether it did."""
    table = waiting_rooms.c
    advanced = await connection.execute(
        sa.update(waiting_rooms)
        .where(
            table.event_id == room.event_id,
            table.room_id == room.room_id,
            table.admitted == room.admitted,
            table.advance_time.is_not_distinct_from(room.advance_time),
        )
        .values(admitted=to.admitted, advance_time=to.advance_time, given_on=to.given_on)
    )
    if not advanced.rowcount:
        return False
    if to.admitted > room.admitted:
        step = admission_steps.c
        latest = sa.select(sa.func.max(step.expire_time)).where(step.event_id == room.event_id)
        await connection.execute(
            admission_steps.insert().values(
                event_id=room.event_id,
                admitted=to.admitted,
                time=now,
                # Not before those of earlier steps, should staff have made sessions shorter.
                expire_time=sa.func.greatest(now + room.terms.session, latest.scalar_subquery()),
            )
        )
    return True


async def set_active_target(connection: AsyncConnection, *, event_id: UUID, target: float) -> None:
    await connection.execute(
        sa.update(waiting_rooms)
        .where(waiting_rooms.c.event_id == event_id)
        .values(active_target=target)
    )


async def claim(
    connection: AsyncConnection,
    *,
    ticket: Ticket,
    user_id: UUID,
    place: int,
    expire_time: datetime,
    now: datetime,
) -> datetime:
    """Gives an account the admission of a ticket, once; returns its end.

    Raises ALREADY_ADMITTED if the account has one by another ticket, or the ticket is another
    account's: two unique keys decide.
    """
    admission = queue_admissions.c
    await connection.execute(
        postgresql.insert(queue_admissions)
        .values(
            event_id=ticket.event_id,
            user_id=user_id,
            number=ticket.number,
            place=place,
            create_time=now,
            expire_time=expire_time,
        )
        .on_conflict_do_nothing()
    )
    rows = await connection.execute(
        sa.select(admission.user_id, admission.number, admission.expire_time).where(
            admission.event_id == ticket.event_id,
            sa.or_(admission.user_id == user_id, admission.number == ticket.number),
        )
    )
    for row in rows:
        if (row.user_id, row.number) == (user_id, ticket.number):
            return row.expire_time  # type: ignore[no-any-return]
    raise DomainError(
        Reason.ALREADY_ADMITTED,
        "the account was admitted with another ticket, or the ticket has admitted another account",
        event_id=ticket.event_id,
    )


async def finish(
    connection: AsyncConnection, *, holders: Sequence[tuple[UUID, UUID]], now: datetime
) -> None:
    """Notes that holders, by event and user, have placed a booking: others can be admitted."""
    admission = queue_admissions.c
    for event_id, user_id in sorted(holders):
        await connection.execute(
            sa.update(queue_admissions)
            .where(
                admission.event_id == event_id,
                admission.user_id == user_id,
                admission.finish_time.is_(None),
            )
            .values(finish_time=now)
        )
