"""Real grpc.aio servers and channels with mutual TLS, for tests of mesh/rpc.

Functions implement the methods of the contract's services.
"""

import importlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import jwt
from google.protobuf import descriptor_pb2, descriptor_pool
from google.protobuf.descriptor import MethodDescriptor, ServiceDescriptor
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass
from google.rpc import error_details_pb2
from grpc_health.v1 import health
from grpc_status import rpc_status

from launcher import certificates
from mesh.errors import DomainError
from mesh.paths import CONTRACT
from mesh.rpc import client
from mesh.rpc.policy import PACKAGE
from mesh.rpc.revocations import Revocations
from mesh.rpc.server import Service, Servicer, _credentials, build_interceptor, build_server
from mesh.settings import SERVICES, MeshSettings

Context = grpc.aio.ServicerContext[Any, Any]
Handler = Callable[[Any, Context], Any]


class Network:
    """The certificates of a state folder, with servers and channels that use them."""

    def __init__(self, home: Path) -> None:
        self.home = home
        certificates.create(home / "certificates")

    def settings(self, service: str = SERVICES[0], port: int = 50_051) -> MeshSettings:
        """Settings with which `service` has the port `port`."""
        return MeshSettings(
            home=self.home, port_base=port - SERVICES.index(service) - 1, replicas=1
        )

    @asynccontextmanager
    async def serve(self, name: str, service: Service) -> AsyncIterator[int]:
        """Serves as the process `name`; yields the port."""
        settings = self.settings()
        interceptor = build_interceptor(settings, service)
        server = build_server(settings, service, health.aio.HealthServicer(), interceptor)
        # The process's own function, so that the tests cover its credentials.
        port = server.add_secure_port("127.0.0.1", 0, _credentials(name, self.settings()))
        await server.start()
        try:
            yield port
        finally:
            await server.stop(0)

    def mesh_channel(
        self, process: str, service: str, port: int, *services: ServiceDescriptor
    ) -> grpc.aio.Channel:
        """The channel that `process` opens to `service`, with deadlines and retries."""
        return client.open_channel(
            self.settings(service, port), process=process, service=service, services=services
        )

    def plain_channel(self, process: str, service: str, port: int) -> grpc.aio.Channel:
        """A channel with the certificate of `process`, without the mesh's interceptors."""
        return grpc.aio.secure_channel(
            f"127.0.0.1:{port}",
            client.credentials(self.home / "certificates", process),
            options=[("grpc.ssl_target_name_override", client.server_name(service))],
        )


def service_descriptor(full_name: str) -> ServiceDescriptor:
    """A service of the contract, e.g. `boxoffice.stock.v1.StockService`."""
    return contract_services()[full_name]


def contract_services() -> dict[str, ServiceDescriptor]:
    """All services of the compiled contract by full name, with the stubs' descriptors."""
    contract = descriptor_pb2.FileDescriptorSet.FromString(CONTRACT.read_bytes())
    services: dict[str, ServiceDescriptor] = {}
    for file in contract.file:
        if not file.package.startswith(PACKAGE):
            continue
        importlib.import_module(file.name.removesuffix(".proto").replace("/", ".") + "_pb2")
        for service in file.service:
            name = f"{file.package}.{service.name}"
            services[name] = descriptor_pool.Default().FindServiceByName(name)
    return services


def standing_in(full_name: str, **handlers: Handler) -> Servicer:
    """Implements a service of the contract with functions; other methods return empty messages."""
    descriptor = service_descriptor(full_name)

    def register(_: Any, server: Any) -> None:
        methods: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            method.name: _method_handler(method, handlers.get(method.name))
            for method in descriptor.methods
        }
        server.add_registered_method_handlers(full_name, methods)

    return Servicer(None, register, descriptor)


def a_service(
    *servicers: Servicer,
    jwks: jwt.PyJWKSet | None = None,
    revocations: Revocations | None = None,
) -> Service:
    """A Service for `Network.serve`. Without `jwks` calls with a bearer token fail."""

    async def keys() -> jwt.PyJWKSet:
        if jwks is None:
            raise AssertionError("this test has no keys")
        return jwks

    async def ping() -> None:
        return None

    return Service(servicers=servicers, jwks=keys, ping_database=ping, revocations=revocations)


def call(
    channel: grpc.aio.Channel, path: str, request: Message, **options: Any
) -> grpc.aio.UnaryUnaryCall[Any, Any]:
    """Calls a unary method by its gRPC path."""
    method = _method(path)
    stub = channel.unary_unary(
        path,
        request_serializer=type(request).SerializeToString,
        response_deserializer=GetMessageClass(method.output_type).FromString,
    )
    return stub(request, **options)


def empty_request(path: str) -> Message:
    """The request of a method, with no fields set."""
    return GetMessageClass(_method(path).input_type)()


async def refusal(attempt: Awaitable[Any]) -> grpc.aio.AioRpcError:
    """The error of a call that must fail, also of one through the mesh's client."""
    try:
        await attempt
    except grpc.aio.AioRpcError as error:
        return error
    except DomainError as error:
        cause = error.__cause__
        if isinstance(cause, grpc.aio.AioRpcError):
            return cause
        raise
    raise AssertionError("the call succeeded")


def reason_of(error: grpc.aio.AioRpcError) -> str:
    """The reason in an error's ErrorInfo; empty without one."""
    return str(details_of(error, error_details_pb2.ErrorInfo).reason)


def details_of(error: grpc.aio.AioRpcError, kind: type[Any]) -> Any:
    """The error's detail of a type; an empty message if it has none."""
    status = rpc_status.from_call(error)  # type: ignore[arg-type]
    for detail in status.details if status is not None else ():
        if detail.Is(kind.DESCRIPTOR):
            return kind.FromString(detail.value)
    return kind()


def _method(path: str) -> MethodDescriptor:
    service, method = path.removeprefix("/").split("/")
    return service_descriptor(service).methods_by_name[method]


def _method_handler(
    method: MethodDescriptor, handler: Handler | None
) -> "grpc.RpcMethodHandler[Any, Any]":
    request = GetMessageClass(method.input_type)
    response = GetMessageClass(method.output_type)

    async def return_empty(_request: Any, _context: Context) -> Any:
        return response()

    async def stream_nothing(_request: Any, _context: Context) -> AsyncIterator[Any]:
        return
        yield

    if method.server_streaming:
        return grpc.unary_stream_rpc_method_handler(
            handler or stream_nothing, request.FromString, response.SerializeToString
        )
    return grpc.unary_unary_rpc_method_handler(
        handler or return_empty, request.FromString, response.SerializeToString
    )
