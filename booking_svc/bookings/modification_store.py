"""Other items or another event for a booking: one transaction of it each.

A change is written down before the ledger exchanges the places and done in one piece
after that. While it waits for its price difference, the booking stays as it is.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.bookings import bookings, outbox, refunds, saga_steps, state_machine
from booking_svc.bookings.bookings import (
    Actor,
    Booking,
    By,
    ChangeState,
    Item,
    PaymentStatus,
)
from booking_svc.bookings.saga_steps import StepKind
from booking_svc.bookings.tables import booking_changes, booking_items
from booking_svc.bookings.tables import bookings as bookings_table
from mesh.errors import DomainError, Reason
from mesh.money import Money

OPEN = (ChangeState.PENDING_PAYMENT, ChangeState.EXCHANGING)

# Who has begun an exchange does it itself; a step takes it up when that one has died.
_TAKE_UP = timedelta(seconds=10)


@dataclass(frozen=True, slots=True)
class Change:
    """`change_id` is the new reservation's, too. `difference` is to be paid first."""

    change_id: UUID
    booking_id: UUID
    state: ChangeState
    from_event_id: UUID
    from_reservation_id: UUID
    to_event_id: UUID
    items: tuple[Item, ...]
    total: Money
    refund: Money
    max_refund_percent: int
    difference: Money
    payment_id: UUID | None
    provider: str | None
    expire_time: datetime
    by: By
    refusal: Reason | None


async def begin(connection: AsyncConnection, *, change: Change, now: datetime) -> None:
    """Writes down a change of a locked booking, and the exchange if nothing is to be paid.

    Raises BOOKING_STATE_INVALID when there is an open one.
    """
    booking_is_free = ~sa.exists().where(
        booking_changes.c.booking_id == change.booking_id, booking_changes.c.state.in_(OPEN)
    )
    if not await connection.scalar(sa.select(booking_is_free)):
        raise DomainError(Reason.BOOKING_STATE_INVALID, "the booking is being changed already")
    await connection.execute(
        booking_changes.insert().values(
            change_id=change.change_id,
            booking_id=change.booking_id,
            state=change.state,
            from_event_id=change.from_event_id,
            from_reservation_id=change.from_reservation_id,
            to_event_id=change.to_event_id,
            items=[
                [str(i.offer_id), str(i.seat_id or ""), i.quantity, i.unit_price.amount_minor]
                for i in change.items
            ],
            total_minor=change.total.amount_minor,
            currency_code=change.total.currency_code,
            refund_minor=change.refund.amount_minor,
            max_refund_percent=change.max_refund_percent,
            difference_minor=change.difference.amount_minor,
            payment_id=change.payment_id,
            payment_provider=change.provider,
            expire_time=change.expire_time,
            actor=change.by.actor,
            actor_id=change.by.user_id,
            create_time=now,
            update_time=now,
        )
    )
    if change.state is ChangeState.EXCHANGING:
        await saga_steps.enqueue(
            connection,
            change.booking_id,
            StepKind.EXCHANGE,
            change.change_id,
            now=now,
            due_in=_TAKE_UP,
        )


async def get(connection: AsyncConnection, *, change_id: UUID) -> Change:
    return _from_row(
        (
            await connection.execute(
                sa.select(booking_changes).where(booking_changes.c.change_id == change_id)
            )
        ).one()
    )


async def find_by_payment(connection: AsyncConnection, *, payment_id: UUID) -> Change | None:
    """The change whose difference a payment pays."""
    row = (
        await connection.execute(
            sa.select(booking_changes).where(booking_changes.c.payment_id == payment_id)
        )
    ).one_or_none()
    return None if row is None else _from_row(row)


async def find_open(connection: AsyncConnection, *, booking_id: UUID) -> Change | None:
    """The open change of a booking."""
    row = (
        await connection.execute(
            sa.select(booking_changes)
            .where(booking_changes.c.booking_id == booking_id)
            .where(booking_changes.c.state.in_(OPEN))
        )
    ).one_or_none()
    return None if row is None else _from_row(row)


async def set_payment_url(
    connection: AsyncConnection, *, change_id: UUID, url: str, now: datetime
) -> None:
    """Stores where the difference is paid."""
    await connection.execute(
        sa.update(booking_changes)
        .where(booking_changes.c.change_id == change_id)
        .values(payment_url=url, update_time=now)
    )


async def paid(connection: AsyncConnection, *, change: Change, now: datetime) -> None:
    """PENDING_PAYMENT → EXCHANGING. The booking must be locked."""
    await _set_state(connection, change, ChangeState.EXCHANGING, now)
    await saga_steps.enqueue(
        connection, change.booking_id, StepKind.EXCHANGE, change.change_id, now=now
    )


async def give_up(
    connection: AsyncConnection, *, booking: Booking, change: Change, to: ChangeState, now: datetime
) -> None:
    """Ends a change that waits for money; the locked booking stays as it is."""
    await _set_state(connection, change, to, now)
    await _let_go(connection, change, now)
    await state_machine.note(
        connection, booking=booking, reason=f"the change was {to.lower()}", now=now
    )


