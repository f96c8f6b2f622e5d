"""Headers that identify the caller never reach a service from a client, however they are spelled."""

import socket
from collections.abc import Iterator
from contextlib import contextmanager

import grpc
import h2.config
import h2.connection
import h2.events
import pytest

from testing.gateway_harness import Gateway, bearer

PUBLIC, OF_CUSTOMERS = "/api/v1/events/e1", "/api/v1/bookings/b1"
GET_EVENT = "/boxoffice.catalogue.v1.EventService/GetEvent"
CREATE_EVENT = "/api/v1/auth/login"
LIE = "eyJzdWIiOiJzcG9vZmVkIn0"

NAMES = [
    "x-jwt-payload",
    "X-JWT-PAYLOAD",
    "X-Jwt-Payload",
    "x-Jwt-pAyload",
    "x-jwt-payload-bin",
    "x-jwt-claims",
    "x-user-id",
    "X-USER-ROLE",
    "x-user-",
    "x-internal-role",
    "x-boxoffice-user",
    "x-boxoffice-message",
    "x-forwarded-client-cert",
    "x-envoy-original-method",
    "x-envoy-original-path",
    "x-envoy-retry-on",
]
UNDERSCORED = ["x_jwt_payload", "X_JWT_PAYLOAD", "x-jwt_payload", "x_user_id", "X_User-Role"]


def assert_not_forwarded(gateway: Gateway, calls: int) -> None:
    assert len(gateway.upstream.calls) == calls
    for call in gateway.upstream.calls:
        assert LIE not in "\n".join([*call.metadata, *call.metadata.values()]), call
        assert not any(name.startswith(("x-user", "x_user")) for name in call.metadata)
        assert "x-envoy-internal" not in call.metadata


@contextmanager
def connection(gateway: Gateway) -> Iterator[socket.socket]:
    address = ("127.0.0.1", gateway.settings.gateway_port)
    with socket.create_connection(address, timeout=60) as stream:
        yield stream


def raw(gateway: Gateway, text: str) -> str:
    """The first line of the response to a raw request."""
    with connection(gateway) as stream:
        stream.sendall(text.encode())
        return stream.makefile("rb").readline().decode().strip()


def authorization() -> str:
    return f"authorization: {bearer()['authorization']}\r\n"


@pytest.mark.parametrize("path", [PUBLIC, OF_CUSTOMERS])
def test_a_header_in_any_letter_case_is_removed(
    gateway: Gateway, path: str, subtests: pytest.Subtests
) -> None:
    head = f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{authorization()}"
    for name in NAMES:
        gateway.upstream.calls.clear()
        with subtests.test(name):
            # Twice, because the second must be removed too.
            status = raw(gateway, f"{head}{name}: {LIE}\r\n{name}: {LIE}\r\n\r\n")
            assert status.startswith("HTTP/1.1 200")
            assert_not_forwarded(gateway, 1)


@pytest.mark.parametrize("path", [PUBLIC, OF_CUSTOMERS])
def test_a_header_with_underscores_is_refused(
    gateway: Gateway, path: str, subtests: pytest.Subtests
) -> None:
    """Some servers treat x_user_id as x-user-id."""
    head = f"GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n{authorization()}"
    for name in UNDERSCORED:
        with subtests.test(name):
            assert raw(gateway, f"{head}{name}: {LIE}\r\n\r\n").startswith("HTTP/1.1 400")
            assert_not_forwarded(gateway, 0)


def test_grpc_metadata_is_removed(gateway: Gateway, subtests: pytest.Subtests) -> None:
    method: grpc.UnaryUnaryMultiCallable[bytes, bytes] = gateway.channel.unary_unary(GET_EVENT)
    for name in sorted({name.lower() for name in NAMES}):
        gateway.upstream.calls.clear()
        value: str | bytes = LIE.encode() if name.endswith("-bin") else LIE
        with subtests.test(name):
            method(b"", metadata=((name, value), (name, value)), timeout=60)
            assert_not_forwarded(gateway, 1)


@pytest.mark.parametrize("name", ["x-jwt-payload", "x-user-id", "X-JWT-Payload"])
def test_http_1_trailers_are_removed(gateway: Gateway, name: str) -> None:
    gateway.upstream.calls.clear()
    raw(
        gateway,
        f"POST {CREATE_EVENT} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n"
        f"content-type: application/json\r\ntransfer-encoding: chunked\r\ntrailer: {name}\r\n\r\n"
        f"2\r\n{{}}\r\n0\r\n{name}: {LIE}\r\n\r\n",
    )
    assert_not_forwarded(gateway, 1)


@pytest.mark.parametrize("name", ["x-jwt-payload", "x-user-id"])
def test_http_2_trailers_are_removed(gateway: Gateway, name: str) -> None:
    """A gRPC client that sends metadata after its message."""
    gateway.upstream.calls.clear()
    client = h2.connection.H2Connection(h2.config.H2Configuration(header_encoding="utf-8"))
    with connection(gateway) as stream:
        client.initiate_connection()
        client.send_headers(
            1,
            [
                (":method", "POST"),
                (":path", GET_EVENT),
                (":scheme", "http"),
                (":authority", "x"),
                ("content-type", "application/grpc"),
                ("te", "trailers"),
            ],
        )
        client.send_data(1, b"\0\0\0\0\0")
        client.send_headers(1, [(name, LIE)], end_stream=True)
        stream.sendall(client.data_to_send())
        ended = False
        while not ended:
            received = stream.recv(65_536)
            assert received, "the gateway closed the connection"
            for event in client.receive_data(received):
                ended |= isinstance(event, h2.events.StreamEnded | h2.events.StreamReset)
            stream.sendall(client.data_to_send())
    assert len(gateway.upstream.calls) <= 1
    assert_not_forwarded(gateway, len(gateway.upstream.calls))
