"""StockService: converts messages to plain values, calls one domain function, converts back."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import datetime
from typing import Any, TypeVar
from uuid import UUID

import grpc
from sqlalchemy.ext.asyncio import AsyncConnection

from boxoffice.stock.v1 import ledger_pb2, reservation_pb2, stock_service_pb2
from boxoffice.stock.v1.stock_service_pb2_grpc import StockServiceServicer
from mesh import paging
from mesh.clock import Clock
from mesh.conversions import time_from_proto
from mesh.db.database import Database
from mesh.db.idempotent import IdempotentWrites, key_of_call
from mesh.errors import DomainError
from mesh.rpc.errors import to_status
from mesh.tasks import shielded
from stock_svc import (
    audit,
    batches,
    customer_totals,
    exchange,
    ledger,
    proto,
    restocking,
    stock,
    stock_update,
    waiting_list,
)
from stock_svc.reservations import Reservation, check_expire_time
from stock_svc.transitions import Move

# The limit of a write, also of one whose client left; longer than the deadline of any RPC.
_WRITE_SECONDS = 10.0

# Ids of events that a stream of audits reads per statement.
_EVENTS_PER_READ = 100

_T = TypeVar("_T")
_Context = grpc.aio.ServicerContext[Any, Any]


class StockServicer(StockServiceServicer):
    """A write continues when its client leaves; a read ends.

    Reserve, BatchReserve and the moves of reservations share a transaction with concurrent calls
    (batches.py); StreamAudits reads each event in a snapshot of its own. Every other RPC does its
    work in one transaction.
    """

    def __init__(self, database: Database, writes: IdempotentWrites, clock: Clock) -> None:
        self._database = database
        self._writes = writes
        self._clock = clock
        self._reserves = batches.coalesced_reserve(database, clock)
        self._moves = batches.coalesced_move(database, clock)

    async def DefineStock(
        self, request: stock_service_pb2.DefineStockRequest, context: _Context
    ) -> stock_service_pb2.DefineStockResponse:
        await self._write(
            lambda connection: stock.define(
                connection,
                event_id=UUID(request.event_id),
                stock=proto.stock_from(request),
                now=self._clock(),
            )
        )
        return stock_service_pb2.DefineStockResponse()

    async def UpdateStock(
        self, request: stock_service_pb2.UpdateStockRequest, context: _Context
    ) -> stock_service_pb2.Stock:
        availability = await self._write(
            lambda connection: stock_update.update(
                connection,
                event_id=UUID(request.event_id),
                target=proto.target_from(request),
                now=self._clock(),
            )
        )
        return proto.stock_to(availability)

    async def RemoveStock(
        self, request: stock_service_pb2.RemoveStockRequest, context: _Context
    ) -> stock_service_pb2.RemoveStockResponse:
        await self._write(
            lambda connection: restocking.remove(
                connection, event_id=UUID(request.event_id), now=self._clock()
            )
        )
        return stock_service_pb2.RemoveStockResponse()

    async def Restock(
        self, request: stock_service_pb2.RestockRequest, context: _Context
    ) -> stock_service_pb2.Stock:
        async def restock(connection: AsyncConnection) -> tuple[UUID, bytes]:
            pool_id = UUID(request.pool_id)
            available = await restocking.restock(
                connection,
                event_id=UUID(request.event_id),
                pool_id=pool_id,
                quantity=request.quantity,
                now=self._clock(),
            )
            return pool_id, proto.stock_to(available).SerializeToString()

        answer = await shielded(
            self._writes.run_once(key_of_call("Restock", request), restock),
            seconds=_WRITE_SECONDS,
        )
        return stock_service_pb2.Stock.FromString(answer)

    async def KeepForWaitingList(
        self, request: stock_service_pb2.KeepForWaitingListRequest, context: _Context
    ) -> stock_service_pb2.Stock:
        availability = await self._write(
            lambda connection: waiting_list.keep(
                connection,
                event_id=UUID(request.event_id),
                version=request.version,
                pool_ids=[UUID(pool_id) for pool_id in request.pool_ids],
                opened_pool_ids=[UUID(pool_id) for pool_id in request.opened_pool_ids],
                now=self._clock(),
            )
        )
        return proto.stock_to(availability)

    async def BlockSeats(
        self, request: stock_service_pb2.BlockSeatsRequest, context: _Context
    ) -> stock_service_pb2.Stock:
        return await self._write(lambda connection: self._block(connection, request))

    async def UnblockSeats(
        self, request: stock_service_pb2.UnblockSeatsRequest, context: _Context
    ) -> stock_service_pb2.Stock:
        return await self._write(lambda connection: self._block(connection, request))

    async def _block(
        self,
        connection: AsyncConnection,
        request: stock_service_pb2.BlockSeatsRequest | stock_service_pb2.UnblockSeatsRequest,
    ) -> stock_service_pb2.Stock:
        is_block = isinstance(request, stock_service_pb2.BlockSeatsRequest)
        change = restocking.block if is_block else restocking.unblock
        event_id, now = UUID(request.event_id), self._clock()
        changed = await change(
            connection,
            event_id=event_id,
            seat_ids=[UUID(seat_id) for seat_id in request.seat_ids],
            now=now,
        )
        availability = await stock.availability(
            connection, event_id=event_id, with_seats=False, now=now
        )
        return proto.stock_to(replace(availability, seats=changed))

    async def Reserve(
        self, request: stock_service_pb2.ReserveRequest, context: _Context
    ) -> reservation_pb2.Reservation:
        return proto.reservation_to(await self._reserve(request))

    async def BatchReserve(
        self, request: stock_service_pb2.BatchReserveRequest, context: _Context
    ) -> stock_service_pb2.BatchReserveResponse:
        outcomes = await asyncio.gather(*map(self._outcome, request.requests))
        return stock_service_pb2.BatchReserveResponse(outcomes=outcomes)

    async def _outcome(
        self, request: stock_service_pb2.ReserveRequest
    ) -> stock_service_pb2.BatchReserveResponse.Outcome:
        outcome = stock_service_pb2.BatchReserveResponse.Outcome
        try:
            return outcome(reservation=proto.reservation_to(await self._reserve(request)))
        except DomainError as refusal:
            return outcome(error=to_status(refusal))

    async def _reserve(self, request: stock_service_pb2.ReserveRequest) -> Reservation:
        return await self._reserves.submit(proto.request_from(request, self._clock()))

    async def ExtendReservation(
        self, request: stock_service_pb2.ExtendReservationRequest, context: _Context
    ) -> reservation_pb2.Reservation:
        expire_time = time_from_proto(request.expire_time, "expire_time")
        check_expire_time(expire_time, self._clock())
        return await self._move(request, Move.EXTEND, expire_time)

    async def CommitReservation(
        self, request: stock_service_pb2.CommitReservationRequest, context: _Context
    ) -> reservation_pb2.Reservation:
        return await self._move(request, Move.COMMIT)

    async def BatchCommit(
        self, request: stock_service_pb2.BatchCommitRequest, context: _Context
    ) -> stock_service_pb2.BatchCommitResponse:
        outcomes = await asyncio.gather(*map(self._committed, request.requests))
        return stock_service_pb2.BatchCommitResponse(outcomes=outcomes)

    async def _committed(
        self, request: stock_service_pb2.CommitReservationRequest
    ) -> stock_service_pb2.BatchCommitResponse.Outcome:
        outcome = stock_service_pb2.BatchCommitResponse.Outcome
        try:
            return outcome(reservation=await self._move(request, Move.COMMIT))
        except DomainError as refusal:
            return outcome(error=to_status(refusal))

    async def ReleaseReservation(
        self, request: stock_service_pb2.ReleaseReservationRequest, context: _Context
    ) -> stock_service_pb2.ReleaseReservationResponse:
        order = proto.order_from(request, Move.RELEASE)
        moved = await self._moves.submit(order)
        return stock_service_pb2.ReleaseReservationResponse(released=moved.has_moved)

    async def ReturnReservation(
        self, request: stock_service_pb2.ReturnReservationRequest, context: _Context
    ) -> reservation_pb2.Reservation:
        return await self._move(request, Move.RETURN)

    async def _move(
        self, request: proto.MoveRequest, move: Move, expire_time: datetime | None = None
    ) -> reservation_pb2.Reservation:
        moved = await self._moves.submit(proto.order_from(request, move, expire_time))
        return proto.reservation_to(moved.expect())

    async def ExchangeReservation(
        self, request: stock_service_pb2.ExchangeReservationRequest, context: _Context
    ) -> reservation_pb2.Reservation:
        expire_time = time_from_proto(request.expire_time, "expire_time")
        exchanged = await self._write(
            lambda connection: exchange.exchange(
                connection,
                event_id=UUID(request.event_id),
                reservation_id=UUID(request.reservation_id),
                to_event_id=UUID(request.to_event_id),
                to_reservation_id=UUID(request.to_reservation_id),
                request_key=request.request_key,
                lines=[proto.line_from(line) for line in request.lines],
                expire_time=expire_time,
                now=self._clock(),
            )
        )
        return proto.reservation_to(exchanged)

    async def GetStock(
        self, request: stock_service_pb2.GetStockRequest, context: _Context
    ) -> stock_service_pb2.Stock:
        async with self._database.snapshot() as connection:
            availability = await stock.availability(
                connection,
                event_id=UUID(request.event_id),
                with_seats=request.with_seats,
                now=self._clock(),
            )
        return proto.stock_to(availability)

    async def GetCustomerTotals(
        self, request: stock_service_pb2.GetCustomerTotalsRequest, context: _Context
    ) -> stock_service_pb2.GetCustomerTotalsResponse:
        async with self._database.transaction() as connection:
            totals = await customer_totals.totals(
                connection,
                keys=[(UUID(key.event_id), UUID(key.customer_id)) for key in request.keys],
            )
        return proto.customer_totals_to(totals)

    async def ListMovements(
        self, request: stock_service_pb2.ListMovementsRequest, context: _Context
    ) -> stock_service_pb2.ListMovementsResponse:
        async with self._database.snapshot() as connection:
            page = await ledger.list_movements(
                connection,
                event_id=UUID(request.event_id),
                before=proto.movement_id_from(request.page_token),
                page_size=paging.page_size(request.page_size),
            )
        return stock_service_pb2.ListMovementsResponse(
            movements=[proto.movement_to(movement) for movement in page.movements],
            next_page_token=""
            if page.next_before is None
            else paging.to_token(str(page.next_before)),
            total_size=page.total_size,
        )

    async def Audit(
        self, request: stock_service_pb2.AuditRequest, context: _Context
    ) -> ledger_pb2.StockAudit:
        return await self._audit(UUID(request.event_id))

    async def StreamAudits(
        self, request: stock_service_pb2.StreamAuditsRequest, context: _Context
    ) -> AsyncIterator[ledger_pb2.StockAudit]:
        after = UUID(request.after_event_id) if request.after_event_id else UUID(int=0)
        while True:
            async with self._database.reading() as connection:
                event_ids = await audit.event_ids(connection, after=after, limit=_EVENTS_PER_READ)
            if not event_ids:
                return
            for after in event_ids:
                audited = await self._audit(after)
                if audited.differences or not request.with_differences_only:
                    yield audited

    async def _audit(self, event_id: UUID) -> ledger_pb2.StockAudit:
        async with self._database.snapshot() as connection:
            return proto.audit_to(await audit.audit(connection, event_id=event_id))

    async def _write(self, work: Callable[[AsyncConnection], Awaitable[_T]]) -> _T:
        async def transaction() -> _T:
            async with self._database.transaction() as connection:
                return await work(connection)

        return await shielded(transaction(), seconds=_WRITE_SECONDS)
