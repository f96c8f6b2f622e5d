"""stock_svc through its server, with mutual TLS and the rules of the contract."""

import base64
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from uuid import UUID

import grpc
import pytest
from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import error_details_pb2

from boxoffice.stock.v1 import ledger_pb2, reservation_pb2, stock_service_pb2
from boxoffice.stock.v1.stock_service_pb2_grpc import StockServiceStub
from mesh.db.database import Database
from mesh.errors import DomainError, Reason
from mesh.ids import new_id
from mesh.rpc.errors import from_status
from stock_svc.__main__ import open_service
from stock_svc.settings import Settings
from testing.network import Network, details_of, reason_of, refusal
from testing.start_errors import error_at_start
from testing.stock_harness import HOLD, LAPSED, NOW

SERVICE = stock_service_pb2.DESCRIPTOR.services_by_name["StockService"]
Reservation = reservation_pb2.Reservation
SeatLeft = stock_service_pb2.Stock.SeatLeft
Kind = ledger_pb2.Movement


@dataclass
class Time:
    now: datetime = NOW


@dataclass
class Served:
    """A stub per caller, by its certificate, and a clock that the test sets."""

    booking: StockServiceStub
    payment: StockServiceStub
    gateway: StockServiceStub
    time: Time


@pytest.fixture
async def served(tmp_path: Path, shared_url: str) -> AsyncIterator[Served]:
    settings = Settings(home=tmp_path, stock_database_url=shared_url)
    network, time = Network(tmp_path), Time()
    async with (
        open_service(settings, clock=lambda: time.now) as service,
        network.serve("stock_svc", service) as port,
        network.mesh_channel("booking_svc", "stock_svc", port, SERVICE) as booking,
        network.mesh_channel("payment_svc", "stock_svc", port, SERVICE) as payment,
        network.plain_channel("gateway", "stock_svc", port) as gateway,
    ):
        yield Served(
            StockServiceStub(booking), StockServiceStub(payment), StockServiceStub(gateway), time
        )


def token(role: str) -> tuple[tuple[str, str], ...]:
    """The metadata that the gateway forwards for a token that it has verified."""
    claims = json.dumps({"sub": str(new_id()), "role": role, "sid": str(new_id())}).encode()
    return (("x-jwt-payload", base64.urlsafe_b64encode(claims).decode().rstrip("=")),)


def timestamp(after: timedelta = HOLD) -> Timestamp:
    result = Timestamp()
    result.FromDatetime(NOW + after)
    return result


def a_stock(event_id: UUID) -> stock_service_pb2.DefineStockRequest:
    """A pool of 10 with one offer, and a pool of two seats."""
    floor, stalls, place, seat = (str(new_id()) for _ in range(4))
    request = stock_service_pb2.DefineStockRequest
    return request(
        event_id=str(event_id),
        pools=[
            request.Pool(pool_id=floor, capacity=10),
            request.Pool(pool_id=stalls, capacity=2),
        ],
        offers=[
            request.OfferStock(offer_id=place, pool_id=floor, per_customer_limit=5),
            request.OfferStock(offer_id=seat, pool_id=stalls, per_customer_limit=5),
        ],
        seats=[request.SeatStock(seat_id=str(new_id()), offer_id=seat) for _ in range(2)],
    )


def a_request(defined: stock_service_pb2.DefineStockRequest) -> stock_service_pb2.ReserveRequest:
    """Two places and a seat."""
    seat = defined.seats[0]
    return stock_service_pb2.ReserveRequest(
        event_id=defined.event_id,
        reservation_id=str(new_id()),
        request_key="key",
        customer_id=str(new_id()),
        lines=[
            reservation_pb2.ReservationLine(offer_id=defined.offers[0].offer_id, quantity=2),
            reservation_pb2.ReservationLine(
                offer_id=seat.offer_id, quantity=1, seat_id=seat.seat_id
            ),
        ],
        expire_time=timestamp(),
    )


