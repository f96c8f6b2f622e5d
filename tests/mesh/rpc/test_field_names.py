"""Errors name fields as the client of the gateway writes them, and as the contract in between."""

from collections.abc import Mapping
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2

from boxoffice.catalogue.v1 import event_service_pb2
from boxoffice.stock.v1 import stock_service_pb2
from boxoffice.stock.v1.stock_service_pb2_grpc import StockServiceStub
from mesh.errors import DomainError, FieldViolation, Reason, invalid
from mesh.rpc.errors import REASON_HEADER, to_status
from mesh.rpc.field_names import REST_HEADER, for_client, json_name
from testing.network import (
    Context,
    Handler,
    Network,
    a_service,
    call,
    details_of,
    refusal,
    service_descriptor,
    standing_in,
)
from testing.tokens import a_payload, encoded

EVENTS = "boxoffice.catalogue.v1.EventService"
STOCK = "boxoffice.stock.v1.StockService"
EVENT_ID = "01932c07-5e0a-7cc0-b3a5-d3a1b3c0ffee"
REST = {REST_HEADER: "PATCH"}
CONTRADICTORY = invalid(
    FieldViolation("event_id", "is unknown"),
    FieldViolation("event.end_time", "must be after `start_time`"),
    FieldViolation("event.offers[0].seat_type", "is sold by `event.offers[1].seat_type`"),
)


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("name", "name"),
        ("currency_code", "currencyCode"),
        ("offers[10].price.currency_code", "offers[10].price.currencyCode"),
        (f"offers[{EVENT_ID}].seat_type", f"offers[{EVENT_ID}].seatType"),
        ("Idempotency-Key", "Idempotency-Key"),
    ],
)
def test_a_path_in_json_is_in_lower_camel_case(path: str, name: str) -> None:
    assert json_name(path) == name


def test_over_rest_names_are_in_lower_camel_case_and_not_marked() -> None:
    error = for_client(CONTRADICTORY, "", is_rest=True)
    assert error.message == (
        "eventId: is unknown; event.endTime: must be after startTime; "
        "event.offers[0].seatType: is sold by event.offers[1].seatType"
    )


def test_over_rest_paths_start_in_the_field_that_is_the_body() -> None:
    error = for_client(CONTRADICTORY, "event", is_rest=True)
    assert [(violation.field, violation.description) for violation in error.violations] == [
        ("eventId", "is unknown"),
        ("endTime", "must be after startTime"),
        ("offers[0].seatType", "is sold by offers[1].seatType"),
    ]
    assert error.message.startswith("eventId: is unknown; endTime: must be after startTime; ")


def test_over_rest_the_field_that_is_the_body_is_called_body() -> None:
    error = for_client(invalid(FieldViolation("event", "is required")), "event", is_rest=True)
    assert error.message == "body: is required"


def test_over_grpc_names_stay_and_are_not_marked() -> None:
    error = for_client(CONTRADICTORY, "event", is_rest=False)
    assert error.message == (
        "event_id: is unknown; event.end_time: must be after start_time; "
        "event.offers[0].seat_type: is sold by event.offers[1].seat_type"
    )


def test_an_error_keeps_all_that_is_no_name() -> None:
    error = DomainError(
        Reason.SOLD_OUT,
        "the `seat_id` 'A_1' of `no field at all` is taken",
        retry_after_seconds=2,
        offer_id="o_1",
    )
    assert vars(for_client(error, "", is_rest=True)) == {
        **vars(error),
        "message": "the seatId 'A_1' of `no field at all` is taken",
    }


async def answer_of(
    network: Network, update_event: Handler, metadata: Mapping[str, str]
) -> grpc.aio.AioRpcError:
    """The error of UpdateEvent, whose body is `event`, for a client of the gateway."""
    service = a_service(standing_in(EVENTS, UpdateEvent=update_event))
    payload = {"x-jwt-payload": encoded(a_payload(role="ADMIN"))}
    async with (
        network.serve("booking_svc", service) as port,
        network.plain_channel("gateway", "booking_svc", port) as channel,
    ):
        request = event_service_pb2.UpdateEventRequest(event_id=EVENT_ID)
        request.event.name = "Jazz"
        metadata_of_call = tuple({**payload, **metadata}.items())
        return await refusal(
            call(channel, f"/{EVENTS}/UpdateEvent", request, metadata=metadata_of_call)
        )


