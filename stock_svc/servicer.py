"""StockService on the wire: translates between the contract and the domain, nothing else."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any, TypeVar
from uuid import UUID

import grpc
from google.protobuf.timestamp_pb2 import Timestamp
from sqlalchemy.ext.asyncio import AsyncConnection

from boxoffice.stock.v1 import ledger_pb2, reservation_pb2, stock_service_pb2
from boxoffice.stock.v1.stock_service_pb2_grpc import StockServiceServicer
from mesh import paging
from mesh.clock import Clock
from mesh.database import Database
from mesh.errors import FieldViolation, invalid
from mesh.tasks import shielded
from stock_svc import audit, ledger, reservations, stock
from stock_svc.demand import Line
from stock_svc.reservations import Reservation

# A write ends by then even when its client is gone; a little more than any RPC's deadline.
_WRITE_SECONDS = 10.0
_MOVEMENT_ID_DIGITS = 18

_T = TypeVar("_T")
_Context = grpc.aio.ServicerContext[Any, Any]


class StockServicer(StockServiceServicer):
    """One RPC is one transaction. Writes go on when the client leaves, reads do not."""

    def __init__(self, database: Database, *, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    async def DefineStock(
        self, request: stock_service_pb2.DefineStockRequest, context: _Context
    ) -> stock_service_pb2.DefineStockResponse:
        await self._write(
            lambda connection: stock.define(
                connection,
                event_id=UUID(request.event_id),
                stock=_stock_from(request),
                now=self._clock(),
            )
        )
        return stock_service_pb2.DefineStockResponse()

    async def Reserve(
        self, request: stock_service_pb2.ReserveRequest, context: _Context
    ) -> reservation_pb2.Reservation:
        expire_time = _time_from(request.expire_time)
        reserved = await self._write(
            lambda connection: reservations.reserve(
                connection,
                event_id=UUID(request.event_id),
                reservation_id=UUID(request.reservation_id),
                request_key=request.request_key,
                customer_id=UUID(request.customer_id),
                lines=[_line_from(line) for line in request.lines],
                expire_time=expire_time,
                now=self._clock(),
            )
        )
        return _reservation_to(reserved)

    async def ExtendReservation(
        self, request: stock_service_pb2.ExtendReservationRequest, context: _Context
    ) -> reservation_pb2.Reservation:
        expire_time = _time_from(request.expire_time)
        extended = await self._write(
            lambda connection: reservations.extend(
                connection,
                event_id=UUID(request.event_id),
                reservation_id=UUID(request.reservation_id),
                expire_time=expire_time,
                now=self._clock(),
            )
        )
        return _reservation_to(extended)

    async def CommitReservation(
        self, request: stock_service_pb2.CommitReservationRequest, context: _Context
    ) -> reservation_pb2.Reservation:
        committed = await self._write(
            lambda connection: reservations.commit(
                connection,
                event_id=UUID(request.event_id),
                reservation_id=UUID(request.reservation_id),
                now=self._clock(),
            )
        )
        return _reservation_to(committed)

    async def ReleaseReservation(
        self, request: stock_service_pb2.ReleaseReservationRequest, context: _Context
    ) -> stock_service_pb2.ReleaseReservationResponse:
        released = await self._write(
            lambda connection: reservations.release(
                connection,
                event_id=UUID(request.event_id),
                reservation_id=UUID(request.reservation_id),
                now=self._clock(),
            )
        )
        return stock_service_pb2.ReleaseReservationResponse(released=released)

    async def GetStock(
        self, request: stock_service_pb2.GetStockRequest, context: _Context
    ) -> stock_service_pb2.Stock:
        async with self._database.snapshot() as connection:
            left = await stock.left(
                connection,
                event_id=UUID(request.event_id),
                with_seats=request.with_seats,
                now=self._clock(),
            )
        return _stock_to(left)

    async def ListMovements(
        self, request: stock_service_pb2.ListMovementsRequest, context: _Context
    ) -> stock_service_pb2.ListMovementsResponse:
        async with self._database.snapshot() as connection:
            page = await ledger.list_movements(
                connection,
                event_id=UUID(request.event_id),
                before=_movement_id_from(request.page_token),
                page_size=paging.page_size(request.page_size),
            )
        return stock_service_pb2.ListMovementsResponse(
            movements=[_movement_to(movement) for movement in page.movements],
            next_page_token=""
            if page.next_before is None
            else paging.to_token(str(page.next_before)),
            total_size=page.total_size,
        )

    async def Audit(
        self, request: stock_service_pb2.AuditRequest, context: _Context
    ) -> ledger_pb2.StockAudit:
        async with self._database.snapshot() as connection:
            audited = await audit.audit(connection, event_id=UUID(request.event_id))
        return _audit_to(audited)

    async def _write(self, work: Callable[[AsyncConnection], Awaitable[_T]]) -> _T:
        async def transaction() -> _T:
            async with self._database.transaction() as connection:
                return await work(connection)

        return await shielded(transaction(), seconds=_WRITE_SECONDS)


def _stock_from(request: stock_service_pb2.DefineStockRequest) -> stock.Stock:
    return stock.Stock(
        pools=[stock.Pool(UUID(pool.pool_id), pool.capacity) for pool in request.pools],
        offers=[
            stock.Offer(UUID(offer.offer_id), UUID(offer.pool_id), offer.per_customer_limit)
            for offer in request.offers
        ],
        seats=[stock.Seat(UUID(seat.seat_id), UUID(seat.offer_id)) for seat in request.seats],
    )


def _line_from(line: reservation_pb2.ReservationLine) -> Line:
    seat_id = UUID(line.seat_id) if line.HasField("seat_id") else None
    return Line(UUID(line.offer_id), line.quantity, seat_id)


def _time_from(expire_time: Timestamp) -> datetime:
    try:
        return expire_time.ToDatetime(UTC)
    except (ValueError, OverflowError):
        raise invalid(FieldViolation("expire_time", "is no time of this calendar")) from None


def _time_to(moment: datetime) -> Timestamp:
    timestamp = Timestamp()
    timestamp.FromDatetime(moment)
    return timestamp


def _movement_id_from(page_token: str) -> int | None:
    key = paging.from_token(page_token, 1)
    if key is None:
        return None
    if not (key[0].isascii() and key[0].isdigit() and len(key[0]) <= _MOVEMENT_ID_DIGITS):
        raise invalid(FieldViolation("page_token", "not a token of this list"))
    return int(key[0])


def _reservation_to(reservation: Reservation) -> reservation_pb2.Reservation:
    return reservation_pb2.Reservation(
        event_id=str(reservation.event_id),
        reservation_id=str(reservation.reservation_id),
        customer_id=str(reservation.customer_id),
        state=reservation_pb2.Reservation.State.Value(reservation.state),
        lines=[
            reservation_pb2.ReservationLine(
                offer_id=str(line.offer_id),
                quantity=line.quantity,
                seat_id=None if line.seat_id is None else str(line.seat_id),
            )
            for line in reservation.lines
        ],
        expire_time=_time_to(reservation.expire_time),
        create_time=_time_to(reservation.create_time),
    )


def _stock_to(left: stock.StockLeft) -> stock_service_pb2.Stock:
    message = stock_service_pb2.Stock
    return message(
        event_id=str(left.event_id),
        version=left.version,
        pools=[
            message.PoolStock(
                pool_id=str(pool.pool_id), capacity=pool.capacity, available=pool.available
            )
            for pool in left.pools
        ],
        offers=[
            message.OfferLeft(offer_id=str(offer.offer_id), available=offer.available)
            for offer in left.offers
        ],
        seats=[
            message.SeatLeft(
                seat_id=str(seat.seat_id), state=message.SeatLeft.State.Value(seat.state)
            )
            for seat in left.seats
        ],
    )


def _movement_to(movement: ledger.Movement) -> ledger_pb2.Movement:
    return ledger_pb2.Movement(
        movement_id=movement.movement_id,
        pool_id=str(movement.pool_id),
        kind=ledger_pb2.Movement.Kind.Value(movement.kind),
        capacity_delta=movement.capacity_delta,
        held_delta=movement.held_delta,
        sold_delta=movement.sold_delta,
        reservation_id=None if movement.reservation_id is None else str(movement.reservation_id),
        create_time=_time_to(movement.create_time),
    )


def _audit_to(audited: audit.Audit) -> ledger_pb2.StockAudit:
    return ledger_pb2.StockAudit(
        event_id=str(audited.event_id),
        pools=[
            ledger_pb2.PoolAudit(
                pool_id=str(pool.pool_id),
                capacity=pool.capacity,
                held=pool.held,
                sold=pool.sold,
                held_by_movements=pool.held_by_movements,
                sold_by_movements=pool.sold_by_movements,
                held_by_reservations=pool.held_by_reservations,
                sold_by_reservations=pool.sold_by_reservations,
            )
            for pool in audited.pools
        ],
        reservations={str(state): count for state, count in audited.reservations.items()},
        differences=audited.differences,
    )
