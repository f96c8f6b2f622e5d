"""stock_svc over gRPC: ports.Stock and the stream of stock changes."""

from collections.abc import AsyncIterator, Mapping, Sequence
from datetime import datetime
from typing import Any
from uuid import UUID

from google.rpc import status_pb2

from booking_svc.clients.ports import (
    Availability,
    Line,
    OfferStock,
    PoolAvailability,
    PoolChange,
    PoolStock,
    Reservation,
    StockChange,
)
from boxoffice.stock.v1 import reservation_pb2 as reservation_messages
from boxoffice.stock.v1 import stock_change_service_pb2 as change_messages
from boxoffice.stock.v1 import stock_service_pb2 as messages
from boxoffice.stock.v1.stock_change_service_pb2_grpc import StockChangeServiceStub
from boxoffice.stock.v1.stock_service_pb2_grpc import StockServiceStub
from mesh.coalescing import Coalescer
from mesh.conversions import time_from_proto, time_to_proto
from mesh.db.consumer import Batch
from mesh.errors import Reason
from mesh.rpc.errors import from_status

# Most requests of one BatchReserve, as in the contract.
_MAX_BATCH = 256
# Keeps several processes of stock_svc busy.
_MAX_IN_FLIGHT = 4
_MAX_QUEUED = 4096
_BATCH_SECONDS = 5.0


class StockClient:
    """Sends concurrent reserve calls as batches: calls that arrive while one is in flight form the next."""

    def __init__(self, stub: StockServiceStub) -> None:
        self._stub = stub
        self._reserving = Coalescer[messages.ReserveRequest, Reservation](
            "reserve",
            self._reserve_batch,
            max_batch=_MAX_BATCH,
            max_in_flight=_MAX_IN_FLIGHT,
            max_queued=_MAX_QUEUED,
            seconds=_BATCH_SECONDS,
        )

    async def define(
        self,
        *,
        event_id: UUID,
        pools: Sequence[PoolStock],
        offers: Sequence[OfferStock],
        seats: Mapping[UUID, UUID],
        per_customer_limit: int | None,
    ) -> None:
        await self._stub.DefineStock(
            messages.DefineStockRequest(
                event_id=str(event_id),
                **_pools_and_offers(pools, offers),
                seats=_seats(seats),
                per_customer_limit=per_customer_limit or 0,
            )
        )

    async def update(
        self,
        *,
        event_id: UUID,
        pools: Sequence[PoolStock],
        offers: Sequence[OfferStock],
        add_seats: Mapping[UUID, UUID],
        remove_seat_ids: Sequence[UUID],
        per_customer_limit: int | None,
    ) -> None:
        await self._stub.UpdateStock(
            messages.UpdateStockRequest(
                event_id=str(event_id),
                **_pools_and_offers(pools, offers),
                add_seats=_seats(add_seats),
                remove_seat_ids=[str(seat_id) for seat_id in remove_seat_ids],
                per_customer_limit=per_customer_limit,
            )
        )

    async def remove(self, *, event_id: UUID) -> None:
        await self._stub.RemoveStock(messages.RemoveStockRequest(event_id=str(event_id)))

    async def availability(self, *, event_id: UUID, with_seats: bool) -> Availability:
        stock = await self._stub.GetStock(
            messages.GetStockRequest(event_id=str(event_id), with_seats=with_seats)
        )
        return Availability(
            version=stock.version,
            offers={UUID(offer.offer_id): offer.available for offer in stock.offers},
            seats={
                UUID(seat.seat_id): messages.Stock.SeatLeft.State.Name(seat.state)
                for seat in stock.seats
            },
            capacity=sum(pool.capacity for pool in stock.pools),
            available=sum(pool.available for pool in stock.pools),
            pools={
                UUID(pool.pool_id): PoolAvailability(
                    pool.capacity, pool.available, pool.version, pool.kept
                )
                for pool in stock.pools
            },
        )

    async def customer_totals(
        self, *, keys: Sequence[tuple[UUID, UUID]]
    ) -> Sequence[Mapping[UUID, int]]:
        key = messages.GetCustomerTotalsRequest.Key
        response = await self._stub.GetCustomerTotals(
            messages.GetCustomerTotalsRequest(
                keys=[
                    key(event_id=str(event_id), customer_id=str(customer_id))
                    for event_id, customer_id in keys
                ]
            )
        )
        totals: list[dict[UUID, int]] = [{} for _ in keys]
        for total in response.totals:
            totals[total.key][UUID(total.offer_id)] = total.quantity
        return totals

    async def reserve(
        self,
        *,
        event_id: UUID,
        reservation_id: UUID,
        request_key: str,
        customer_id: UUID,
        lines: Sequence[Line],
        expire_time: datetime,
        for_waiting_list: bool = False,
    ) -> Reservation:
        request = messages.ReserveRequest(
            event_id=str(event_id),
            reservation_id=str(reservation_id),
            request_key=request_key,
            customer_id=str(customer_id),
            lines=[_line(line) for line in lines],
            expire_time=time_to_proto(expire_time),
            for_waiting_list=for_waiting_list,
        )
        return await self._reserving.submit(request)

    async def keep_for_waiting_list(
        self,
        *,
        event_id: UUID,
        version: int,
        pool_ids: Sequence[UUID],
        opened_pool_ids: Sequence[UUID],
    ) -> None:
        await self._stub.KeepForWaitingList(
            messages.KeepForWaitingListRequest(
                event_id=str(event_id),
                version=version,
                pool_ids=map(str, pool_ids),
                opened_pool_ids=map(str, opened_pool_ids),
            )
        )

    async def _reserve_batch(
        self, requests: Sequence[messages.ReserveRequest]
    ) -> list[Reservation | Exception]:
        response = await self._stub.BatchReserve(messages.BatchReserveRequest(requests=requests))
        return [_outcome(outcome) for outcome in response.outcomes]

    async def extend(
        self, *, event_id: UUID, reservation_id: UUID, expire_time: datetime
    ) -> Reservation:
        request = messages.ExtendReservationRequest(
            event_id=str(event_id), reservation_id=str(reservation_id)
        )
        request.expire_time.FromDatetime(expire_time)
        return _reservation(await self._stub.ExtendReservation(request))

    async def commit(self, *, event_id: UUID, reservation_id: UUID) -> None:
        await self._stub.CommitReservation(
            messages.CommitReservationRequest(
                event_id=str(event_id), reservation_id=str(reservation_id)
            )
        )

    async def commit_all(
        self, *, reservations: Sequence[tuple[UUID, UUID]]
    ) -> Sequence[Exception | None]:
        if not reservations:
            return []
        response = await self._stub.BatchCommit(
            messages.BatchCommitRequest(
                requests=[
                    messages.CommitReservationRequest(
                        event_id=str(event_id), reservation_id=str(reservation_id)
                    )
                    for event_id, reservation_id in reservations
                ]
            )
        )
        return [
            _refusal(outcome.error) if outcome.HasField("error") else None
            for outcome in response.outcomes
        ]

    async def release(self, *, event_id: UUID, reservation_id: UUID) -> None:
        await self._stub.ReleaseReservation(
            messages.ReleaseReservationRequest(
                event_id=str(event_id), reservation_id=str(reservation_id)
            )
        )

    async def return_sold(self, *, event_id: UUID, reservation_id: UUID) -> None:
        await self._stub.ReturnReservation(
            messages.ReturnReservationRequest(
                event_id=str(event_id), reservation_id=str(reservation_id)
            )
        )

    async def exchange(
        self,
        *,
        event_id: UUID,
        reservation_id: UUID,
        to_event_id: UUID,
        to_reservation_id: UUID,
        lines: Sequence[Line],
        expire_time: datetime,
    ) -> Reservation:
        request = messages.ExchangeReservationRequest(
            event_id=str(event_id),
            reservation_id=str(reservation_id),
            to_event_id=str(to_event_id),
            to_reservation_id=str(to_reservation_id),
            request_key=f"exchange:{to_reservation_id}",
            lines=[_line(line) for line in lines],
        )
        request.expire_time.FromDatetime(expire_time)
        return _reservation(await self._stub.ExchangeReservation(request))