def raising(error: Exception) -> Handler:
    async def fail(request: Any, context: Context) -> Any:
        raise error

    return fail


def fields(error: grpc.aio.AioRpcError) -> list[str]:
    violations = details_of(error, error_details_pb2.BadRequest).field_violations
    return [violation.field for violation in violations]


@pytest.mark.parametrize(
    ("metadata", "expected"),
    [
        (REST, ["eventId", "endTime", "offers[0].seatType"]),
        ({}, ["event_id", "event.end_time", "event.offers[0].seat_type"]),
    ],
    ids=["rest", "grpc"],
)
async def test_the_gateways_client_gets_its_own_names(
    network: Network, metadata: Mapping[str, str], expected: list[str]
) -> None:
    error = await answer_of(network, raising(CONTRADICTORY), metadata)
    assert fields(error) == expected
    assert all(f"{field}: " in (error.details() or "") for field in expected)
    assert "`" not in str(error)


async def test_the_gateways_client_learns_when_to_try_again(network: Network) -> None:
    """A service does not: the text would be written at every hop."""
    limited = DomainError(Reason.RATE_LIMITED, "too many mails", retry_after_seconds=5.2)
    away = DomainError(Reason.DEPENDENCY_UNAVAILABLE, "away", retry_after_seconds=1)
    error = await answer_of(network, raising(limited), {})
    assert error.details() == "too many mails. Try again in 6 seconds."
    assert dict(error.trailing_metadata())[REASON_HEADER] == "RATE_LIMITED"
    assert (await answer_of(network, raising(away), {})).details() == "away"
    assert to_status(limited).message == "too many mails"


async def test_names_are_written_once_however_many_services_a_call_passes(
    network: Network,
) -> None:
    """stock_svc answers booking_svc with the contract's names, and does not learn of REST."""
    seen: list[DomainError] = []
    stock_metadata: dict[str, Any] = {}

    async def get_stock(_request: Any, context: Context) -> Any:
        stock_metadata.update(context.invocation_metadata() or ())
        raise CONTRADICTORY

    async with (
        network.serve("stock_svc", a_service(standing_in(STOCK, GetStock=get_stock))) as port,
        network.mesh_channel("booking_svc", "stock_svc", port, service_descriptor(STOCK)) as stock,
    ):

        async def update_event(request: Any, context: Context) -> Any:
            try:
                await StockServiceStub(stock).GetStock(
                    stock_service_pb2.GetStockRequest(event_id=request.event_id)
                )
            except DomainError as error:
                seen.append(error)
                raise

        answer = await answer_of(network, update_event, REST)
    [between] = seen
    assert vars(between) == vars(CONTRADICTORY)
    assert REST_HEADER not in stock_metadata
    assert fields(answer) == ["eventId", "endTime", "offers[0].seatType"]


async def test_only_the_gateway_can_say_that_a_call_came_over_rest(network: Network) -> None:
    service = a_service(standing_in(STOCK, GetStock=raising(CONTRADICTORY)))
    async with (
        network.serve("stock_svc", service) as port,
        network.plain_channel("booking_svc", "stock_svc", port) as channel,
    ):
        request = stock_service_pb2.GetStockRequest(event_id=EVENT_ID)
        error = await refusal(
            call(channel, f"/{STOCK}/GetStock", request, metadata=tuple(REST.items()))
        )
    assert error.details() == CONTRADICTORY.message


async def test_streams_name_fields_as_the_client_writes_them(network: Network) -> None:
    service = a_service(standing_in(EVENTS))
    request = event_service_pb2.WatchAvailabilityRequest(event_id="7")
    async with (
        network.serve("booking_svc", service) as port,
        network.plain_channel("gateway", "booking_svc", port) as channel,
    ):
        stub: grpc.aio.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream(
            f"/{EVENTS}/WatchAvailability"
        )
        with pytest.raises(grpc.aio.AioRpcError) as refused:
            async for _ in stub(request.SerializeToString(), metadata=tuple(REST.items())):
                pass
    assert refused.value.details() == "eventId: must be a valid UUID"
