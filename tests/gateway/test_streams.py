"""Streams through the real Envoy: server-sent events for REST, messages for gRPC."""

import json
import queue
import threading
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest
from google.protobuf.message import Message

from boxoffice.catalogue.v1 import event_service_pb2
from mesh.errors import DomainError, Reason
from mesh.rpc.errors import to_status
from testing import gateway_harness
from testing.gateway_harness import Gateway, bearer

WATCH = "/boxoffice.catalogue.v1.EventService/GetAvailability"
URL = "/api/v1/events/e1/availability"


@pytest.fixture(scope="module")
def running_stream(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway for a contract in which GetAvailability is a stream without end."""
    files = gateway_harness.contract()
    gateway_harness.method_in(files, WATCH).server_streaming = True
    gateway_harness.policy_in(files, WATCH).ClearField("deadline")
    folder: Path = tmp_path_factory.mktemp("streams")
    with gateway_harness.running_gateway(folder, files=files) as gateway:
        yield gateway


class Feed:
    """Messages that a test sends one by one until it ends the stream."""

    def __init__(self) -> None:
        self._waiting: queue.Queue[Message | None] = queue.Queue()
        self.ended = threading.Event()

    def send(self, version: int) -> None:
        self._waiting.put(event_service_pb2.Availability(event_id="e1", version=version))

    def end(self) -> None:
        self._waiting.put(None)

    def messages(self, _request: bytes, context: grpc.ServicerContext) -> Iterator[Message]:
        context.add_callback(self.ended.set)
        while (message := self._waiting.get(timeout=60)) is not None:
            yield message


@pytest.fixture
def feed(running_stream: Gateway) -> Iterator[Feed]:
    feed = Feed()
    running_stream.upstream.streams[WATCH] = feed.messages
    yield feed
    feed.end()


def test_each_message_arrives_as_an_event_when_it_is_sent(
    running_stream: Gateway, feed: Feed
) -> None:
    feed.send(1)
    headers = {"accept": "text/event-stream", "accept-encoding": "gzip"}
    with running_stream.rest.stream("GET", URL, headers=headers) as answer:
        assert answer.status_code == 200
        assert answer.headers["content-type"] == "text/event-stream"
        assert "content-encoding" not in answer.headers
        lines = answer.iter_lines()
        for version in (1, 2, 3):
            event = json.loads(next(lines).removeprefix("data: "))
            assert (event["eventId"], event["version"]) == ("e1", str(version))
            assert next(lines) == ""
            # Sent only now: a gateway that buffers would never have delivered the first.
            feed.send(version + 1)


def test_a_client_that_disconnects_ends_the_call(running_stream: Gateway, feed: Feed) -> None:
    feed.send(1)
    with running_stream.rest.stream("GET", URL) as answer:
        next(answer.iter_lines())
    assert feed.ended.wait(60)


def test_a_refused_stream_has_the_common_error_format(running_stream: Gateway) -> None:
    def refuse(_request: bytes, context: grpc.ServicerContext) -> Iterator[Message]:
        error = DomainError(Reason.EVENT_NOT_FOUND, "no such event")
        status = to_status(error)
        context.set_trailing_metadata((("grpc-status-details-bin", status.SerializeToString()),))
        context.set_code(grpc.StatusCode.NOT_FOUND)
        context.set_details(error.message)
        yield from ()

    running_stream.upstream.streams[WATCH] = refuse
    answer = running_stream.rest.get(URL)
    assert answer.status_code == 404
    assert answer.json()["details"][0]["reason"] == "EVENT_NOT_FOUND"


def test_grpc_gets_the_messages_as_they_are_sent(running_stream: Gateway, feed: Feed) -> None:
    watch: grpc.UnaryStreamMultiCallable[bytes, event_service_pb2.Availability]
    watch = running_stream.channel.unary_stream(
        WATCH, response_deserializer=event_service_pb2.Availability.FromString
    )
    call = watch(b"")
    for version in (1, 2):
        feed.send(version)
        assert next(call).version == version
    call.cancel()
    assert feed.ended.wait(60)


def test_a_client_stream_to_an_unknown_method_is_answered_at_once(gateway: Gateway) -> None:
    """Reflection is not routed; its clients send one request and keep the stream open."""
    done = threading.Event()

    def requests() -> Iterator[bytes]:
        yield b""
        done.wait(120)

    reflect: grpc.StreamStreamMultiCallable[bytes, bytes] = gateway.channel.stream_stream(
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"
    )
    try:
        with pytest.raises(grpc.RpcError) as failure:
            list(reflect(requests(), metadata=tuple(bearer().items()), timeout=60))
        assert failure.value.code() is grpc.StatusCode.UNIMPLEMENTED
    finally:
        done.set()
