"""The states of a booking: which moves are allowed, and the statements that write them.

A move is decided here and written by one UPDATE that tests the state it was decided on. The
first state is inserted by batch_writer.py. Calls to other services are saga steps.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.bookings import outbox, pricing
from booking_svc.bookings.bookings import (
    SYSTEM,
    Actor,
    Booking,
    By,
    Item,
    Payment,
    PaymentStatus,
    Status,
    TimelineEntry,
)
from booking_svc.bookings.outbox import Change, OutboxEntry
from booking_svc.bookings.saga_steps import StepKind, enqueue
from booking_svc.bookings.tables import booking_timeline, bookings
from booking_svc.catalogue.events import Event
from mesh.db.pipeline import FORCE_INDEX_SCANS, Statement, columns, run_together
from mesh.errors import DomainError, Reason
from mesh.ids import new_id
from mesh.money import Money
from mesh.observability import request_context

MOVES: dict[Status, frozenset[Status]] = {
    Status.HELD: frozenset(
        # CONFIRMED without a payment: a booking with the total 0.
        {Status.PENDING_PAYMENT, Status.CONFIRMED, Status.EXPIRED, Status.CANCELLED}
    ),
    Status.PENDING_PAYMENT: frozenset(
        {Status.CONFIRMED, Status.EXPIRED, Status.CANCELLED, Status.FAILED}
    ),
    Status.CONFIRMED: frozenset({Status.COMPLETED, Status.CANCELLED}),
    Status.COMPLETED: frozenset(),
    # A late payment: its places are still available, or its event was cancelled meanwhile.
    Status.EXPIRED: frozenset({Status.CONFIRMED, Status.CANCELLED}),
    Status.FAILED: frozenset({Status.CONFIRMED, Status.CANCELLED}),
    Status.CANCELLED: frozenset(),
}

LIVE = (Status.HELD, Status.PENDING_PAYMENT, Status.CONFIRMED)
"""States in which a booking has places."""

SOLD = (Status.CONFIRMED, Status.COMPLETED)
"""States in which a booking's places are sold."""

UNPAID = (Status.HELD, Status.PENDING_PAYMENT)
"""States in which places are held and no payment was captured."""

# Reconciliation asks for a payment whose event has not arrived by then.
FIRST_CHECK = timedelta(seconds=60)
_CHECKOUT = "checkout"
# Longer than any attempt of a step.
_STALLED = timedelta(seconds=60)


@dataclass(frozen=True, slots=True)
class Transition:
    """A booking before and after a change of its state or payment, not yet written.

    `entry` is the timeline's, None when the state stays. `origin` is the causing call's.
    """

    before: Booking
    after: Booking
    by: By
    entry: TimelineEntry | None = None
    change: Change | None = None
    origin: str = ""


def placed(
    *,
    booking_id: UUID,
    event: Event,
    customer_id: UUID,
    items: tuple[Item, ...],
    hold_expire_time: datetime,
    provider: str | None,
    now: datetime,
) -> Booking:
    """A new booking, not yet written: PENDING_PAYMENT with a provider, HELD without one.

    Its reservation has the same id.
    """
    booking = Booking(
        booking_id=booking_id,
        event_id=event.event_id,
        customer_id=customer_id,
        status=Status.HELD,
        items=items,
        total=pricing.total(items, event.currency_code),
        hold_expire_time=hold_expire_time,
        reservation_id=booking_id,
        payment=None,
        refunds=(),
        cancellation_policy=event.cancellation_policy,
        timeline=(TimelineEntry(now, Status.HELD, "placed", Actor.CUSTOMER),),
        create_time=now,
        update_time=now,
        confirm_time=None,
    )
    if provider is None:
        return booking
    return payment_begun(
        booking,
        payment=Payment(new_id(), provider, PaymentStatus.CREATED, None),
        hold_expire_time=hold_expire_time,
        by=By(Actor.CUSTOMER, customer_id),
        now=now,
    ).after


