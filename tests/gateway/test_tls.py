"""The gateway's port in production: TLS only, HTTP/2 and HTTP/1.1."""

import socket
import ssl
from collections.abc import Iterator

import pytest
from pydantic import ValidationError

from gateway import config
from mesh.settings import MeshSettings
from testing import gateway_harness
from testing.gateway_harness import Gateway, bearer

LIST = "/boxoffice.bookings.v1.BookingService/ListBookings"


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    folder = tmp_path_factory.mktemp("tls")
    with gateway_harness.running_gateway(
        folder, gateway_tls=True, environment="production", rate_limit_scale=1
    ) as gateway:
        yield gateway


def test_rest_and_grpc_work_over_tls(secure: Gateway) -> None:
    for http2, version in ((False, "HTTP/1.1"), (True, "HTTP/2")):
        with gateway_harness.rest_client(secure.settings, http2=http2) as client:
            answer = client.get("/api/v1/bookings", headers=bearer())
        assert (answer.status_code, answer.http_version) == (200, version)
        assert "max-age=31536000" in answer.headers["strict-transport-security"]
    secure.unary(LIST, metadata=bearer())


def test_every_answer_has_the_security_headers(secure: Gateway) -> None:
    for path in ("/health", "/api/v1/nothing", "/api/v1/bookings", "/docs"):
        headers = secure.rest.get(path).headers
        for name in (
            "strict-transport-security",
            "content-security-policy",
            "permissions-policy",
            "referrer-policy",
            "x-content-type-options",
            "x-frame-options",
            "cache-control",
        ):
            assert headers.get(name), (path, name)


def test_plain_text_is_refused(secure: Gateway) -> None:
    address = ("127.0.0.1", secure.settings.gateway_port)
    with socket.create_connection(address, timeout=60) as connection:
        connection.sendall(b"GET /health HTTP/1.1\r\nHost: a\r\n\r\n")
        try:
            answered = connection.recv(100)
        except ConnectionResetError:
            answered = b""
    assert not answered.startswith(b"HTTP")


@pytest.mark.filterwarnings("ignore:ssl.TLSVersion.TLSv1_1 is deprecated")
def test_old_tls_is_refused(secure: Gateway) -> None:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    address = ("127.0.0.1", secure.settings.gateway_port)
    with (
        socket.create_connection(address, timeout=60) as connection,
        pytest.raises((ssl.SSLError, ConnectionError)),
    ):
        context.wrap_socket(connection)


def test_the_gateway_closes_an_unfinished_handshake(secure: Gateway) -> None:
    address = ("127.0.0.1", secure.settings.gateway_port)
    with socket.create_connection(address, timeout=60) as connection:
        # The first bytes of a handshake record.
        connection.sendall(b"\x16\x03\x01\x02")
        assert connection.recv(100) == b""


def test_production_refuses_a_plain_text_listener() -> None:
    settings = MeshSettings.model_validate({"environment": "production"})
    with pytest.raises(config.ConfigError, match="BOXOFFICE_GATEWAY_TLS"):
        config.generate(gateway_harness.contract(), settings)


def test_a_certificate_comes_with_its_key() -> None:
    with pytest.raises(ValidationError, match="must be set together"):
        MeshSettings.model_validate({"gateway_certificate": "chain.pem"})
