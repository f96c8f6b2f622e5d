"""The exchange: one reservation for another, of the same event or of two, all or nothing.

Order of locks: both reservations, then the pools of both, each sorted by event and id.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.errors import DomainError, Reason
from stock_svc import claims, expiry, ledger, reservation, reservations, reserve, transitions
from stock_svc.claims import Claimed
from stock_svc.demand import Key
from stock_svc.ledger import Kind
from stock_svc.reservation import Line, Reservation
from stock_svc.states import State
from stock_svc.tables import Uuid, any_of, events, offers, rows
from stock_svc.tables import reservations as table


async def exchange(
    connection: AsyncConnection,
    *,
    event_id: UUID,
    reservation_id: UUID,
    to_event_id: UUID,
    to_reservation_id: UUID,
    request_key: str,
    lines: Sequence[Line],
    expire_time: datetime,
    now: datetime,
) -> Reservation:
    """Ends a reservation and makes another in its state, or lets a hold take its place.

    Again, it returns the new one. Raises RESERVATION_NOT_FOUND, HOLD_EXPIRED,
    RESERVATION_STATE_INVALID, or as reservations.reserve does.
    """
    await _lock(connection, {(event_id, reservation_id), (to_event_id, to_reservation_id)})
    old = await reservations.find(connection, event_id=event_id, reservation_id=reservation_id)
    if old is None:
        raise DomainError(Reason.RESERVATION_NOT_FOUND, "no such reservation")
    new = reservation.new(
        event_id=to_event_id,
        reservation_id=to_reservation_id,
        request_key=request_key,
        customer_id=old.customer_id,
        lines=lines,
        expire_time=expire_time,
        replaces=reservation_id,
        now=now,
    )
    first = await reservations.first(connection, new)
    if first is not None:
        first = await reservations.with_lines(connection, first)
        if sorted(map(str, first.lines)) != sorted(map(str, new.lines)) or (
            first.customer_id != new.customer_id
        ):
            raise DomainError(
                Reason.IDEMPOTENCY_KEY_REUSED, "this reservation was made for other lines"
            )
        if first.replaces == reservation_id:
            return first
    _refuse_unless_live(old, now)
    if first is not None:
        _refuse_unless_live(first, now)
        return await _swap(connection, old, first, now=now)
    return await _make(connection, old, new, now=now)


async def _lock(connection: AsyncConnection, wanted: set[Key]) -> None:
    keys = sorted(wanted)
    key = rows(
        event_id=(Uuid, [key[0] for key in keys]), reservation_id=(Uuid, [key[1] for key in keys])
    )
    await connection.execute(
        sa.select(table.c.reservation_id)
        .where(sa.tuple_(table.c.event_id, table.c.reservation_id).in_(sa.select(key)))
        .order_by(table.c.event_id, table.c.reservation_id)
        .with_for_update(key_share=True)
    )


def _refuse_unless_live(found: Reservation, now: datetime) -> None:
    reservations.refuse_expired(found, now)
    if found.state not in (State.ACTIVE, State.COMMITTED):
        raise transitions.state_invalid(found)


async def _swap(
    connection: AsyncConnection, old: Reservation, hold: Reservation, *, now: datetime
) -> Reservation:
    """The hold takes the place of the old one."""
    if hold.state is not State.ACTIVE or hold.replaces is not None:
        raise transitions.state_invalid(hold)
    freed = await _claimed(connection, old)
    held = await _claimed(connection, hold)
    await ledger.lock(connection, {line.pool for line in (*freed, *held)})
    await _end(connection, old, freed, now=now)
    if old.state is State.COMMITTED:
        await claims.sell(connection, claimed=held, now=now)
    await connection.execute(
        sa.update(table)
        .where(table.c.event_id == hold.event_id, table.c.reservation_id == hold.reservation_id)
        .values(state=old.state, replaces=old.reservation_id, update_time=now)
    )
    return await reservations.get(
        connection, event_id=hold.event_id, reservation_id=hold.reservation_id
    )


async def _make(
    connection: AsyncConnection, old: Reservation, new: Reservation, *, now: datetime
) -> Reservation:
    """The new one is made with what the old one gives back, and what else is free."""
    freed = await _claimed(connection, old)
    pools = {line.pool for line in freed} | await _pools_of(connection, new)
    # Before the pools are locked: reserving would do it after.
    while (
        await expiry.clear(
            connection,
            event_ids=[new.event_id],
            also_lock=pools,
            limit=reserve.CLEARED_AT_ONCE,
            now=now,
        )
        == reserve.CLEARED_AT_ONCE
    ):
        pass
    await ledger.lock(connection, pools)
    await _end(connection, old, freed, now=now)
    [made] = await reserve.reserve_all(connection, [new], now=now)
    if isinstance(made, DomainError):
        raise made
    if old.state is State.ACTIVE:
        return made
    await claims.sell(connection, claimed=await _claimed(connection, made), now=now)
    await connection.execute(
        sa.update(table)
        .where(table.c.event_id == made.event_id, table.c.reservation_id == made.reservation_id)
        .values(state=State.COMMITTED)
    )
    return replace(made, state=State.COMMITTED)


async def _pools_of(connection: AsyncConnection, new: Reservation) -> set[Key]:
    """The pools that reserving will lock; unknown offers have none and are refused later."""
    found = await connection.scalars(
        sa.select(offers.c.pool_id)
        .join(events, events.c.event_id == offers.c.event_id)
        .where(offers.c.event_id == new.event_id)
        .where(
            (offers.c.offer_id == any_of({line.offer_id for line in new.lines}))
            | events.c.per_customer_limit.is_not(None)
        )
    )
    return {(new.event_id, pool_id) for pool_id in found}


async def _end(
    connection: AsyncConnection, old: Reservation, freed: Sequence[Claimed], *, now: datetime
) -> None:
    """ACTIVE → RELEASED, COMMITTED → RETURNED. The reservation and its pools are locked."""
    is_sold = old.state is State.COMMITTED
    await claims.free(
        connection,
        claimed=freed,
        kind=Kind.RETURN if is_sold else Kind.RELEASE,
        now=now,
    )
    await connection.execute(
        sa.update(table)
        .where(table.c.event_id == old.event_id, table.c.reservation_id == old.reservation_id)
        .values(state=State.RETURNED if is_sold else State.RELEASED, update_time=now)
    )


async def _claimed(connection: AsyncConnection, of: Reservation) -> list[Claimed]:
    return await claims.of_reservations(connection, [(of.event_id, of.reservation_id)])
