"""Changes of a booking's items or event as rows; each function belongs to one transaction.

A change is stored before the ledger exchanges the places and applied to the booking after that.
While it waits for the payment of its price difference, the booking stays as it is.
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
from mesh.db.pipeline import run_together
from mesh.errors import DomainError, Reason
from mesh.money import Money

OPEN = (ChangeState.PENDING_PAYMENT, ChangeState.EXCHANGING)

# The call that begins an exchange also makes it; a step does so if that process has died.
_TAKE_OVER = timedelta(seconds=10)


@dataclass(frozen=True, slots=True)
class Change:
    """`change_id` is also the id of the new reservation. `difference` must be paid first."""

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
    """Inserts a change of a locked booking, and its EXCHANGE step if nothing must be paid.

    Raises BOOKING_STATE_INVALID if the booking has an open change.
    """
    if await find_open(connection, booking_id=change.booking_id) is not None:
        raise DomainError(
            Reason.BOOKING_STATE_INVALID, "another change of the booking is not finished"
        )
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
            due_in=_TAKE_OVER,
        )


async def get(connection: AsyncConnection, *, change_id: UUID) -> Change:
    return _from_row(
        (
            await connection.execute(
                sa.select(booking_changes).where(booking_changes.c.change_id == change_id)
            )
        ).one()
    )


async def find(connection: AsyncConnection, *, change_id: UUID) -> Change | None:
    return await _find(connection, booking_changes.c.change_id == change_id)


async def find_by_payment(connection: AsyncConnection, *, payment_id: UUID) -> Change | None:
    """The change whose difference a payment pays."""
    return await _find(connection, booking_changes.c.payment_id == payment_id)


async def find_open(connection: AsyncConnection, *, booking_id: UUID) -> Change | None:
    """The open change of a booking."""
    columns = booking_changes.c
    return await _find(connection, columns.booking_id == booking_id, columns.state.in_(OPEN))


async def rescheduled_time(connection: AsyncConnection, *, booking: Booking) -> datetime | None:
    """When the customer chose the booking's event by rescheduling; None if it was booked."""
    columns = booking_changes.c
    time: datetime | None = await connection.scalar(
        sa.select(sa.func.max(columns.create_time))
        .where(columns.booking_id == booking.booking_id, columns.state == ChangeState.DONE)
        .where(columns.to_event_id == booking.event_id, columns.from_event_id != booking.event_id)
    )
    return time


def in_progress(booking: Booking) -> DomainError:
    """The refusal while the places of a change are being exchanged."""
    return DomainError(
        Reason.BOOKING_STATE_INVALID,
        "a change of the booking is in progress: retry in a moment",
        status=booking.status,
        retry_after_seconds=1,
    )


async def set_details(
    connection: AsyncConnection,
    *,
    booking_id: UUID,
    attendees: Sequence[str] | None,
    note: str | None,
    now: datetime,
) -> None:
    """Sets a booking's attendees and note; None keeps the present value."""
    values: dict[str, object] = {} if attendees is None else {"attendees": list(attendees)}
    if note is not None:
        values["note"] = note
    await connection.execute(
        sa.update(bookings_table)
        .where(bookings_table.c.booking_id == booking_id)
        .values(update_time=now, **values)
    )


async def set_payment_url(
    connection: AsyncConnection,
    *,
    change_id: UUID,
    payment_id: UUID,
    url: str,
    client_secret: str | None,
    now: datetime,
) -> None:
    """Stores where the difference is paid, unless another payment has replaced this one."""
    await connection.execute(
        sa.update(booking_changes)
        .where(booking_changes.c.change_id == change_id)
        .where(booking_changes.c.payment_id == payment_id)
        .values(payment_url=url, payment_client_secret=client_secret, update_time=now)
    )


async def start_exchange(connection: AsyncConnection, *, change: Change, now: datetime) -> None:
    """PENDING_PAYMENT → EXCHANGING. The booking must be locked."""
    await _set_state(connection, change, ChangeState.EXCHANGING, now)
    await saga_steps.enqueue(
        connection, change.booking_id, StepKind.EXCHANGE, change.change_id, now=now
    )


