"""Calls that arrive faster than a process accepts them."""

import asyncio
import time
from typing import Any

import grpc

from boxoffice.auth.v1 import auth_service_pb2
from mesh.rpc import client
from testing.network import Network, a_service, standing_in

AUTH = "boxoffice.auth.v1.AuthService"
CALLS = 1_800
CHANNELS = 2


async def test_a_burst_of_calls_is_queued(network: Network) -> None:
    """Thousands of watching clients reconnect at once when a process restarts."""
    async with network.serve("auth_svc", a_service(standing_in(AUTH))) as port:
        credentials = client.credentials(network.home / "certificates", "stock_svc")
        options = [
            ("grpc.ssl_target_name_override", client.server_name("auth_svc")),
            # Otherwise they would share a connection, which is limited to 1,024 calls.
            ("grpc.use_local_subchannel_pool", 1),
        ]
        channels = [
            grpc.secure_channel(f"127.0.0.1:{port}", credentials, options) for _ in range(CHANNELS)
        ]
        request = auth_service_pb2.GetJwksRequest().SerializeToString()
        methods: list[Any] = [channel.unary_unary(f"/{AUTH}/GetJwks") for channel in channels]
        calls = [methods[number % CHANNELS].future(request, timeout=60) for number in range(CALLS)]
        # Blocks the server's event loop, which runs in this thread, so that all calls are pending.
        time.sleep(2)  # noqa: ASYNC251
        errors = await asyncio.gather(*(asyncio.to_thread(call.exception) for call in calls))
        for channel in channels:
            channel.close()
    assert [error for error in errors if error is not None] == []
