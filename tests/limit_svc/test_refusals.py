"""Only the gateway's certificate may call limit_svc."""

from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import pytest
from redis.asyncio import from_url

from boxoffice.limits.v1 import rate_limit_service_pb2 as pb
from launcher import certificates
from limit_svc.__main__ import open_service
from limit_svc.settings import Settings
from mesh.rpc import client, policy
from mesh.rpc.identity import GATEWAY
from mesh.rpc.limits import BUCKET_KEY, ENTRY_KEYS
from mesh.rpc.policy import LimitKey
from mesh.settings import LIMIT_SERVICE
from testing.network import Network, reason_of, refusal
from testing.redis_server import RedisProcess, redis_process
from testing.tokens import TokenKey, a_payload, encoded

SERVICE = pb.DESCRIPTOR.services_by_name["RateLimitService"]
[COUNT] = policy.of_service(SERVICE)
BUCKET = "common per user"
OTHERS = [name for name in certificates.NAMES if name != GATEWAY]


@pytest.fixture
async def redis() -> AsyncIterator[RedisProcess]:
    async with redis_process() as server:
        yield server


@pytest.fixture
def network(tmp_path: Path) -> Network:
    return Network(tmp_path)


@pytest.fixture
async def port(network: Network, redis: RedisProcess) -> AsyncIterator[int]:
    settings = Settings.model_validate({"home": network.home, "redis_url": redis.url})
    async with open_service(settings) as service, network.serve(LIMIT_SERVICE, service) as port:
        yield port


async def count(channel: grpc.aio.Channel, **headers: str) -> pb.RateLimitResponse:
    request = pb.RateLimitRequest(domain="boxoffice")
    descriptor = request.descriptors.add()
    descriptor.entries.add(key=BUCKET_KEY, value=BUCKET)
    descriptor.entries.add(key=ENTRY_KEYS[LimitKey.USER], value="u")
    stub: grpc.aio.UnaryUnaryMultiCallable[pb.RateLimitRequest, pb.RateLimitResponse]
    stub = channel.unary_unary(
        COUNT, pb.RateLimitRequest.SerializeToString, pb.RateLimitResponse.FromString
    )
    metadata = [(name.replace("_", "-"), value) for name, value in headers.items()]
    return await stub(request, metadata=metadata, timeout=60)


async def counted(redis: RedisProcess) -> int:
    async with from_url(redis.url) as connection:
        return len(await connection.keys("*"))


async def test_the_gateway_may_count(network: Network, port: int, redis: RedisProcess) -> None:
    async with network.plain_channel(GATEWAY, LIMIT_SERVICE, port) as channel:
        answer = await count(channel)
    assert answer.overall_code == pb.RateLimitResponse.OK
    assert await counted(redis) == 1


@pytest.mark.parametrize("process", OTHERS)
async def test_another_process_is_refused(
    network: Network, port: int, redis: RedisProcess, process: str
) -> None:
    async with network.plain_channel(process, LIMIT_SERVICE, port) as channel:
        error = await refusal(count(channel))
        assert error.code() is grpc.StatusCode.PERMISSION_DENIED
        assert reason_of(error) == "CALLER_NOT_ALLOWED"
        # Its payload header is ignored.
        error = await refusal(count(channel, x_jwt_payload=encoded(a_payload(role="ADMIN"))))
        assert reason_of(error) == "CALLER_NOT_ALLOWED"
    assert await counted(redis) == 0


@pytest.mark.parametrize("process", OTHERS)
async def test_a_token_is_refused(
    network: Network, port: int, redis: RedisProcess, process: str
) -> None:
    token = TokenKey.new().sign(a_payload(role="ADMIN"))
    async with network.plain_channel(process, LIMIT_SERVICE, port) as channel:
        error = await refusal(count(channel, authorization=f"Bearer {token}"))
    assert error.code() is grpc.StatusCode.UNAUTHENTICATED
    assert reason_of(error) == "TOKEN_INVALID"
    assert await counted(redis) == 0


async def test_a_users_call_through_the_gateway_is_refused(
    network: Network, port: int, redis: RedisProcess
) -> None:
    async with network.plain_channel(GATEWAY, LIMIT_SERVICE, port) as channel:
        error = await refusal(count(channel, x_jwt_payload=encoded(a_payload(role="ADMIN"))))
    assert reason_of(error) == "CALLER_NOT_ALLOWED"
    assert await counted(redis) == 0


async def test_a_handshake_requires_a_certificate_of_the_mesh(
    network: Network, port: int, redis: RedisProcess, tmp_path_factory: pytest.TempPathFactory
) -> None:
    strangers = Network(tmp_path_factory.mktemp("strangers")).home / "certificates"
    authority = (network.home / "certificates" / "ca.pem").read_bytes()
    none = grpc.ssl_channel_credentials(root_certificates=authority)
    foreign = grpc.ssl_channel_credentials(
        root_certificates=authority,
        private_key=(strangers / f"{GATEWAY}.key").read_bytes(),
        certificate_chain=(strangers / f"{GATEWAY}.pem").read_bytes(),
    )
    target = f"127.0.0.1:{port}"
    options = [("grpc.ssl_target_name_override", client.server_name(LIMIT_SERVICE))]
    for channel in (
        grpc.aio.secure_channel(target, none, options=options),
        grpc.aio.secure_channel(target, foreign, options=options),
        grpc.aio.insecure_channel(target),
    ):
        async with channel:
            error = await refusal(count(channel))
        assert error.code() is grpc.StatusCode.UNAVAILABLE
    assert await counted(redis) == 0