def moved(
    booking: Booking,
    *,
    to: Status,
    reason: str,
    now: datetime,
    by: By = SYSTEM,
    refund: Money | None = None,
) -> Transition:
    """Decides a move to another state. `refund` is the amount to refund, for the domain event.

    Raises BOOKING_STATE_INVALID for a move that MOVES does not have.
    """
    if to not in MOVES[booking.status]:
        raise DomainError(
            Reason.BOOKING_STATE_INVALID,
            f"a booking that is {booking.status} cannot become {to}",
            status=booking.status,
        )
    entry = TimelineEntry(now, to, reason, by.actor)
    after = replace(
        booking,
        status=to,
        confirm_time=now if to is Status.CONFIRMED else booking.confirm_time,
        timeline=(*booking.timeline, entry),
        update_time=now,
    )
    change = _change(booking, to, reason, by, refund)
    return Transition(booking, after, by, entry, change, request_context.origin())


def payment_begun(
    booking: Booking,
    *,
    payment: Payment,
    hold_expire_time: datetime,
    by: By,
    now: datetime,
) -> Transition:
    """HELD → PENDING_PAYMENT with a new payment."""
    begun = moved(booking, to=Status.PENDING_PAYMENT, reason=_CHECKOUT, by=by, now=now)
    after = replace(
        begun.after, payment=payment, hold_expire_time=hold_expire_time, update_time=now
    )
    return replace(begun, after=after)


def payment_opened(
    booking: Booking, url: str, now: datetime, client_secret: str | None = None
) -> Transition:
    """The booking's payment can be paid at `url`, or with the secret if it is embedded."""
    payment = replace(_payment_of(booking), payment_url=url, client_secret=client_secret)
    return Transition(booking, replace(booking, payment=payment, update_time=now), SYSTEM)


def updating(transitions: Sequence[Transition]) -> Statement:
    """Writes the states and payments of bookings. Returns the ids of those it has written.

    A booking whose state or payment is no longer the one that was decided on stays as it is.
    """
    return Statement(_UPDATE, columns(map(_row, transitions), 14))


def recording(
    connection: AsyncConnection, transitions: Sequence[Transition], *, now: datetime
) -> list[Statement]:
    """Writes the timeline entries and domain events of transitions, in their order."""
    entries = [(t.after, t.by, t.entry) for t in transitions if t.entry is not None]
    events = [OutboxEntry(t.after, t.change, t.origin) for t in transitions if t.change is not None]
    statements = [inserting_entries(entries)] if entries else []
    return statements + ([outbox.insertion(connection, events, now=now)] if events else [])


def inserting_entries(entries: Sequence[tuple[Booking, By, TimelineEntry]]) -> Statement:
    """Writes timeline entries, in their order."""
    return Statement(_INSERT_TIMELINE, columns(entry_rows(entries), 6))


def entry_rows(
    entries: Sequence[tuple[Booking, By, TimelineEntry]],
) -> Iterator[tuple[object, ...]]:
    """Timeline entries as rows: booking_id, time, status, reason, actor, actor_id."""
    for booking, by, entry in entries:
        yield (
            booking.booking_id,
            entry.time,
            entry.status.value,
            entry.reason,
            entry.actor.value,
            by.user_id,
        )


def inserting_items(items_of: Sequence[tuple[UUID, Sequence[Item]]]) -> Statement:
    """Writes the items of bookings that have none."""
    return Statement(_INSERT_ITEMS, columns(item_rows(items_of), 6))


def item_rows(items_of: Sequence[tuple[UUID, Sequence[Item]]]) -> Iterator[tuple[object, ...]]:
    """Items as rows: booking_id, item_index, offer_id, seat_id, quantity, unit_price_minor."""
    for booking_id, items in items_of:
        for index, item in enumerate(items):
            yield (
                booking_id,
                index,
                item.offer_id,
                item.seat_id,
                item.quantity,
                item.unit_price.amount_minor,
            )


async def write_all(
    connection: AsyncConnection,
    transitions: Sequence[Transition],
    *,
    now: datetime,
    also: Sequence[Statement] = (),
) -> None:
    """Writes the transitions of locked bookings, and runs `also`, in one round trip."""
    if not transitions:
        return
    _, updated, *_ = await run_together(
        connection,
        [
            FORCE_INDEX_SCANS,
            updating(transitions),
            *recording(connection, transitions, now=now),
            *also,
        ],
    )
    if updated.count != len(transitions):
        # The transaction rolls back.
        changed = {t.before.booking_id for t in transitions} - {row[0] for row in updated.rows}
        raise RuntimeError(f"bookings were changed without their lock: {changed}")


