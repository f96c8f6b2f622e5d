from collections.abc import Iterator
from pathlib import Path

import pytest

from testing import gateway_harness
from testing.gateway_harness import Gateway
from testing.ports import free_ports

CANCEL = "/boxoffice.bookings.v1.BookingService/CancelBooking"


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """The gateway that most tests share. stock_svc is down; cancelling returns 204."""
    files = gateway_harness.contract()
    gateway_harness.policy_in(files, CANCEL).success_status = 204
    folder: Path = tmp_path_factory.mktemp("gateway")
    down = frozenset({"stock_svc"})
    with gateway_harness.running_gateway(folder, files=files, without=down) as gateway:
        yield gateway


@pytest.fixture
def gateway(running: Gateway) -> Gateway:
    """The shared gateway without recorded calls and with default answers for all methods."""
    running.upstream.calls.clear()
    running.upstream.answers.clear()
    return running


@pytest.fixture(scope="session")
def running_by_tls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway with TLS and the listener for probes, as in production."""
    folder: Path = tmp_path_factory.mktemp("tls-gateway")
    probes = free_ports(1)
    with gateway_harness.running_gateway(
        folder, gateway_tls=True, gateway_metrics_port=probes
    ) as gateway:
        yield gateway


@pytest.fixture(params=["running", "running_by_tls"])
def each_listener(request: pytest.FixtureRequest) -> Gateway:
    """The gateway without TLS, then the one with TLS."""
    gateway: Gateway = request.getfixturevalue(request.param)
    gateway.upstream.calls.clear()
    gateway.upstream.answers.clear()
    return gateway
