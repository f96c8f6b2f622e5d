"""Retries: only of methods that the contract marks as retryable, and within a retry budget."""

from typing import Any

import grpc
import pytest
from google.protobuf.message_factory import GetMessageClass

from boxoffice.stock.v1 import stock_service_pb2
from mesh.errors import DomainError, Reason
from testing.network import Context, Network, a_service, call, service_descriptor, standing_in

STOCK = "boxoffice.stock.v1.StockService"
BOOKINGS = "boxoffice.bookings.v1.BookingService"
AUTH = "boxoffice.auth.v1.AuthService"
EVENT_ID = "01932c07-5e0a-7cc0-b3a5-d3a1b3c0ffee"


class Failing:
    """A handler that counts attempts and fails all of them, or the first `failures`."""

    def __init__(self, code: grpc.StatusCode, *, failures: int | None = None) -> None:
        self.attempts = 0
        self._code = code
        self._failures = failures

    async def __call__(self, request: Any, context: Context) -> Any:
        self.attempts += 1
        if self._failures is None or self.attempts <= self._failures:
            await context.abort(self._code, "on purpose")
        return stock_service_pb2.Stock(version=7)


async def get_stock(network: Network, failing: Failing, *, calls: int = 1) -> list[Any]:
    """Calls a read-only method `calls` times; returns responses and errors."""
    service = a_service(standing_in(STOCK, GetStock=failing))
    outcomes: list[Any] = []
    async with (
        network.serve("stock_svc", service) as port,
        network.mesh_channel("booking_svc", "stock_svc", port, service_descriptor(STOCK)) as stock,
    ):
        request = stock_service_pb2.GetStockRequest(event_id=EVENT_ID)
        for _ in range(calls):
            try:
                outcomes.append(await call(stock, f"/{STOCK}/GetStock", request))
            except (DomainError, grpc.aio.AioRpcError) as error:
                outcomes.append(error)
    return outcomes


async def test_a_retryable_method_is_tried_three_times(network: Network) -> None:
    failing = Failing(grpc.StatusCode.UNAVAILABLE)
    [error] = await get_stock(network, failing)
    assert isinstance(error, DomainError)
    assert error.reason is Reason.DEPENDENCY_UNAVAILABLE
    assert failing.attempts == 3


async def test_the_first_success_ends_the_retries(network: Network) -> None:
    failing = Failing(grpc.StatusCode.UNAVAILABLE, failures=1)
    [answer] = await get_stock(network, failing)
    assert answer.version == 7
    assert failing.attempts == 2


@pytest.mark.parametrize(
    "code",
    [
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.RESOURCE_EXHAUSTED,
    ],
)
async def test_only_unavailable_is_retried(network: Network, code: grpc.StatusCode) -> None:
    failing = Failing(code)
    await get_stock(network, failing)
    assert failing.attempts == 1


async def test_a_method_that_is_not_retryable_is_tried_once(network: Network) -> None:
    failing = Failing(grpc.StatusCode.UNAVAILABLE)
    register = service_descriptor(AUTH).methods_by_name["Register"]
    assert register.GetOptions().idempotency_level == 0
    service = a_service(standing_in(AUTH, Register=failing))
    async with (
        network.serve("auth_svc", service) as port,
        network.mesh_channel("operator", "auth_svc", port, service_descriptor(AUTH)) as auth,
    ):
        request = GetMessageClass(register.input_type)(
            email="mira@example.com", password="x", full_name="Mira"
        )
        with pytest.raises(DomainError) as refused:
            await call(auth, f"/{AUTH}/Register", request)
    assert refused.value.reason is Reason.DEPENDENCY_UNAVAILABLE
    assert failing.attempts == 1


async def test_retries_stop_when_the_budget_is_used_up(network: Network) -> None:
    """After a few failures each call is one attempt."""
    failing = Failing(grpc.StatusCode.UNAVAILABLE)
    outcomes = await get_stock(network, failing, calls=50)
    assert len(outcomes) == 50
    assert failing.attempts <= 50 * 1.2