async def test_define_reserve_extend_commit_release_and_read(served: Served) -> None:
    stock, event_id = served.booking, new_id()
    defined = a_stock(event_id)
    await stock.DefineStock(defined)
    await stock.DefineStock(defined)
    request = a_request(defined)
    reserved = await stock.Reserve(request)
    assert reserved == await stock.Reserve(request)
    assert reserved == Reservation(
        event_id=request.event_id,
        reservation_id=request.reservation_id,
        customer_id=request.customer_id,
        state=Reservation.ACTIVE,
        lines=request.lines,
        expire_time=timestamp(),
        create_time=timestamp(timedelta(0)),
    )
    of = {"event_id": str(event_id), "reservation_id": request.reservation_id}
    extended = await stock.ExtendReservation(
        stock_service_pb2.ExtendReservationRequest(**of, expire_time=timestamp(2 * HOLD))
    )
    assert extended.expire_time == timestamp(2 * HOLD)
    committed = await stock.CommitReservation(stock_service_pb2.CommitReservationRequest(**of))
    assert committed.state == Reservation.COMMITTED

    request.request_key, request.reservation_id = "other", str(new_id())
    del request.lines[1]
    freed = {"event_id": str(event_id), "reservation_id": request.reservation_id}
    await stock.Reserve(request)
    release = stock_service_pb2.ReleaseReservationRequest(**freed)
    assert (await stock.ReleaseReservation(release)).released
    assert not (await stock.ReleaseReservation(release)).released

    available = await stock.GetStock(
        stock_service_pb2.GetStockRequest(event_id=str(event_id), with_seats=True)
    )
    assert {p.pool_id: (p.capacity, p.available) for p in available.pools} == {
        defined.pools[0].pool_id: (10, 8),
        defined.pools[1].pool_id: (2, 1),
    }
    assert {o.offer_id: o.available for o in available.offers} == {
        defined.offers[0].offer_id: 8,
        defined.offers[1].offer_id: 1,
    }
    assert {s.seat_id: s.state for s in available.seats} == {
        defined.seats[0].seat_id: SeatLeft.SOLD,
        defined.seats[1].seat_id: SeatLeft.AVAILABLE,
    }
    assert available.version == 8


async def test_staff_list_movements_and_audit_through_the_gateway(served: Served) -> None:
    defined = a_stock(new_id())
    await served.booking.DefineStock(defined)
    await served.booking.Reserve(a_request(defined))
    stock = served.gateway
    listed: list[ledger_pb2.Movement] = []
    page_token = ""
    while True:
        page = await stock.ListMovements(
            stock_service_pb2.ListMovementsRequest(
                event_id=defined.event_id, page_size=3, page_token=page_token
            ),
            metadata=token("STAFF"),
        )
        listed += page.movements
        assert page.total_size == 4
        page_token = page.next_page_token
        if not page_token:
            break
    assert [m.kind for m in listed] == [Kind.RESERVE, Kind.RESERVE, Kind.DEFINE, Kind.DEFINE]
    assert {m.held_delta for m in listed[:2]} == {1, 2}
    assert not listed[3].HasField("reservation_id")
    audited = await stock.Audit(
        stock_service_pb2.AuditRequest(event_id=defined.event_id), metadata=token("ADMIN")
    )
    assert list(audited.differences) == []
    assert dict(audited.reservations) == {"ACTIVE": 1}
    assert {
        (p.capacity, p.held, p.held_by_movements, p.held_by_reservations) for p in audited.pools
    } == {(10, 2, 2, 2), (2, 1, 1, 1)}


async def test_callers_that_the_policy_excludes_are_refused(served: Served) -> None:
    get_stock = stock_service_pb2.GetStockRequest(event_id=str(new_id()))
    error = await refusal(served.payment.GetStock(get_stock))
    assert (error.code(), reason_of(error)) == (
        grpc.StatusCode.PERMISSION_DENIED,
        "CALLER_NOT_ALLOWED",
    )
    audit = stock_service_pb2.AuditRequest(event_id=str(new_id()))
    error = await refusal(served.gateway.Audit(audit, metadata=token("CUSTOMER")))
    assert reason_of(error) == "STAFF_REQUIRED"
    error = await refusal(served.gateway.Audit(audit))
    assert reason_of(error) == "TOKEN_INVALID"


