"""Starts limit_svc."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import jwt

from boxoffice.limits.v1 import rate_limit_service_pb2
from boxoffice.limits.v1.rate_limit_service_pb2_grpc import add_RateLimitServiceServicer_to_server
from limit_svc.counting import Counter
from limit_svc.rules import Rules
from limit_svc.servicers.rate_limits import RateLimitServicer
from limit_svc.settings import Settings
from mesh.errors import DomainError, Reason
from mesh.redis.link import RedisLink
from mesh.rpc.limits import Scales
from mesh.rpc.server import Service, Servicer, run
from mesh.settings import LIMIT_SERVICE


def main() -> None:
    run(LIMIT_SERVICE, Settings, open_service)


@asynccontextmanager
async def open_service(settings: Settings) -> AsyncIterator[Service]:
    """Opens limit_svc's resources for the block."""
    rules = Rules(settings.contract, Scales.configured(settings))
    async with RedisLink.open(settings.required("redis_url")) as link:
        yield Service(
            servicers=[
                Servicer(
                    RateLimitServicer(Counter(link), rules),
                    add_RateLimitServiceServicer_to_server,
                    rate_limit_service_pb2.DESCRIPTOR.services_by_name["RateLimitService"],
                )
            ],
            jwks=_no_keys,
            ping_database=_no_database,
            loops=[rules.follow],
        )


async def _no_keys() -> jwt.PyJWKSet:
    """Gateways authenticate by certificate; calls with a token are refused."""
    raise DomainError(Reason.TOKEN_INVALID, "limit_svc does not accept tokens")


async def _no_database() -> None:
    """limit_svc has no database. It is ready without Redis too, so that gateways do not wait."""


if __name__ == "__main__":
    main()