async def write(connection: AsyncConnection, transition: Transition, *, now: datetime) -> Booking:
    """Writes the transition of a locked booking."""
    await write_all(connection, [transition], now=now)
    return transition.after


async def move(
    connection: AsyncConnection,
    *,
    booking: Booking,
    to: Status,
    reason: str,
    now: datetime,
    by: By = SYSTEM,
    refund: Money | None = None,
) -> Booking:
    """Moves a locked booking to another state. Raises as `moved` does."""
    transition = moved(booking, to=to, reason=reason, by=by, now=now, refund=refund)
    return await write(connection, transition, now=now)


def payment_ended(booking: Booking, status: PaymentStatus, now: datetime) -> Transition:
    """The booking's payment has an outcome."""
    payment = replace(_payment_of(booking), status=status)
    return Transition(booking, replace(booking, payment=payment, update_time=now), SYSTEM)


async def set_payment_status(
    connection: AsyncConnection, *, booking: Booking, status: PaymentStatus, now: datetime
) -> Booking:
    """Records the outcome of a locked booking's payment."""
    return await write(connection, payment_ended(booking, status, now), now=now)


async def note(
    connection: AsyncConnection, *, booking: Booking, reason: str, now: datetime, by: By = SYSTEM
) -> None:
    """Adds a timeline entry without a change of state."""
    entry = TimelineEntry(now, booking.status, reason, by.actor)
    await run_together(connection, [inserting_entries([(booking, by, entry)])])


async def note_decline(
    connection: AsyncConnection,
    *,
    booking: Booking,
    attempt_id: UUID | None,
    failure_code: str,
    now: datetime,
) -> bool:
    """Adds a declined attempt to pay to the timeline. False if it is noted already."""
    noted = await connection.execute(
        postgresql.insert(booking_timeline)
        .values(
            booking_id=booking.booking_id,
            time=now,
            status=booking.status,
            reason=f"payment declined: {failure_code}",
            actor=Actor.SYSTEM,
            attempt_id=attempt_id,
            failure_code=failure_code,
        )
        .on_conflict_do_nothing()
    )
    return noted.rowcount == 1


async def end_unpaid(
    connection: AsyncConnection,
    *,
    booking: Booking,
    to: Status,
    reason: str,
    now: datetime,
    by: By = SYSTEM,
    even_if_paid: bool = False,
    refund: Money | None = None,
) -> Booking:
    """Ends a locked, unpaid booking; steps release its places and void its payment.

    Raises BOOKING_STATE_INVALID if its payment was captured, unless `even_if_paid`: then
    `refund` is the promised refund.
    """
    paid = booking.payment is not None and booking.payment.status is PaymentStatus.CAPTURED
    if paid and not even_if_paid:
        raise DomainError(
            Reason.BOOKING_STATE_INVALID,
            "the booking is paid and about to be confirmed",
            status=booking.status,
        )
    ended = await move(
        connection, booking=booking, to=to, reason=reason, by=by, refund=refund, now=now
    )
    await release_places(connection, booking=booking, now=now)
    if booking.payment is not None:
        await enqueue(
            connection, booking.booking_id, StepKind.VOID, booking.payment.payment_id, now=now
        )
    return ended


async def release_places(
    connection: AsyncConnection,
    *,
    booking: Booking,
    now: datetime,
    due_in: timedelta = timedelta(0),
) -> None:
    """Enqueues the release of the booking's reservation, or the return of its sold places."""
    await enqueue(
        connection,
        booking.booking_id,
        StepKind.RELEASE,
        booking.reservation_id,
        event_id=booking.event_id,
        now=now,
        due_in=due_in,
    )