async def end_unpaid(
    connection: AsyncConnection,
    *,
    booking: Booking,
    change: Change,
    to: ChangeState,
    now: datetime,
    refusal: Reason | None = None,
) -> None:
    """Ends a change that waits for its payment; the locked booking stays as it is.

    `refusal` is why its places or its payment could not be had.
    """
    await _set_state(connection, change, to, now, refusal=refusal)
    await _enqueue_release(connection, change, now)
    await state_machine.note(connection, booking=booking, reason=f"change {to.lower()}", now=now)


async def refuse(
    connection: AsyncConnection, *, booking: Booking, change: Change, reason: Reason, now: datetime
) -> None:
    """The ledger refused the exchange: the locked booking stays, its paid difference is refunded."""
    await _set_state(connection, change, ChangeState.REFUSED, now, refusal=reason)
    if change.payment_id is not None:
        await refunds.refund_payment(
            connection,
            booking=booking,
            payment_id=change.payment_id,
            reason="change_not_possible",
            now=now,
        )
        await _enqueue_release(connection, change, now)
    await state_machine.note(
        connection, booking=booking, reason=f"change refused: {reason}", now=now
    )


async def finish(
    connection: AsyncConnection, *, booking: Booking, change: Change, now: datetime
) -> Booking:
    """The ledger exchanged the places: the locked booking gets them, a lower price is refunded."""
    await _set_state(connection, change, ChangeState.DONE, now)
    booking, refund = await refunds.refund(
        connection,
        booking=booking,
        amount=change.refund,
        reason="booking_changed",
        keep_minor=change.total.amount_minor,
        now=now,
    )
    values: dict[str, object] = {
        "event_id": change.to_event_id,
        "reservation_id": change.change_id,
        "total_minor": change.total.amount_minor,
        "max_refund_percent": change.max_refund_percent,
        # Not more names than places.
        "attendees": list(booking.attendees[: sum(item.quantity for item in change.items)]),
        "update_time": now,
    }
    if booking.payment is None and change.payment_id is not None:
        # The booking was free until now.
        values |= {
            "payment_id": change.payment_id,
            "payment_provider": change.provider,
            "payment_status": PaymentStatus.CAPTURED,
        }
    await connection.execute(
        sa.update(bookings_table)
        .where(bookings_table.c.booking_id == booking.booking_id)
        .values(**values)
    )
    await connection.execute(
        sa.delete(booking_items).where(booking_items.c.booking_id == booking.booking_id)
    )
    await run_together(
        connection, [state_machine.inserting_items([(booking.booking_id, change.items)])]
    )
    has_moved = change.to_event_id != change.from_event_id
    reason = "rescheduled" if has_moved else "items changed"
    await state_machine.note(connection, booking=booking, reason=reason, by=change.by, now=now)
    changed = await bookings.get(connection, booking_id=booking.booking_id)
    money = refund if refund.amount_minor else None
    event: outbox.Change = (
        outbox.Rescheduled(change.from_event_id, booking.total, money)
        if has_moved
        else outbox.Updated(booking.total, money)
    )
    await outbox.append(connection, booking=changed, change=event, now=now)
    return changed


async def _find(connection: AsyncConnection, *conditions: sa.ColumnElement[bool]) -> Change | None:
    row = (await connection.execute(sa.select(booking_changes).where(*conditions))).one_or_none()
    return None if row is None else _from_row(row)


async def _enqueue_release(connection: AsyncConnection, change: Change, now: datetime) -> None:
    """Enqueues the release of a change's hold and the void of its payment."""
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
    """Moves a change of a locked booking. The WHERE makes a second move of it fail."""
    moved = await connection.execute(
        sa.update(booking_changes)
        .where(booking_changes.c.change_id == change.change_id)
        .where(booking_changes.c.state == change.state)
        .values(state=state, refusal=refusal, update_time=now)
    )
    if moved.rowcount != 1:
        raise RuntimeError(f"change {change.change_id} is no longer {change.state}")


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