async def test_a_refusal_reaches_the_caller_with_reason_and_metadata(served: Served) -> None:
    stock, defined = served.booking, a_stock(new_id())
    await stock.DefineStock(defined)
    request = a_request(defined)
    request.lines[0].quantity = 11
    with pytest.raises(DomainError) as refused:
        await stock.Reserve(request)
    assert refused.value.reason is Reason.SOLD_OUT
    assert refused.value.metadata == {
        "offer_id": defined.offers[0].offer_id,
        "requested": "11",
        "available": "10",
        "failures": refused.value.metadata["failures"],
    }


async def test_a_batch_has_an_outcome_for_each_request(served: Served) -> None:
    stock, defined = served.booking, a_stock(new_id())
    await stock.DefineStock(defined)
    request, taken = a_request(defined), a_request(defined)
    taken.request_key = "another"
    batch = stock_service_pb2.BatchReserveRequest(requests=[request, taken, request])
    first, second, third = (await stock.BatchReserve(batch)).outcomes
    assert first.reservation.reservation_id == request.reservation_id
    assert third.reservation == first.reservation
    refused = from_status(second.error)
    assert refused is not None
    assert refused.reason is Reason.SEAT_UNAVAILABLE
    assert refused.metadata["seat_ids"] == defined.seats[0].seat_id
    request.lines[0].quantity = 0
    error = await refusal(stock.BatchReserve(batch.__class__(requests=[request])))
    assert reason_of(error) == "VALIDATION_FAILED"


async def test_a_batch_of_commits_has_an_outcome_for_each(served: Served) -> None:
    stock, defined = served.booking, a_stock(new_id())
    await stock.DefineStock(defined)
    reserved = a_request(defined)
    await stock.Reserve(reserved)
    of = stock_service_pb2.CommitReservationRequest(
        event_id=defined.event_id, reservation_id=reserved.reservation_id
    )
    unknown = stock_service_pb2.CommitReservationRequest(
        event_id=defined.event_id, reservation_id=str(new_id())
    )
    batch = stock_service_pb2.BatchCommitRequest(requests=[of, unknown, of])
    first, second, third = (await stock.BatchCommit(batch)).outcomes
    assert first.reservation.state == reservation_pb2.Reservation.COMMITTED
    assert third.reservation == first.reservation
    refused = from_status(second.error)
    assert refused is not None
    assert refused.reason is Reason.RESERVATION_NOT_FOUND
    repeated = (await stock.BatchCommit(batch)).outcomes
    assert [outcome.WhichOneof("outcome") for outcome in repeated] == [
        "reservation",
        "error",
        "reservation",
    ]


async def test_the_audit_of_every_event_is_streamed(served: Served, database: Database) -> None:
    stock, defined = served.booking, [a_stock(new_id()) for _ in range(3)]
    for request in defined:
        await stock.DefineStock(request)
    ids = [request.event_id for request in defined]
    broken = f"UPDATE pools SET held = 1 WHERE event_id = '{ids[1]}' AND capacity = 2"
    async with database.transaction() as connection:
        await connection.exec_driver_sql(broken)

    async def streamed(**fields: object) -> list[str]:
        request = stock_service_pb2.StreamAuditsRequest(**fields)  # type: ignore[arg-type]
        calls = served.gateway.StreamAudits(request, metadata=token("STAFF"))
        return [audited.event_id async for audited in calls if audited.event_id in ids]

    assert await streamed() == ids
    assert await streamed(after_event_id=ids[0]) == ids[1:]
    assert await streamed(with_differences_only=True) == [ids[1]]
    async with database.transaction() as connection:
        await connection.exec_driver_sql(broken.replace("held = 1", "held = 0"))


async def test_exchange_and_return(served: Served) -> None:
    stock, defined = served.booking, a_stock(new_id())
    await stock.DefineStock(defined)
    request = a_request(defined)
    await stock.Reserve(request)
    of = {"event_id": request.event_id, "reservation_id": request.reservation_id}
    await stock.CommitReservation(stock_service_pb2.CommitReservationRequest(**of))
    exchanged = await stock.ExchangeReservation(
        stock_service_pb2.ExchangeReservationRequest(
            **of,
            to_event_id=request.event_id,
            to_reservation_id=str(new_id()),
            request_key="fewer",
            lines=request.lines[:1],
            expire_time=timestamp(),
        )
    )
    assert exchanged.state == Reservation.COMMITTED
    assert list(exchanged.lines) == list(request.lines[:1])
    back = stock_service_pb2.ReturnReservationRequest(
        event_id=exchanged.event_id, reservation_id=exchanged.reservation_id
    )
    for _ in range(2):
        assert (await stock.ReturnReservation(back)).state == Reservation.RETURNED
    available = await stock.GetStock(stock_service_pb2.GetStockRequest(event_id=request.event_id))
    assert sorted(pool.available for pool in available.pools) == [2, 10]