async def replace_reservation(
    connection: AsyncConnection, *, booking: Booking, reservation_id: UUID, now: datetime
) -> Booking:
    """Gives a locked booking another reservation, not yet made. A step releases the previous one.

    The step waits for 60 s: a process that has stalled may still use the previous one.
    """
    await release_places(connection, booking=booking, now=now, due_in=_STALLED)
    await connection.execute(
        sa.update(bookings)
        .where(bookings.c.booking_id == booking.booking_id)
        .values(reservation_id=reservation_id, update_time=now)
    )
    return replace(booking, reservation_id=reservation_id, update_time=now)


def _payment_of(booking: Booking) -> Payment:
    if booking.payment is None:
        raise ValueError(f"booking {booking.booking_id} has no payment")
    return booking.payment


def _change(
    booking: Booking, to: Status, reason: str, by: By, refund: Money | None
) -> Change | None:
    """The domain event of a move; PENDING_PAYMENT has none."""
    match to:
        case Status.CONFIRMED:
            paid = booking.payment if by == SYSTEM else None
            return outbox.Confirmed(reason, by, None if paid is None else paid.payment_id)
        case Status.CANCELLED:
            return outbox.Cancelled(by.actor, reason, refund)
        case Status.EXPIRED:
            return outbox.Expired(reason)
        case Status.FAILED:
            return outbox.Failed(reason)
        case Status.COMPLETED:
            return outbox.Completed()
        case _:
            return None


def _row(transition: Transition) -> tuple[object, ...]:
    before, after = transition.before, transition.after
    payment = after.payment
    return (
        after.booking_id,
        before.status.value,
        before.payment and before.payment.payment_id,
        before.payment and before.payment.status.value,
        after.status.value,
        after.hold_expire_time,
        payment and payment.payment_id,
        payment and payment.provider,
        payment and payment.status.value,
        payment and payment.payment_url,
        payment and payment.client_secret,
        after.update_time + FIRST_CHECK,
        after.confirm_time,
        after.update_time,
    )


# payment_check_time: reconciliation asks for a new payment, and no longer for a captured one.
_UPDATE = """
UPDATE bookings SET status = given.status, hold_expire_time = given.hold_expire_time,
    payment_id = given.payment_id, payment_provider = given.payment_provider,
    payment_status = given.payment_status, payment_url = given.payment_url,
    payment_client_secret = given.payment_client_secret,
    payment_check_time = CASE
        WHEN given.payment_status IN ('CAPTURED', 'REFUNDED') THEN NULL
        WHEN given.payment_id IS DISTINCT FROM given.before_payment_id THEN given.first_check_time
        ELSE bookings.payment_check_time END,
    confirm_time = given.confirm_time, update_time = given.update_time
FROM unnest(%s::uuid[], %s::text[], %s::uuid[], %s::text[], %s::text[], %s::timestamptz[],
    %s::uuid[], %s::text[], %s::text[], %s::text[], %s::text[], %s::timestamptz[],
    %s::timestamptz[], %s::timestamptz[])
    AS given (booking_id, before_status, before_payment_id, before_payment_status, status,
    hold_expire_time, payment_id, payment_provider, payment_status, payment_url,
    payment_client_secret, first_check_time, confirm_time, update_time)
WHERE bookings.booking_id = given.booking_id
    AND bookings.status = given.before_status
    AND bookings.payment_id IS NOT DISTINCT FROM given.before_payment_id
    AND bookings.payment_status IS NOT DISTINCT FROM given.before_payment_status
RETURNING bookings.booking_id
"""

_INSERT_ITEMS = """
INSERT INTO booking_items
    (booking_id, item_index, offer_id, seat_id, quantity, unit_price_minor)
SELECT * FROM unnest(%s::uuid[], %s::int[], %s::uuid[], %s::uuid[], %s::int[], %s::bigint[])
"""

# In the order of the rows, which the entries' ids keep.
_INSERT_TIMELINE = """
INSERT INTO booking_timeline (booking_id, time, status, reason, actor, actor_id)
SELECT booking_id, time, status, reason, actor, actor_id
FROM unnest(%s::uuid[], %s::timestamptz[], %s::text[], %s::text[], %s::text[], %s::uuid[])
    WITH ORDINALITY AS given (booking_id, time, status, reason, actor, actor_id, number)
ORDER BY number
"""
