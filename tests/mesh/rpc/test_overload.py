"""Calls that come faster than a process takes them."""

import asyncio
import time
from typing import Any

import grpc

from boxoffice.auth.v1 import auth_service_pb2
from mesh.rpc import client
from testing.network import Network, a_service, standing_in

AUTH = "boxoffice.auth.v1.AuthService"
CROWD = 3_000
CHANNELS = 4


async def test_a_crowd_waits_for_its_turn(network: Network) -> None:
    """As when a process has started again, and all who watched it come back."""
    async with network.serve("auth_svc", a_service(standing_in(AUTH))) as port:
        credentials = client.credentials(network.home / "certificates", "stock_svc")
        options = [
            ("grpc.ssl_target_name_override", client.server_name("auth_svc")),
            # Else they would share a connection, which takes 1,024 calls at once.
            ("grpc.use_local_subchannel_pool", 1),
        ]
        channels = [
            grpc.secure_channel(f"127.0.0.1:{port}", credentials, options) for _ in range(CHANNELS)
        ]
        request = auth_service_pb2.GetJwksRequest().SerializeToString()
        methods: list[Any] = [each.unary_unary(f"/{AUTH}/GetJwks") for each in channels]
        calls = [methods[number % CHANNELS].future(request, timeout=60) for number in range(CROWD)]
        # This thread is the server's, too: meanwhile it takes none of those that arrive.
        time.sleep(2)  # noqa: ASYNC251
        answers = await asyncio.gather(*(asyncio.to_thread(each.exception) for each in calls))
        for channel in channels:
            channel.close()
    assert [answer for answer in answers if answer is not None] == []
