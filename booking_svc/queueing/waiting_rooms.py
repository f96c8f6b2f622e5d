"""Waiting rooms and their rows: creating, changing and removing a room, its state, its draw.

Admitting is in admission.py, joining in joining.py. What polls read is in room_memory.py.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.catalogue import events
from booking_svc.catalogue.events import StaffStatus, Status
from booking_svc.catalogue.tables import events as events_table
from booking_svc.queueing import draw
from booking_svc.queueing.tables import waiting_rooms
from mesh.errors import DomainError, Reason
from mesh.ids import new_id

FIRST_ACTIVE_TARGET = 50.0
"""AUTO: active visitors at first, before it is known what the sale can take."""


class RoomState(StrEnum):
    SCHEDULED = "SCHEDULED"
    OPEN = "OPEN"
    ADMITTING = "ADMITTING"
    ENDED = "ENDED"


@dataclass(frozen=True, slots=True)
class RoomTerms:
    """What staff set. `per_minute` is None for AUTO, which `max_per_minute` may bound."""

    opens_before_sale: timedelta
    per_minute: int | None
    max_per_minute: int | None
    session: timedelta
    proof_of_work_bits: int


@dataclass(frozen=True, slots=True)
class Room:
    """A waiting room as it was read, with what it needs of its event.

    `participants`, `draw_time` and `secret` are None before the draw.
    """

    event_id: UUID
    room_id: UUID
    terms: RoomTerms
    seed: bytes
    commitment: bytes
    secret: bytes | None
    participants: int | None
    draw_time: datetime | None
    issued: int
    admitted: int
    advance_time: datetime | None
    given_on: int
    active_target: float
    create_time: datetime
    update_time: datetime
    sale_start_time: datetime
    sale_end_time: datetime | None
    staff_status: StaffStatus
    is_sold_out: bool

    @property
    def open_time(self) -> datetime:
        return self.sale_start_time - self.terms.opens_before_sale

    @property
    def is_drawn(self) -> bool:
        return self.participants is not None

    @property
    def is_hidden(self) -> bool:
        """Whether only staff may see the room, because its event is a draft."""
        return self.staff_status is StaffStatus.DRAFT

    def is_over(self, now: datetime) -> bool:
        """Whether the sale has ended for good."""
        return self.staff_status is StaffStatus.CANCELLED or (
            self.sale_end_time is not None and now >= self.sale_end_time
        )

    def is_selling(self, now: datetime) -> bool:
        """Whether bookings can be placed: only then visitors are admitted."""
        return (
            self.staff_status is StaffStatus.OPEN
            and self.sale_start_time <= now
            and not self.is_sold_out
            and not self.is_over(now)
        )

    def state_at(self, now: datetime) -> RoomState:
        if self.is_over(now) or (self.is_drawn and self.is_sold_out):
            return RoomState.ENDED
        if self.is_drawn:
            return RoomState.ADMITTING
        return RoomState.OPEN if now >= self.open_time else RoomState.SCHEDULED

    def refuse_unless_joinable(self, now: datetime) -> None:
        """Raises QUEUE_CLOSED before the room opens and after the sale."""
        state = self.state_at(now)
        if state in (RoomState.OPEN, RoomState.ADMITTING):
            return
        raise DomainError(
            Reason.QUEUE_CLOSED,
            "the waiting room is not open yet"
            if state is RoomState.SCHEDULED
            else "the sale is over: the queue cannot be joined",
            state=state,
            opens=self.open_time.isoformat().replace("+00:00", "Z"),
        )


_EVENT = ("sale_start_time", "sale_end_time", "status", "is_sold_out")
selected: sa.Select[Any] = sa.select(
    waiting_rooms, *(events_table.c[name] for name in _EVENT)
).join_from(waiting_rooms, events_table)
"""Rooms with what they need of their events, for `from_row`."""


def from_row(row: sa.Row[Any]) -> Room:
    return Room(
        event_id=row.event_id,
        room_id=row.room_id,
        terms=RoomTerms(
            timedelta(seconds=row.opens_before_sale_seconds),
            row.per_minute,
            row.max_per_minute,
            timedelta(seconds=row.session_seconds),
            row.proof_of_work_bits,
        ),
        seed=row.draw_seed,
        commitment=row.commitment,
        secret=row.draw_secret,
        participants=row.participants,
        draw_time=row.draw_time,
        issued=row.issued,
        admitted=row.admitted,
        advance_time=row.advance_time,
        given_on=row.given_on,
        active_target=row.active_target,
        create_time=row.create_time,
        update_time=row.update_time,
        sale_start_time=row.sale_start_time,
        sale_end_time=row.sale_end_time,
        staff_status=StaffStatus(row.status),
        is_sold_out=row.is_sold_out,
    )


async def get(connection: AsyncConnection, *, event_id: UUID, lock: bool = False) -> Room:
    """Raises WAITING_ROOM_NOT_FOUND. With `lock` the room's row stays locked."""
    query = selected.where(waiting_rooms.c.event_id == event_id)
    if lock:
        query = query.with_for_update(of=waiting_rooms)
    row = (await connection.execute(query)).one_or_none()
    if row is None:
        raise not_found(event_id)
    return from_row(row)