async def test_a_restock_with_an_idempotency_key_adds_places_once(served: Served) -> None:
    defined = a_stock(new_id())
    await served.booking.DefineStock(defined)
    floor = defined.pools[0].pool_id
    request = stock_service_pb2.RestockRequest(event_id=defined.event_id, pool_id=floor, quantity=5)
    metadata = (*token("STAFF"), ("idempotency-key", str(new_id())))
    restocked = await served.gateway.Restock(request, metadata=metadata)
    assert {pool.pool_id: pool.capacity for pool in restocked.pools}[floor] == 15
    assert await served.gateway.Restock(request, metadata=metadata) == restocked
    request.quantity = 6
    error = await refusal(served.gateway.Restock(request, metadata=metadata))
    assert reason_of(error) == "IDEMPOTENCY_KEY_REUSED"
    available = await served.booking.GetStock(
        stock_service_pb2.GetStockRequest(event_id=defined.event_id)
    )
    assert {pool.pool_id: pool.available for pool in available.pools}[floor] == 15


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("quantity", 0),
        ("quantity", -1),
        ("quantity", 1001),
        ("offer_id", "x"),
        ("seat_id", "x"),
    ],
)
async def test_an_invalid_field_of_a_line_is_named(
    served: Served, field: str, value: object
) -> None:
    request = a_request(a_stock(new_id()))
    setattr(request.lines[1], field, value)
    error = await refusal(served.booking.Reserve(request))
    assert reason_of(error) == "VALIDATION_FAILED"
    violations = details_of(error, error_details_pb2.BadRequest).field_violations
    assert [violation.field for violation in violations] == [f"lines[1].{field}"]


@pytest.mark.parametrize("seconds", [-(10**14), 0, 10**14])
async def test_an_expire_time_out_of_range_is_refused(served: Served, seconds: int) -> None:
    defined = a_stock(new_id())
    await served.booking.DefineStock(defined)
    request = a_request(defined)
    request.expire_time.seconds = seconds
    error = await refusal(served.booking.Reserve(request))
    assert reason_of(error) == "VALIDATION_FAILED"


@pytest.mark.parametrize("text", ["x", "WyJ4Il0", "WyItMSJd", "WyI5OTk5OTk5OTk5OTk5OTk5OTk5OSJd"])
async def test_an_invalid_page_token_is_refused(served: Served, text: str) -> None:
    defined = a_stock(new_id())
    await served.booking.DefineStock(defined)
    request = stock_service_pb2.ListMovementsRequest(event_id=defined.event_id, page_token=text)
    error = await refusal(served.gateway.ListMovements(request, metadata=token("STAFF")))
    assert reason_of(error) == "VALIDATION_FAILED"


async def test_expiry_follows_the_clock_of_the_service(served: Served) -> None:
    stock, defined = served.booking, a_stock(new_id())
    await stock.DefineStock(defined)
    request = a_request(defined)
    await stock.Reserve(request)
    served.time.now = LAPSED
    with pytest.raises(DomainError) as refused:
        await stock.CommitReservation(
            stock_service_pb2.CommitReservationRequest(
                event_id=request.event_id, reservation_id=request.reservation_id
            )
        )
    assert refused.value.reason is Reason.HOLD_EXPIRED


def test_a_missing_setting_is_named_at_start() -> None:
    assert error_at_start("stock_svc", STOCK_DATABASE_URL="") == (
        "stock_svc cannot start: BOXOFFICE_STOCK_DATABASE_URL is not set; `make up` sets it"
    )


def test_every_setting_has_a_description() -> None:
    assert all(field.description for field in Settings.model_fields.values())
