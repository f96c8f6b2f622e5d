"""Reads of single reservations."""

from dataclasses import replace
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.errors import DomainError, Reason
from stock_svc.reservation import Line, Reservation, from_row
from stock_svc.tables import is_live, reservation_lines, reservations


async def get(connection: AsyncConnection, *, event_id: UUID, reservation_id: UUID) -> Reservation:
    """A reservation with its lines. Raises RESERVATION_NOT_FOUND."""
    reservation = await _find(connection, event_id, reservations.c.reservation_id == reservation_id)
    if reservation is None:
        raise DomainError(Reason.RESERVATION_NOT_FOUND, "no such reservation")
    return reservation


async def find_existing(connection: AsyncConnection, request: Reservation) -> Reservation | None:
    """The live reservation with the request's key, or else the one with its id, with its lines."""
    return await _find(
        connection, request.event_id, (reservations.c.request_key == request.request_key) & is_live
    ) or await _find(
        connection, request.event_id, reservations.c.reservation_id == request.reservation_id
    )


async def _find(
    connection: AsyncConnection, event_id: UUID, condition: sa.ColumnElement[bool]
) -> Reservation | None:
    row = (
        await connection.execute(
            sa.select(reservations).where(reservations.c.event_id == event_id, condition)
        )
    ).first()
    if row is None:
        return None
    reservation = from_row(row)
    lines = await connection.execute(
        sa.select(
            reservation_lines.c.offer_id, reservation_lines.c.quantity, reservation_lines.c.seat_id
        )
        .where(reservation_lines.c.event_id == event_id)
        .where(reservation_lines.c.reservation_id == reservation.reservation_id)
        .order_by(reservation_lines.c.line_number)
    )
    return replace(reservation, lines=tuple(Line(*line) for line in lines))