def not_found(event_id: UUID) -> DomainError:
    return DomainError(
        Reason.WAITING_ROOM_NOT_FOUND, "the event has no waiting room", event_id=event_id
    )


async def put(
    connection: AsyncConnection,
    *,
    event_id: UUID,
    terms: RoomTerms,
    key: str,
    seed: bytes,
    now: datetime,
) -> Room:
    """Creates the room of an event, or changes its terms; the draw stays.

    `key` and `seed` give a new room its secret. Raises EVENT_NOT_FOUND, or EVENT_STATE_INVALID for
    a cancelled event, and for a new room once the sale has started: who was first is past then.
    """
    event = await events.get_to_change(connection, event_id=event_id)
    status = event.status_at(now, available=1)
    if status in (Status.CANCELLED, Status.ENDED):
        raise _state_invalid("the sale is over", status)
    values = {
        "opens_before_sale_seconds": int(terms.opens_before_sale.total_seconds()),
        "per_minute": terms.per_minute,
        "max_per_minute": terms.max_per_minute,
        "session_seconds": int(terms.session.total_seconds()),
        "proof_of_work_bits": terms.proof_of_work_bits,
        "update_time": now,
    }
    updated = await connection.execute(
        sa.update(waiting_rooms).where(waiting_rooms.c.event_id == event_id).values(**values)
    )
    if not updated.rowcount:
        if event.sale_start_time <= now:
            raise _state_invalid("the sale has started: a waiting room is made before it", status)
        await connection.execute(
            waiting_rooms.insert().values(
                event_id=event_id,
                room_id=new_id(),
                draw_seed=seed,
                commitment=draw.commitment_of(draw.secret_of(key, event_id, seed)),
                active_target=FIRST_ACTIVE_TARGET,
                create_time=now,
                **values,
            )
        )
        await events.set_waiting_room(connection, event_id=event_id, exists=True, now=now)
    return await get(connection, event_id=event_id)


async def remove(connection: AsyncConnection, *, event_id: UUID, now: datetime) -> None:
    """Removes a room with its tickets. Raises WAITING_ROOM_NOT_FOUND, or EVENT_STATE_INVALID after
    the draw: the places in line are promised then, and admissions are out.
    """
    try:
        event = await events.get_to_change(connection, event_id=event_id)
    except DomainError:
        raise not_found(event_id) from None
    room = await get(connection, event_id=event_id, lock=True)
    if room.is_drawn:
        raise _state_invalid(
            "the draw has taken place: the waiting room stays", event.status_at(now, available=1)
        )
    await connection.execute(sa.delete(waiting_rooms).where(waiting_rooms.c.event_id == event_id))
    await events.set_waiting_room(connection, event_id=event_id, exists=False, now=now)


def _state_invalid(message: str, status: Status) -> DomainError:
    return DomainError(Reason.EVENT_STATE_INVALID, message, status=status)


async def at_work(connection: AsyncConnection, *, now: datetime) -> list[Room]:
    """The rooms whose sale has started and is not over: those to draw or to admit from."""
    event = events_table.c
    rows = await connection.execute(
        selected.where(
            event.sale_start_time <= now,
            sa.or_(event.sale_end_time.is_(None), event.sale_end_time > now),
            event.status.in_([StaffStatus.OPEN, StaffStatus.PAUSED]),
        ).order_by(waiting_rooms.c.event_id)
    )
    return [from_row(row) for row in rows]


async def hold_draw(
    connection: AsyncConnection, *, room: Room, keys: Sequence[str], now: datetime
) -> bool:
    """Holds the draw of a room, once: who has a ticket by now takes part. One statement.

    It decides by the event as it is at this moment: staff may have moved the sale.
    """
    secret = draw.revealed(keys, room.event_id, room.seed, room.commitment)
    if secret is None:
        raise RuntimeError("no key of BOXOFFICE_QUEUE_SECRET_KEYS made the draw's commitment")
    event = events_table.c
    drawn = await connection.execute(
        sa.update(waiting_rooms)
        .where(
            waiting_rooms.c.event_id == room.event_id,
            waiting_rooms.c.room_id == room.room_id,
            waiting_rooms.c.participants.is_(None),
            sa.exists().where(
                event.event_id == waiting_rooms.c.event_id,
                event.sale_start_time <= now,
                event.status.in_([StaffStatus.OPEN, StaffStatus.PAUSED]),
            ),
        )
        .values(participants=waiting_rooms.c.issued, draw_secret=secret, draw_time=now)
    )
    return bool(drawn.rowcount)
