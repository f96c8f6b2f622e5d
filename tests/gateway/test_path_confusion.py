"""Ambiguous spellings of paths: none reaches a protected method without a token."""

import socket
import ssl

import pytest

from testing import gateway_harness
from testing.gateway_harness import Gateway

BOOKING = "/api/v1/bookings/b1"
RPC = "/boxoffice.bookings.v1.BookingService/GetBooking"

TARGETS = [
    "//api/v1/bookings/b1",
    "/api//v1/bookings/b1",
    "/api/v1/./bookings/b1",
    "/health/../api/v1/bookings/b1",
    "/docs/../api/v1/bookings/b1",
    "/docs/..;/api/v1/bookings/b1",
    "/health/..;/api/v1/bookings/b1",
    "/api/v1/bookings;x=y/b1",
    "/api/v1/bookings/b1;x=y",
    "/api/v1/bookings%2Fb1",
    "/api/v1/bookings%2fb1",
    "/api/v1/bookings%5Cb1",
    "/api/v1/bookings\\b1",
    "/api%2Fv1/bookings/b1",
    "/%2e%2e/api/v1/bookings/b1",
    "/health/%2e%2e/api/v1/bookings/b1",
    "/api/v1/bookings/b1%00",
    "/api/v1/bookings%00/b1",
    "/api/v1/bookings/%c0%af",
    "/api/v1/%62ookings/b1",
    "/API/v1/bookings/b1",
    "/api/v1/bookings/b1/",
    "/api/v1/bookings/b1?x=/health",
    "/api/v1/bookings/b1#/health",
    "/health?/api/v1/bookings/b1",
    RPC,
    RPC.upper(),
    "/" + RPC,
    RPC + "/",
    RPC + ";x=y",
    RPC.replace("/Get", "%2FGet"),
    "/docs/.." + RPC,
    "http://127.0.0.1/api/v1/bookings/b1",
    "http://localhost./api/v1/bookings/b1",
    "https://elsewhere.example/api/v1/bookings/b1",
    "*",
    "127.0.0.1:443",
]
VERBS = ["GET", "POST", "HEAD", "CONNECT"]


@pytest.fixture
def gateway(each_listener: Gateway) -> Gateway:
    return each_listener


def ask(gateway: Gateway, line: str, host: str = "127.0.0.1") -> bytes:
    """The first line of the response to a raw request line; empty if the connection is closed."""
    return ask_over(gateway_harness.connection(gateway.settings), line, host)


def ask_over(connection: socket.socket, line: str, host: str = "127.0.0.1") -> bytes:
    with connection:
        request = f"{line}\r\nHost: {host}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        connection.sendall(request.encode("latin-1"))
        try:
            return connection.makefile("rb").readline()
        except (ConnectionResetError, ssl.SSLEOFError):
            return b""


def test_no_spelling_of_a_path_bypasses_the_token(
    gateway: Gateway, subtests: pytest.Subtests
) -> None:
    for target in TARGETS:
        with subtests.test(target):
            for verb in VERBS:
                status = ask(gateway, f"{verb} {target} HTTP/1.1").split()[1:2]
                if target.startswith("/health?") and verb == "GET":
                    # A public path: either the query is refused or the call succeeds.
                    continue
                assert status == [] or status[0][:1] in (b"3", b"4"), (verb, target, status)
            assert not any("BookingService" in call.path for call in gateway.upstream.calls)


@pytest.mark.parametrize("host", ["127.0.0.1.", "localhost:1", "a@b", "elsewhere.example", ""])
def test_no_host_bypasses_the_token(gateway: Gateway, host: str) -> None:
    status = ask(gateway, f"GET {BOOKING} HTTP/1.1", host).split()[1]
    assert status[:1] == b"4"
    assert gateway.upstream.calls == []


def test_no_spelling_bypasses_the_token_over_http_2(
    gateway: Gateway, subtests: pytest.Subtests
) -> None:
    # The client library would change the others.
    targets = [
        target
        for target in (BOOKING, *TARGETS)
        if target.startswith("/") and "#" not in target and "\\" not in target
    ]
    with gateway_harness.rest_client(gateway.settings, http2=True) as client:
        for target in targets:
            with subtests.test(target):
                url = client.base_url.copy_with(raw_path=target.encode())
                answer = client.request("GET", url)
                if not target.startswith("/health?"):
                    assert 300 <= answer.status_code < 500
                assert not any("BookingService" in call.path for call in gateway.upstream.calls)


ADMIN = [
    "/config_dump",
    "/quitquitquit",
    "/ready/../quitquitquit",
    "/ready/..;/quitquitquit",
    "/stats/prometheus/../../quitquitquit",
    "/ready%2F..%2Fquitquitquit",
    "//quitquitquit",
    "/ready/",
    "/stats",
]


def test_the_probes_listener_serves_no_other_path(
    running_by_tls: Gateway, subtests: pytest.Subtests
) -> None:
    """Its upstream is the admin port, which can end the process."""
    address = ("127.0.0.1", running_by_tls.settings.gateway_metrics_port or 0)
    for target in (*TARGETS, *ADMIN):
        with subtests.test(target):
            for verb in VERBS:
                connection = socket.create_connection(address, timeout=60)
                status = ask_over(connection, f"{verb} {target} HTTP/1.1").split()[1:2]
                assert status == [] or status[0] in (b"400", b"404"), (verb, status)
            ready = socket.create_connection(address, timeout=60)
            assert b" 200 " in ask_over(ready, "GET /ready HTTP/1.1")


def test_the_plain_path_with_a_token_reaches_the_method(gateway: Gateway) -> None:
    """Control for the tests above."""
    with gateway_harness.connection(gateway.settings) as connection:
        token = gateway_harness.bearer()["authorization"]
        connection.sendall(
            f"GET {BOOKING} HTTP/1.1\r\nHost: a\r\nAuthorization: {token}\r\n"
            "Connection: close\r\n\r\n".encode()
        )
        assert b" 200 " in connection.makefile("rb").readline()
    assert [call.path for call in gateway.upstream.calls] == [RPC]
