"""stock_svc over gRPC, as ports.Stock."""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from uuid import UUID

from booking_svc.ports import Left, Line, OfferStock, PoolStock, Reservation
from boxoffice.stock.v1 import reservation_pb2 as reservation_messages
from boxoffice.stock.v1 import stock_service_pb2 as messages
from boxoffice.stock.v1.stock_service_pb2_grpc import StockServiceStub


class StockClient:
    def __init__(self, stub: StockServiceStub) -> None:
        self._stub = stub

    async def define(
        self,
        *,
        event_id: UUID,
        pools: Sequence[PoolStock],
        offers: Sequence[OfferStock],
        seats: Mapping[UUID, UUID],
    ) -> None:
        await self._stub.DefineStock(
            messages.DefineStockRequest(
                event_id=str(event_id),
                pools=[
                    messages.DefineStockRequest.Pool(
                        pool_id=str(pool.pool_id), capacity=pool.capacity
                    )
                    for pool in pools
                ],
                offers=[
                    messages.DefineStockRequest.OfferStock(
                        offer_id=str(offer.offer_id),
                        pool_id=str(offer.pool_id),
                        per_customer_limit=offer.per_customer_limit,
                    )
                    for offer in offers
                ],
                seats=[
                    messages.DefineStockRequest.SeatStock(
                        seat_id=str(seat_id), offer_id=str(offer_id)
                    )
                    for seat_id, offer_id in seats.items()
                ],
            )
        )

    async def left(self, *, event_id: UUID, with_seats: bool) -> Left:
        stock = await self._stub.GetStock(
            messages.GetStockRequest(event_id=str(event_id), with_seats=with_seats)
        )
        return Left(
            version=stock.version,
            offers={UUID(offer.offer_id): offer.available for offer in stock.offers},
            seats={
                UUID(seat.seat_id): messages.Stock.SeatLeft.State.Name(seat.state)
                for seat in stock.seats
            },
            capacity=sum(pool.capacity for pool in stock.pools),
            available=sum(pool.available for pool in stock.pools),
        )

    async def reserve(
        self,
        *,
        event_id: UUID,
        reservation_id: UUID,
        request_key: str,
        customer_id: UUID,
        lines: Sequence[Line],
        expire_time: datetime,
    ) -> Reservation:
        request = messages.ReserveRequest(
            event_id=str(event_id),
            reservation_id=str(reservation_id),
            request_key=request_key,
            customer_id=str(customer_id),
            lines=[
                reservation_messages.ReservationLine(
                    offer_id=str(line.offer_id),
                    quantity=line.quantity,
                    seat_id=None if line.seat_id is None else str(line.seat_id),
                )
                for line in lines
            ],
        )
        request.expire_time.FromDatetime(expire_time)
        return _reservation(await self._stub.Reserve(request))

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

    async def release(self, *, event_id: UUID, reservation_id: UUID) -> None:
        await self._stub.ReleaseReservation(
            messages.ReleaseReservationRequest(
                event_id=str(event_id), reservation_id=str(reservation_id)
            )
        )


def _reservation(message: reservation_messages.Reservation) -> Reservation:
    return Reservation(UUID(message.reservation_id), message.expire_time.ToDatetime(tzinfo=UTC))
