"""Conversions between messages of the contract and values of the domain."""

from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from boxoffice.stock.v1 import ledger_pb2, reservation_pb2, stock_service_pb2
from mesh import paging
from mesh.conversions import time_from_proto, time_to_proto
from mesh.errors import FieldViolation, invalid
from stock_svc import audit, ledger, reservations, stock
from stock_svc.customer_totals import Total
from stock_svc.reservations import Line, Reservation
from stock_svc.stock_update import TargetStock
from stock_svc.transitions import Move, Order

MoveRequest = (
    stock_service_pb2.CommitReservationRequest
    | stock_service_pb2.ReleaseReservationRequest
    | stock_service_pb2.ReturnReservationRequest
    | stock_service_pb2.ExtendReservationRequest
)

_MOVEMENT_ID_DIGITS = 18


def stock_from(request: stock_service_pb2.DefineStockRequest) -> stock.Stock:
    return stock.Stock(
        pools=[stock.Pool(UUID(pool.pool_id), pool.capacity) for pool in request.pools],
        offers=[
            stock.Offer(UUID(offer.offer_id), UUID(offer.pool_id), offer.per_customer_limit)
            for offer in request.offers
        ],
        seats=[stock.Seat(UUID(seat.seat_id), UUID(seat.offer_id)) for seat in request.seats],
        per_customer_limit=request.per_customer_limit or None,
    )


def target_from(request: stock_service_pb2.UpdateStockRequest) -> TargetStock:
    return TargetStock(
        pools=[stock.Pool(UUID(pool.pool_id), pool.capacity) for pool in request.pools],
        offers=[
            stock.Offer(UUID(offer.offer_id), UUID(offer.pool_id), offer.per_customer_limit)
            for offer in request.offers
        ],
        add_seats=[
            stock.Seat(UUID(seat.seat_id), UUID(seat.offer_id)) for seat in request.add_seats
        ],
        remove_seat_ids=[UUID(seat_id) for seat_id in request.remove_seat_ids],
        per_customer_limit=request.per_customer_limit
        if request.HasField("per_customer_limit")
        else None,
    )


def line_from(line: reservation_pb2.ReservationLine) -> Line:
    seat_id = UUID(line.seat_id) if line.HasField("seat_id") else None
    return Line(UUID(line.offer_id), line.quantity, seat_id)


def request_from(request: stock_service_pb2.ReserveRequest, now: datetime) -> Reservation:
    """A reservation to be made. Raises VALIDATION_FAILED as reservations.new does."""
    return reservations.new(
        event_id=UUID(request.event_id),
        reservation_id=UUID(request.reservation_id),
        request_key=request.request_key,
        customer_id=UUID(request.customer_id),
        lines=[line_from(line) for line in request.lines],
        expire_time=time_from_proto(request.expire_time, "expire_time"),
        for_waiting_list=request.for_waiting_list,
        now=now,
    )


def order_from(request: MoveRequest, move: Move, expire_time: datetime | None = None) -> Order:
    return Order(move, UUID(request.event_id), UUID(request.reservation_id), expire_time)


def movement_id_from(page_token: str) -> int | None:
    key = paging.from_token(page_token, 1)
    if key is None:
        return None
    if not (key[0].isascii() and key[0].isdigit() and len(key[0]) <= _MOVEMENT_ID_DIGITS):
        raise invalid(FieldViolation("page_token", "is not a page token of this list"))
    return int(key[0])


def reservation_to(reservation: Reservation) -> reservation_pb2.Reservation:
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
        expire_time=time_to_proto(reservation.expire_time),
        create_time=time_to_proto(reservation.create_time),
    )


def stock_to(availability: stock.StockAvailability) -> stock_service_pb2.Stock:
    message = stock_service_pb2.Stock
    return message(
        event_id=str(availability.event_id),
        version=availability.version,
        pools=[
            message.PoolStock(
                pool_id=str(pool.pool_id),
                capacity=pool.capacity,
                available=pool.available,
                version=pool.version,
                kept=pool.kept,
            )
            for pool in availability.pools
        ],
        offers=[
            message.OfferLeft(offer_id=str(offer.offer_id), available=offer.available)
            for offer in availability.offers
        ],
        seats=seats_to(availability.seats),
    )


def seats_to(seats: Sequence[stock.SeatAvailability]) -> list[stock_service_pb2.Stock.SeatLeft]:
    message = stock_service_pb2.Stock.SeatLeft
    return [
        message(seat_id=str(seat.seat_id), state=message.State.Value(seat.state)) for seat in seats
    ]


def movement_to(movement: ledger.Movement) -> ledger_pb2.Movement:
    return ledger_pb2.Movement(
        movement_id=movement.movement_id,
        pool_id=str(movement.pool_id),
        kind=ledger_pb2.Movement.Kind.Value(movement.kind),
        capacity_delta=movement.capacity_delta,
        held_delta=movement.held_delta,
        sold_delta=movement.sold_delta,
        reservation_id=None if movement.reservation_id is None else str(movement.reservation_id),
        create_time=time_to_proto(movement.create_time),
    )


def audit_to(audited: audit.Audit) -> ledger_pb2.StockAudit:
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


def customer_totals_to(totals: Sequence[Total]) -> stock_service_pb2.GetCustomerTotalsResponse:
    return stock_service_pb2.GetCustomerTotalsResponse(
        totals=[
            stock_service_pb2.GetCustomerTotalsResponse.Total(
                key=total.number, offer_id=str(total.offer_id), quantity=total.quantity
            )
            for total in totals
        ]
    )
