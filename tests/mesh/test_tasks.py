"""Work that touches stock or money ends, whatever the client does."""

import asyncio
import logging
from typing import Any

import pytest

from boxoffice.stock.v1 import stock_service_pb2
from mesh import deadlines, tasks
from testing.network import Context, Network, a_service, call, standing_in

STOCK = "boxoffice.stock.v1.StockService"
EVENT_ID = "01932c07-5e0a-7cc0-b3a5-d3a1b3c0ffee"


class Step:
    """Work in three stages that a test lets go on."""

    def __init__(self) -> None:
        self.began = asyncio.Event()
        self.go_on = asyncio.Event()
        self.done = asyncio.Event()
        self.seconds_left: float | None = None

    async def work(self) -> str:
        self.seconds_left = deadlines.remaining_seconds()
        self.began.set()
        await self.go_on.wait()
        self.done.set()
        return "done"


async def test_shielded_work_outlives_a_client_that_cancels(network: Network) -> None:
    step, handler_left = Step(), asyncio.Event()

    async def get_stock(request: Any, context: Context) -> Any:
        try:
            await tasks.shielded(step.work(), seconds=20)
        finally:
            handler_left.set()

    service = a_service(standing_in(STOCK, GetStock=get_stock))
    async with (
        asyncio.timeout(60),
        network.serve("stock_svc", service) as port,
        network.plain_channel("booking_svc", "stock_svc", port) as channel,
    ):
        request = stock_service_pb2.GetStockRequest(event_id=EVENT_ID)
        running = call(channel, f"/{STOCK}/GetStock", request)
        await step.began.wait()
        running.cancel()
        await handler_left.wait()
        assert not step.done.is_set()
        # It has its own time, not the two seconds of the call.
        assert step.seconds_left is not None
        assert step.seconds_left > 10
        step.go_on.set()
        await tasks.drain(20)
    assert step.done.is_set()


async def test_without_the_shield_the_work_is_lost(network: Network) -> None:
    """Control: grpc.aio cancels the handler together with all it awaits."""
    step, cancelled = Step(), asyncio.Event()

    async def get_stock(request: Any, context: Context) -> Any:
        try:
            await step.work()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    service = a_service(standing_in(STOCK, GetStock=get_stock))
    async with (
        asyncio.timeout(60),
        network.serve("stock_svc", service) as port,
        network.plain_channel("booking_svc", "stock_svc", port) as channel,
    ):
        request = stock_service_pb2.GetStockRequest(event_id=EVENT_ID)
        running = call(channel, f"/{STOCK}/GetStock", request)
        await step.began.wait()
        running.cancel()
        await cancelled.wait()
    assert not step.done.is_set()


async def test_draining_waits_for_the_work() -> None:
    step = Step()
    waiting = asyncio.create_task(tasks.shielded(step.work(), seconds=20))
    await step.began.wait()
    draining = asyncio.create_task(tasks.drain(20))
    await asyncio.sleep(0)
    assert not draining.done()
    step.go_on.set()
    await draining
    assert await waiting == "done"


async def test_draining_ends_work_that_is_stuck(caplog: pytest.LogCaptureFixture) -> None:
    step = Step()
    waiting = asyncio.create_task(tasks.shielded(step.work(), seconds=20))
    await step.began.wait()
    with caplog.at_level(logging.ERROR, "mesh.tasks"):
        await tasks.drain(0.01)
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert "cut off" in caplog.text


async def test_shielded_work_ends_at_its_own_deadline() -> None:
    with pytest.raises(TimeoutError):
        await tasks.shielded(Step().work(), seconds=0.01)


async def test_an_error_reaches_whoever_waits() -> None:
    async def fail() -> None:
        raise LookupError("on purpose")

    with pytest.raises(LookupError):
        await tasks.shielded(fail(), seconds=5)


async def test_a_background_loop_goes_on_after_a_failure(
    caplog: pytest.LogCaptureFixture,
) -> None:
    turns, enough = 0, asyncio.Event()

    async def turn() -> None:
        nonlocal turns
        turns += 1
        if turns >= 3:
            enough.set()
            await asyncio.Event().wait()
        raise RuntimeError("on purpose")

    with caplog.at_level(logging.ERROR, "mesh.tasks"):
        loop = asyncio.create_task(tasks.forever("test", turn, retry_seconds=0.001))
        async with asyncio.timeout(60):
            await enough.wait()
        loop.cancel()
        with pytest.raises(asyncio.CancelledError):
            await loop
    assert caplog.text.count("background loop failed") == 2
