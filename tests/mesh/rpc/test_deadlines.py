"""Deadlines: of a call, and of the calls that it makes."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
import pytest

from boxoffice.auth.v1 import auth_service_pb2
from boxoffice.auth.v1.auth_service_pb2_grpc import AuthServiceStub
from boxoffice.catalogue.v1 import event_service_pb2
from boxoffice.stock.v1 import stock_service_pb2
from boxoffice.stock.v1.stock_service_pb2_grpc import StockServiceStub
from mesh import deadlines
from mesh.errors import DomainError, Reason
from mesh.observability import request_context
from testing.network import (
    Context,
    Network,
    a_service,
    call,
    reason_of,
    refusal,
    service_descriptor,
    standing_in,
)

AUTH = "boxoffice.auth.v1.AuthService"
EVENTS = "boxoffice.catalogue.v1.EventService"
STOCK = "boxoffice.stock.v1.StockService"
EVENT_ID = "01932c07-5e0a-7cc0-b3a5-d3a1b3c0ffee"

# The deadline of GetEvent, GetStock and GetJwks in the contract.
POLICY_SECONDS = 2.0


class Slow:
    """A handler that never returns and records that it was cancelled."""

    def __init__(self) -> None:
        self.ended: asyncio.Event = asyncio.Event()

    async def __call__(self, request: Any, context: Context) -> Any:
        try:
            await asyncio.Event().wait()
        finally:
            self.ended.set()


@pytest.mark.parametrize("client_seconds", [None, 60.0])
async def test_a_call_ends_at_its_policys_deadline(
    network: Network, client_seconds: float | None
) -> None:
    slow = Slow()
    service = a_service(standing_in(STOCK, GetStock=slow))
    async with (
        asyncio.timeout(POLICY_SECONDS * 5),
        network.serve("stock_svc", service) as port,
        network.plain_channel("booking_svc", "stock_svc", port) as channel,
    ):
        began = asyncio.get_running_loop().time()
        request = stock_service_pb2.GetStockRequest(event_id=EVENT_ID)
        error = await refusal(call(channel, f"/{STOCK}/GetStock", request, timeout=client_seconds))
        took = asyncio.get_running_loop().time() - began
    assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    # The service's own error, not one of gRPC's runtime.
    assert reason_of(error) == "DEADLINE_EXCEEDED"
    assert POLICY_SECONDS * 0.9 < took < POLICY_SECONDS * 4
    assert slow.ended.is_set()


async def test_a_handler_is_cancelled_when_its_client_gives_up(network: Network) -> None:
    slow = Slow()
    service = a_service(standing_in(STOCK, GetStock=slow))
    async with (
        network.serve("stock_svc", service) as port,
        network.plain_channel("booking_svc", "stock_svc", port) as channel,
    ):
        request = stock_service_pb2.GetStockRequest(event_id=EVENT_ID)
        error = await refusal(call(channel, f"/{STOCK}/GetStock", request, timeout=0.3))
        assert error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        async with asyncio.timeout(POLICY_SECONDS / 2):
            await slow.ended.wait()


@pytest.mark.parametrize("client_seconds", [None, 1.5])
async def test_every_hop_has_less_time_than_the_previous_one(
    network: Network, client_seconds: float | None
) -> None:
    """booking_svc → stock_svc → auth_svc, with and without a deadline of the client."""
    remaining: list[float | None] = []

    async def get_jwks(request: Any, context: Context) -> Any:
        remaining.append(context.time_remaining())
        return auth_service_pb2.JsonWebKeySet()

    async with (
        network.serve("auth_svc", a_service(standing_in(AUTH, GetJwks=get_jwks))) as auth_port,
        network.mesh_channel("stock_svc", "auth_svc", auth_port, service_descriptor(AUTH)) as auth,
    ):

        async def get_stock(request: Any, context: Context) -> Any:
            remaining.append(context.time_remaining())
            await AuthServiceStub(auth).GetJwks(auth_service_pb2.GetJwksRequest())
            return stock_service_pb2.Stock()

        service = a_service(standing_in(STOCK, GetStock=get_stock))
        async with (
            network.serve("stock_svc", service) as stock_port,
            network.mesh_channel(
                "booking_svc", "stock_svc", stock_port, service_descriptor(STOCK)
            ) as stock,
        ):

            async def get_event(request: Any, context: Context) -> Any:
                remaining.append(deadlines.remaining_seconds())
                await StockServiceStub(stock).GetStock(
                    stock_service_pb2.GetStockRequest(event_id=EVENT_ID)
                )

            service = a_service(standing_in(EVENTS, GetEvent=get_event))
            async with (
                network.serve("booking_svc", service) as port,
                network.plain_channel("gateway", "booking_svc", port) as channel,
            ):
                request = event_service_pb2.GetEventRequest(event_id=EVENT_ID)
                stub = call(channel, f"/{EVENTS}/GetEvent", request, timeout=client_seconds)
                # get_event returns None, which is not a message.
                await refusal(stub)
    first, second, third = remaining
    assert first is not None
    assert second is not None
    assert third is not None
    assert (client_seconds or POLICY_SECONDS) >= first > second > third > 0
    # Each hop reserves time for its own work; gRPC rounds the deadlines that it sends.
    assert first - second > 0.005
    assert second - third > 0.005


async def test_without_time_no_call_is_made(network: Network) -> None:
    calls: list[Any] = []

    async def get_stock(request: Any, context: Context) -> Any:
        calls.append(request)
        return stock_service_pb2.Stock()

    service = a_service(standing_in(STOCK, GetStock=get_stock))
    async with (
        network.serve("stock_svc", service) as port,
        network.mesh_channel(
            "booking_svc", "stock_svc", port, service_descriptor(STOCK)
        ) as channel,
    ):
        stock = StockServiceStub(channel)
        request = stock_service_pb2.GetStockRequest(event_id=EVENT_ID)
        with deadlines.deadline_in(0.02), pytest.raises(DomainError) as refused:
            await stock.GetStock(request)
        assert refused.value.reason is Reason.DEADLINE_EXCEEDED
        assert calls == []
        with deadlines.deadline_in(30):
            await stock.GetStock(request)
        await stock.GetStock(request)
    assert len(calls) == 2


async def test_the_request_id_is_the_same_at_every_hop(network: Network) -> None:
    seen: list[str] = []

    async def get_stock(request: Any, context: Context) -> Any:
        seen.append(request_context.request_id())
        return stock_service_pb2.Stock()

    service = a_service(standing_in(STOCK, GetStock=get_stock))
    async with (
        network.serve("stock_svc", service) as stock_port,
        network.mesh_channel(
            "booking_svc", "stock_svc", stock_port, service_descriptor(STOCK)
        ) as stock,
    ):

        async def get_event(request: Any, context: Context) -> Any:
            seen.append(request_context.request_id())
            await StockServiceStub(stock).GetStock(
                stock_service_pb2.GetStockRequest(event_id=EVENT_ID)
            )
            return event_service_pb2.GetEventRequest()

        service = a_service(standing_in(EVENTS, GetEvent=get_event))
        async with (
            network.serve("booking_svc", service) as port,
            network.plain_channel("gateway", "booking_svc", port) as channel,
        ):
            request = event_service_pb2.GetEventRequest(event_id=EVENT_ID)
            for given in ("req-1", None, "x" * (request_context.MAX_REQUEST_ID_LENGTH + 1)):
                metadata = [("x-request-id", given)] if given else []
                await call(channel, f"/{EVENTS}/GetEvent", request, metadata=metadata)
    assert seen[0] == seen[1] == "req-1"
    # A call without a request id, or with one that is too long, gets a new one.
    assert seen[2] == seen[3]
    assert seen[4] == seen[5]
    assert len({seen[0], seen[2], seen[4]}) == 3
    assert all(len(request_id) <= request_context.MAX_REQUEST_ID_LENGTH for request_id in seen)


async def test_a_stream_can_be_closed_by_another_task() -> None:
    """gRPC closes streams whose clients disconnected in another task."""

    async def stream() -> AsyncIterator[int]:
        with deadlines.deadline_in(5):
            yield 1

    opened = stream()
    assert await anext(opened) == 1
    await asyncio.create_task(opened.aclose())  # type: ignore[attr-defined]  # a generator