# DefineStockRequest and UpdateStockRequest have message types of their own with the same fields;
# protobuf builds either one from a dict.


def _pools_and_offers(pools: Sequence[PoolStock], offers: Sequence[OfferStock]) -> dict[str, Any]:
    return {
        "pools": [{"pool_id": str(pool.pool_id), "capacity": pool.capacity} for pool in pools],
        "offers": [
            {
                "offer_id": str(offer.offer_id),
                "pool_id": str(offer.pool_id),
                "per_customer_limit": offer.per_customer_limit,
            }
            for offer in offers
        ],
    }


def _seats(seats: Mapping[UUID, UUID]) -> Any:
    return [
        {"seat_id": str(seat_id), "offer_id": str(offer_id)} for seat_id, offer_id in seats.items()
    ]


def _line(line: Line) -> reservation_messages.ReservationLine:
    return reservation_messages.ReservationLine(
        offer_id=str(line.offer_id),
        quantity=line.quantity,
        seat_id=None if line.seat_id is None else str(line.seat_id),
    )


class StockChanges:
    """stock_svc's stream of stock changes."""

    def __init__(self, stub: StockChangeServiceStub) -> None:
        self._stub = stub

    async def open(self, after_position: str) -> AsyncIterator[Batch[StockChange]]:
        """The changes after a position."""
        request = change_messages.StreamChangesRequest(after_position=after_position)
        # No caller waits for the consumer, so it can wait until stock_svc is reachable.
        async for response in self._stub.StreamChanges(request, wait_for_ready=True):
            yield response.position, [_change(change) for change in response.changes]

    async def open_now(self) -> AsyncIterator[Sequence[StockChange]]:
        """The changes from now on; the first batch is empty."""
        request = change_messages.StreamChangesRequest(from_now=True)
        async for response in self._stub.StreamChanges(request, wait_for_ready=True):
            yield [_change(change) for change in response.changes]


def _change(message: change_messages.StockChange) -> StockChange:
    state = messages.Stock.SeatLeft.State
    return StockChange(
        event_id=UUID(message.event_id),
        pools=tuple(
            PoolChange(
                UUID(pool.pool_id),
                pool.capacity,
                pool.capacity - pool.held - pool.sold - pool.kept,
                pool.version,
                pool.removed,
            )
            for pool in message.pools
        ),
        seats={
            UUID(seat.seat_id): state.Name(seat.state) if seat.state else None
            for seat in message.seats
        },
    )


def _outcome(message: messages.BatchReserveResponse.Outcome) -> Reservation | Exception:
    if message.HasField("reservation"):
        return _reservation(message.reservation)
    return _refusal(message.error)


def _refusal(status: status_pb2.Status) -> Exception:
    refusal = from_status(status)
    if refusal is None or refusal.reason is Reason.INTERNAL:
        return RuntimeError(f"stock_svc answered with {status.code}")
    return refusal


def _reservation(message: reservation_messages.Reservation) -> Reservation:
    return Reservation(UUID(message.reservation_id), time_from_proto(message.expire_time))
