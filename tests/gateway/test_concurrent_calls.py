"""More concurrent calls than the services can complete: the gateway refuses the rest at once."""

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from google.protobuf.duration_pb2 import Duration

from boxoffice.bookings.v1 import booking_pb2
from boxoffice.catalogue.v1 import event_pb2
from testing import gateway_harness
from testing.gateway_harness import Gateway, bearer

GET_EVENT = "/boxoffice.catalogue.v1.EventService/GetEvent"
PLACE = "/boxoffice.bookings.v1.BookingService/PlaceBooking"
MAX_CALLS = {GET_EVENT: 64, PLACE: 128}
BY_REST: dict[str, Callable[[Gateway], httpx.Response]] = {
    GET_EVENT: lambda gateway: gateway.rest.get("/api/v1/events/e1"),
    PLACE: lambda gateway: gateway.rest.post("/api/v1/bookings", json={}, headers=bearer()),
}
# Below the gateway's 100 streams per connection.
CALLS_PER_CONNECTION = 64


@pytest.fixture(scope="module")
def overloaded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """One replica of each service, with deadlines that suffice on a slow machine."""
    files = gateway_harness.contract()
    for path in (GET_EVENT, PLACE):
        gateway_harness.policy_in(files, path).deadline.CopyFrom(Duration(seconds=30))
    folder: Path = tmp_path_factory.mktemp("overload")
    with gateway_harness.running_gateway(folder, files=files) as gateway:
        yield gateway


def send(gateway: Gateway, path: str, connections: ExitStack) -> list[Any]:
    """Sends as many concurrent calls as the gateway admits."""
    address = f"127.0.0.1:{gateway.settings.gateway_port}"
    sent: list[Any] = []
    for _ in range(0, MAX_CALLS[path], CALLS_PER_CONNECTION):
        channel = grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
        method: Any = connections.enter_context(channel).unary_unary(path)
        metadata = tuple(bearer().items())
        sent += [method.future(b"", metadata=metadata) for _ in range(CALLS_PER_CONNECTION)]
    return sent


@pytest.mark.parametrize(("busy", "free"), [(GET_EVENT, PLACE), (PLACE, GET_EVENT)])
def test_calls_beyond_the_limit_are_refused_and_other_kinds_still_served(
    overloaded: Gateway, busy: str, free: str
) -> None:
    """A burst of reads does not block bookings, and a burst of bookings does not block reads."""
    overloaded.upstream.calls.clear()
    has_arrived, may_end = threading.Semaphore(0), threading.Event()

    def hang(_request: bytes, _context: grpc.ServicerContext) -> Any:
        has_arrived.release()
        may_end.wait(60)
        return event_pb2.Event() if busy == GET_EVENT else booking_pb2.Booking()

    overloaded.upstream.answers = {busy: hang}
    with ExitStack() as connections:
        running = send(overloaded, busy, connections)
        try:
            assert all(has_arrived.acquire(timeout=25) for _ in running)
            with pytest.raises(grpc.RpcError) as refused:
                overloaded.unary(busy, metadata=bearer())
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            answer = BY_REST[busy](overloaded)
            assert answer.status_code == 429
            assert answer.json()["details"][0]["reason"] == "OVERLOADED"
            assert int(answer.headers["retry-after"]) >= 1
            assert len(overloaded.upstream.calls) == MAX_CALLS[busy]
            assert BY_REST[free](overloaded).is_success
            # Load balancers and verifiers of tokens need these under any load.
            assert overloaded.rest.get("/health").is_success
            assert overloaded.rest.get("/.well-known/jwks.json").is_success
        finally:
            may_end.set()
        for call in running:
            call.result()
    assert BY_REST[busy](overloaded).is_success