async def refuse(
    connection: AsyncConnection, *, booking: Booking, change: Change, reason: Reason, now: datetime
) -> None:
    """The ledger cannot exchange the places: the locked booking stays, the difference goes back."""
    await _set_state(connection, change, ChangeState.REFUSED, now, refusal=reason)
    if change.payment_id is not None:
        await refunds.refund_payment(
            connection,
            booking=booking,
            payment_id=change.payment_id,
            reason="change_not_possible",
            now=now,
        )
        await _let_go(connection, change, now)
    await state_machine.note(
        connection, booking=booking, reason=f"the change was refused: {reason}", now=now
    )


async def finish(
    connection: AsyncConnection, *, booking: Booking, change: Change, now: datetime
) -> Booking:
    """The places are exchanged: the locked booking has them, and what it costs less goes back."""
    await _set_state(connection, change, ChangeState.DONE, now)
    booking, refund = await refunds.refund(
        connection, booking=booking, amount=change.refund, reason="booking_changed", now=now
    )
    columns: dict[str, object] = {
        "event_id": change.to_event_id,
        "reservation_id": change.change_id,
        "total_minor": change.total.amount_minor,
        "max_refund_percent": change.max_refund_percent,
        "update_time": now,
    }
    if booking.payment is None and change.payment_id is not None:
        # It was free until now.
        columns |= {
            "payment_id": change.payment_id,
            "payment_provider": change.provider,
            "payment_status": PaymentStatus.CAPTURED,
        }
    await connection.execute(
        sa.update(bookings_table)
        .where(bookings_table.c.booking_id == booking.booking_id)
        .values(**columns)
    )
    await connection.execute(
        sa.delete(booking_items).where(booking_items.c.booking_id == booking.booking_id)
    )
    await state_machine.insert_items(connection, booking_id=booking.booking_id, items=change.items)
    has_moved = change.to_event_id != change.from_event_id
    reason = "rescheduled" if has_moved else "items changed"
    await state_machine.note(connection, booking=booking, reason=reason, by=change.by, now=now)
    changed = await bookings.get(connection, booking_id=booking.booking_id)
    money = refund if refund.amount_minor else None
    told: outbox.Change = (
        outbox.Rescheduled(change.from_event_id, booking.total, money)
        if has_moved
        else outbox.Updated(booking.total, money)
    )
    await outbox.append(connection, booking=changed, change=told, now=now)
    return changed


async def lapsed(connection: AsyncConnection, *, now: datetime, limit: int) -> Sequence[UUID]:
    """Bookings with a change whose difference was not paid in time."""
    found = await connection.execute(
        sa.select(booking_changes.c.booking_id)
        .where(booking_changes.c.state == ChangeState.PENDING_PAYMENT)
        .where(booking_changes.c.expire_time <= now)
        .order_by(booking_changes.c.expire_time)
        .limit(limit)
    )
    return found.scalars().all()


async def expire(connection: AsyncConnection, *, booking_id: UUID, now: datetime) -> None:
    """Ends the change of a booking if it still waits and its time is over."""
    booking = await bookings.get(connection, booking_id=booking_id, lock=True)
    change = await find_open(connection, booking_id=booking_id)
    if (
        change is not None
        and change.state is ChangeState.PENDING_PAYMENT
        and change.expire_time <= now
    ):
        await give_up(connection, booking=booking, change=change, to=ChangeState.EXPIRED, now=now)


async def _let_go(connection: AsyncConnection, change: Change, now: datetime) -> None:
    """Owes the end of the hold and of the payment of a change."""
    await saga_steps.enqueue(
        connection,
        change.booking_id,
        StepKind.RELEASE,
        change.change_id,
        event_id=change.to_event_id,
        now=now,
    )
    if change.payment_id is not None:
        await saga_steps.enqueue(
            connection, change.booking_id, StepKind.VOID, change.payment_id, now=now
        )


async def _set_state(
    connection: AsyncConnection,
    change: Change,
    state: ChangeState,
    now: datetime,
    *,
    refusal: Reason | None = None,
) -> None:
    """A move happens once: whoever comes second finds another state, under the lock."""
    moved = await connection.execute(
        sa.update(booking_changes)
        .where(booking_changes.c.change_id == change.change_id)
        .where(booking_changes.c.state == change.state)
        .values(state=state, refusal=refusal, update_time=now)
    )
    if moved.rowcount != 1:
        raise RuntimeError(f"change {change.change_id} is not {change.state} any more")


def _from_row(row: sa.Row[tuple[object, ...]]) -> Change:
    def money(minor: int) -> Money:
        return Money(minor, row.currency_code)

    return Change(
        change_id=row.change_id,
        booking_id=row.booking_id,
        state=ChangeState(row.state),
        from_event_id=row.from_event_id,
        from_reservation_id=row.from_reservation_id,
        to_event_id=row.to_event_id,
        items=tuple(
            Item(UUID(offer), UUID(seat) if seat else None, quantity, money(price))
            for offer, seat, quantity, price in row.items
        ),
        total=money(row.total_minor),
        refund=money(row.refund_minor),
        max_refund_percent=row.max_refund_percent,
        difference=money(row.difference_minor),
        payment_id=row.payment_id,
        provider=row.payment_provider,
        expire_time=row.expire_time,
        by=By(Actor(row.actor), row.actor_id),
        refusal=Reason(row.refusal) if row.refusal else None,
    )
