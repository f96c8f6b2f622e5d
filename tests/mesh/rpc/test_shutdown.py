"""SIGTERM: running calls finish, new ones are refused, and the process exits."""

import asyncio
import os
import signal
import sys
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2

from boxoffice.stock.v1 import stock_change_service_pb2, stock_service_pb2
from testing.network import Network, call, reason_of, refusal
from testing.ports import free_ports
from tests.mesh.rpc.slow_service import CHANGES, STOCK, exists

EVENT_ID = "01932c07-5e0a-7cc0-b3a5-d3a1b3c0ffee"


class Running:
    """The process under test and its output."""

    def __init__(self, process: Process, port: int, home: Path) -> None:
        self.process = process
        self.port = port
        self.home = home

    async def line_with(self, text: str) -> str:
        assert self.process.stdout is not None
        lines = []
        while line := (await self.process.stdout.readline()).decode():
            if text in line:
                return line
            lines.append(line)
        raise AssertionError(f"the process ended without {text!r}:\n{''.join(lines)}")


@asynccontextmanager
async def a_process(home: Path, *, grace_seconds: float) -> AsyncIterator[Running]:
    base = free_ports(20)
    # stock_svc has the third port after the base.
    port = base + 3
    environment = {
        **os.environ,
        "BOXOFFICE_HOME": str(home),
        "BOXOFFICE_PORT_BASE": str(base),
        "BOXOFFICE_METRICS_PORT_BASE": str(base + 10),
        "BOXOFFICE_SHUTDOWN_GRACE_SECONDS": str(grace_seconds),
    }
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.mesh.rpc.slow_service", env=environment, stdout=PIPE
    )
    running = Running(process, port, home)
    try:
        await running.line_with('"serving"')
        yield running
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


@pytest.fixture
def home(tmp_path: Path) -> Path:
    Network(tmp_path)
    return tmp_path


async def until_healthy(channel: grpc.aio.Channel) -> None:
    check: grpc.aio.UnaryUnaryMultiCallable[
        health_pb2.HealthCheckRequest, health_pb2.HealthCheckResponse
    ] = channel.unary_unary(
        "/grpc.health.v1.Health/Check",
        request_serializer=health_pb2.HealthCheckRequest.SerializeToString,
        response_deserializer=health_pb2.HealthCheckResponse.FromString,
    )
    serving = health_pb2.HealthCheckResponse.SERVING
    while (await check(health_pb2.HealthCheckRequest())).status != serving:
        await asyncio.sleep(0.01)


async def test_a_running_call_finishes_and_new_ones_are_refused(home: Path) -> None:
    network = Network(home)
    request = stock_service_pb2.GetStockRequest(event_id=EVENT_ID)
    async with (
        asyncio.timeout(60),
        a_process(home, grace_seconds=30) as running,
        network.plain_channel("booking_svc", "stock_svc", running.port) as channel,
        network.plain_channel("booking_svc", "stock_svc", running.port) as other,
    ):
        await until_healthy(channel)
        slow = call(channel, f"/{STOCK}/GetStock", request)
        await exists(home / "call-began")
        running.process.send_signal(signal.SIGTERM)
        await running.line_with('"stopping"')
        error = await refusal(call(other, f"/{STOCK}/GetStock", request, timeout=30))
        assert error.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
        (home / "call-may-end").touch()
        assert (await slow).version == 7
        await running.line_with('"stopped"')
        await running.line_with("closed")
        assert await running.process.wait() == 0


async def test_shielded_work_finishes_before_the_process_exits(home: Path) -> None:
    network = Network(home)
    request = stock_service_pb2.ReleaseReservationRequest(
        event_id=EVENT_ID, reservation_id=EVENT_ID
    )
    async with (
        asyncio.timeout(60),
        a_process(home, grace_seconds=30) as running,
        network.plain_channel("booking_svc", "stock_svc", running.port) as channel,
    ):
        step = call(channel, f"/{STOCK}/ReleaseReservation", request)
        await exists(home / "step-began")
        step.cancel()
        running.process.send_signal(signal.SIGTERM)
        await running.line_with('"stopping"')
        assert running.process.returncode is None
        (home / "step-may-end").touch()
        await running.line_with('"stopped"')
        assert await running.process.wait() == 0
    assert (home / "step-done").exists()


async def test_a_call_that_never_ends_does_not_keep_the_process_running(home: Path) -> None:
    network = Network(home)
    request = stock_service_pb2.GetStockRequest(event_id=EVENT_ID)
    async with (
        asyncio.timeout(60),
        a_process(home, grace_seconds=0.1) as running,
        network.plain_channel("booking_svc", "stock_svc", running.port) as channel,
    ):
        endless = call(channel, f"/{STOCK}/GetStock", request)
        await exists(home / "call-began")
        running.process.send_signal(signal.SIGTERM)
        error = await refusal(endless)
        assert error.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED}
        assert await running.process.wait() == 0


async def test_streams_without_end_are_ended_at_once_with_a_reason(home: Path) -> None:
    """One waits, one sends. Not after the grace, which is longer than the test's timeout."""
    network = Network(home)
    async with (
        asyncio.timeout(60),
        a_process(home, grace_seconds=300) as running,
        network.plain_channel("booking_svc", "stock_svc", running.port) as channel,
    ):
        method = channel.unary_stream(
            f"/{CHANGES}/StreamChanges",
            request_serializer=stock_change_service_pb2.StreamChangesRequest.SerializeToString,
            response_deserializer=stock_change_service_pb2.StreamChangesResponse.FromString,
        )
        streams = [
            method(stock_change_service_pb2.StreamChangesRequest(from_now=waits))
            for waits in (True, False)
        ]
        for stream in streams:
            assert await stream.read() == stock_change_service_pb2.StreamChangesResponse()
        running.process.send_signal(signal.SIGTERM)
        for stream in streams:
            error = await refusal(end_of(stream))
            assert error.code() is grpc.StatusCode.UNAVAILABLE
            assert reason_of(error) == "DEPENDENCY_UNAVAILABLE"
            assert error.details() == "the service is stopping"
        assert await running.process.wait() == 0


async def end_of(stream: "grpc.aio.UnaryStreamCall[Any, Any]") -> None:
    while await stream.read() is not grpc.aio.EOF:
        pass


async def test_a_port_in_use_is_an_error(home: Path) -> None:
    """By default gRPC would share the port with the other process."""
    async with asyncio.timeout(60), a_process(home, grace_seconds=1) as running:
        second = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "tests.mesh.rpc.slow_service",
            env={
                **os.environ,
                "BOXOFFICE_HOME": str(home),
                "BOXOFFICE_PORT_BASE": str(running.port - 3),
            },
            stdout=PIPE,
            stderr=PIPE,
        )
        _, errors = await second.communicate()
        assert second.returncode != 0
        assert str(running.port) in errors.decode()
