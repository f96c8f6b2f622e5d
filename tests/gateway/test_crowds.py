"""More calls than the services get done in time: the gateway turns the rest away at once."""

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
AT_WORK = {GET_EVENT: 64, PLACE: 128}
BY_REST: dict[str, Callable[[Gateway], httpx.Response]] = {
    GET_EVENT: lambda gateway: gateway.rest.get("/api/v1/events/e1"),
    PLACE: lambda gateway: gateway.rest.post("/api/v1/bookings", json={}, headers=bearer()),
}
# The gateway takes a hundred at once of each.
CALLS_A_CONNECTION = 64


@pytest.fixture(scope="module")
def crowded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """One replica of each service, and calls that may take as long as a slow machine needs."""
    files = gateway_harness.contract()
    for path in (GET_EVENT, PLACE):
        gateway_harness.policy_in(files, path).deadline.CopyFrom(Duration(seconds=30))
    folder: Path = tmp_path_factory.mktemp("crowds")
    with gateway_harness.running_gateway(folder, files=files) as gateway:
        yield gateway


def send(gateway: Gateway, path: str, connections: ExitStack) -> list[Any]:
    """As many calls at once as the gateway lets in."""
    address = f"127.0.0.1:{gateway.settings.gateway_port}"
    sent: list[Any] = []
    for _ in range(0, AT_WORK[path], CALLS_A_CONNECTION):
        channel = grpc.insecure_channel(address, options=[("grpc.use_local_subchannel_pool", 1)])
        method: Any = connections.enter_context(channel).unary_unary(path)
        metadata = tuple(bearer().items())
        sent += [method.future(b"", metadata=metadata) for _ in range(CALLS_A_CONNECTION)]
    return sent


@pytest.mark.parametrize(("busy", "free"), [(GET_EVENT, PLACE), (PLACE, GET_EVENT)])
def test_who_is_too_many_is_refused_and_the_others_have_room(
    crowded: Gateway, busy: str, free: str
) -> None:
    """A crowd that looks keeps nobody from buying, nor a crowd that buys from looking."""
    crowded.upstream.calls.clear()
    is_in, may_end = threading.Semaphore(0), threading.Event()

    def hang(_request: bytes, _context: grpc.ServicerContext) -> Any:
        is_in.release()
        may_end.wait(60)
        return event_pb2.Event() if busy == GET_EVENT else booking_pb2.Booking()

    crowded.upstream.answers = {busy: hang}
    with ExitStack() as connections:
        inside = send(crowded, busy, connections)
        try:
            assert all(is_in.acquire(timeout=25) for _ in inside)
            with pytest.raises(grpc.RpcError) as refused:
                crowded.unary(busy, metadata=bearer())
            assert refused.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            answer = BY_REST[busy](crowded)
            assert answer.status_code == 429
            assert answer.json()["details"][0]["reason"] == "OVERLOADED"
            assert int(answer.headers["retry-after"]) >= 1
            assert len(crowded.upstream.calls) == AT_WORK[busy]
            assert BY_REST[free](crowded).is_success
            # Else a balancer would take the gateway out, and a gateway its keys.
            assert crowded.rest.get("/health").is_success
            assert crowded.rest.get("/.well-known/jwks.json").is_success
        finally:
            may_end.set()
        for each in inside:
            each.result()
    assert BY_REST[busy](crowded).is_success
