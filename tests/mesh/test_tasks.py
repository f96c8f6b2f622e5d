"""Shielded work finishes even when its client cancels; background loops continue after errors."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from functools import partial
from typing import Any

import psycopg
import pytest
import sqlalchemy as sa

from boxoffice.stock.v1 import (
    stock_change_service_pb2,
    stock_change_service_pb2_grpc,
    stock_service_pb2,
)
from mesh import deadlines, tasks
from mesh.db.consumer import FencedError
from mesh.db.database import Database, libpq_url
from mesh.errors import DomainError, Reason
from mesh.redis.link import RedisAwayError
from testing.network import Context, Network, a_service, call, standing_in

STOCK = "boxoffice.stock.v1.StockService"
EVENT_ID = "01932c07-5e0a-7cc0-b3a5-d3a1b3c0ffee"


class Step:
    """Work that waits until the test sets `go_on`."""

    def __init__(self) -> None:
        self.began = asyncio.Event()
        self.go_on = asyncio.Event()
        self.done = asyncio.Event()
        self.remaining_seconds: float | None = None

    async def work(self) -> str:
        self.remaining_seconds = deadlines.remaining_seconds()
        self.began.set()
        await self.go_on.wait()
        self.done.set()
        return "done"


async def test_shielded_work_outlives_a_client_that_cancels(network: Network) -> None:
    step, handler_left = Step(), asyncio.Event()

    async def get_stock(request: Any, context: Context) -> Any:
        try:
            await tasks.shielded(step.work(), seconds=120)
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
        # Its deadline is its own, not the call's of two seconds.
        assert step.remaining_seconds is not None
        assert step.remaining_seconds > 10
        step.go_on.set()
        await tasks.drain(60)
    assert step.done.is_set()


async def test_without_shielding_the_work_is_cancelled(network: Network) -> None:
    """Control: grpc.aio cancels the handler and everything that it awaits."""
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
    waiting = asyncio.create_task(tasks.shielded(step.work(), seconds=120))
    await step.began.wait()
    draining = asyncio.create_task(tasks.drain(60))
    await asyncio.sleep(0)
    assert not draining.done()
    step.go_on.set()
    await draining
    assert await waiting == "done"


async def test_draining_cancels_work_that_does_not_finish(
    caplog: pytest.LogCaptureFixture,
) -> None:
    step = Step()
    waiting = asyncio.create_task(tasks.shielded(step.work(), seconds=120))
    await step.began.wait()
    with caplog.at_level(logging.ERROR, "mesh.tasks"):
        await tasks.drain(0.01)
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert "cut off" in caplog.text


async def test_shielded_work_ends_at_its_own_deadline() -> None:
    with pytest.raises(TimeoutError):
        await tasks.shielded(Step().work(), seconds=0.01)


async def test_an_error_of_shielded_work_is_raised_to_the_caller() -> None:
    async def fail() -> None:
        raise LookupError("on purpose")

    with pytest.raises(LookupError):
        await tasks.shielded(fail(), seconds=60)


async def test_a_background_loop_continues_after_an_error(
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


async def ended(turn: Callable[[], Awaitable[None]], caplog: pytest.LogCaptureFixture) -> int:
    """The level at which a background loop logs the end of a turn that raises."""
    caplog.clear()
    with caplog.at_level(logging.INFO, "mesh.tasks"):
        loop = asyncio.create_task(tasks.forever("test", turn))
        async with asyncio.timeout(60):
            while not caplog.records:
                await asyncio.sleep(0.01)
        loop.cancel()
    return caplog.records[0].levelno


async def test_a_stream_that_its_server_ends_is_no_failure(
    network: Network, caplog: pytest.LogCaptureFixture
) -> None:
    """As at the maximum age of a connection and at a restart."""

    async def changes(_request: Any, _context: Context) -> Any:
        yield stock_change_service_pb2.StreamChangesResponse(position="1")
        await asyncio.sleep(3600)

    service = a_service(standing_in("boxoffice.stock.v1.StockChangeService", StreamChanges=changes))
    async with AsyncExitStack() as serving:
        port = await serving.enter_async_context(network.serve("stock_svc", service))
        async with network.mesh_channel("booking_svc", "stock_svc", port) as channel:
            stub = stock_change_service_pb2_grpc.StockChangeServiceStub(channel)

            async def follow() -> None:
                request = stock_change_service_pb2.StreamChangesRequest()
                async for _ in stub.StreamChanges(request, wait_for_ready=True):
                    await serving.aclose()

            assert await ended(follow, caplog) == logging.INFO


async def test_an_outage_is_a_warning_and_a_bug_an_error(
    database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    """Only errors are reported to the error tracker."""

    async def raising(error: Exception) -> None:
        raise error

    async def terminated() -> None:
        async with database.transaction() as connection:
            await connection.execute(sa.text("SELECT pg_terminate_backend(pg_backend_pid())"))

    async def terminated_without_a_pool() -> None:
        url = libpq_url(database.url)
        async with await psycopg.AsyncConnection.connect(url) as connection:
            await connection.execute("SELECT pg_terminate_backend(pg_backend_pid())")

    async def misspelt() -> None:
        async with database.transaction() as connection:
            await connection.execute(sa.text("SELECT nothing"))

    away = DomainError(Reason.DEPENDENCY_UNAVAILABLE, "away")
    refused = DomainError(Reason.SOLD_OUT, "a refusal that the loop should have handled")
    levels = {
        turn: await ended(turn, caplog)
        for turn in (
            terminated,
            terminated_without_a_pool,
            partial(raising, away),
            partial(raising, RedisAwayError()),
            partial(raising, TimeoutError()),
            misspelt,
            partial(raising, refused),
            partial(raising, ValueError()),
            partial(raising, FencedError()),
        )
    }
    assert list(levels.values()) == [logging.WARNING] * 5 + [logging.ERROR] * 3 + [logging.INFO]
