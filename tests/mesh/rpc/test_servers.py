"""The servers of a process share its port, and no other process gets it."""

import asyncio

import grpc
import pytest
from grpc_health.v1 import health

from boxoffice.auth.v1 import auth_service_pb2
from mesh.rpc import client
from mesh.rpc.server import _credentials, build_interceptor, build_server
from testing.network import Context, Network, a_service, call, standing_in

AUTH = "boxoffice.auth.v1.AuthService"
CONNECTIONS = 24


async def test_calls_of_many_connections_are_served(network: Network) -> None:
    """The kernel divides the connections among the servers."""
    peers = set()

    async def get_jwks(_request: object, context: Context) -> auth_service_pb2.JsonWebKeySet:
        peers.add(context.peer())
        return auth_service_pb2.JsonWebKeySet()

    async with network.serve("auth_svc", a_service(standing_in(AUTH, GetJwks=get_jwks))) as port:
        credentials = client.credentials(network.home / "certificates", "stock_svc")
        options = [
            ("grpc.ssl_target_name_override", client.server_name("auth_svc")),
            ("grpc.use_local_subchannel_pool", 1),
        ]
        channels = [
            grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options)
            for _ in range(CONNECTIONS)
        ]
        request = auth_service_pb2.GetJwksRequest()
        await asyncio.gather(*(call(channel, f"/{AUTH}/GetJwks", request) for channel in channels))
        await asyncio.gather(*(channel.close() for channel in channels))
    assert len(peers) == CONNECTIONS


async def test_a_port_that_another_process_has_is_refused(network: Network) -> None:
    service = a_service(standing_in(AUTH))
    async with network.serve("auth_svc", service) as port:
        settings = network.settings()
        interceptor = build_interceptor(settings, service)
        second = build_server(settings, service, health.aio.HealthServicer(), interceptor)
        with pytest.raises(OSError, match="Address already in use"):
            second.add_secure_port("127.0.0.1", port, _credentials("auth_svc", settings))
