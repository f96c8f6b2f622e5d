"""Starts auth_svc."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta

from jwt import PyJWKSet

from auth_svc import tokens
from auth_svc.accounts import Accounts
from auth_svc.passwords import PasswordHasher
from auth_svc.servicer import AccountServicer, AuthServicer, UserServicer
from auth_svc.settings import Settings
from boxoffice.auth.v1 import (
    auth_service_pb2,
    auth_service_pb2_grpc,
    user_service_pb2,
    user_service_pb2_grpc,
)
from mesh.clock import Clock, system_clock
from mesh.database import Database
from mesh.server import Service, Servicer, run


def main() -> None:
    run("auth_svc", Settings, open_service)


@asynccontextmanager
async def open_service(
    settings: Settings, *, clock: Clock = system_clock
) -> AsyncIterator[Service]:
    """auth_svc with its resources, as long as the block lasts."""
    key = tokens.load_or_create_key(settings.home / "keys")
    published = (key.public,)
    key_set = tokens.key_set(published)
    secret = settings.admin_registration_secret

    async def own_keys() -> PyJWKSet:
        return key_set

    hasher = PasswordHasher(cost=settings.password_cost, pepper=settings.pepper)
    try:
        async with Database.open(settings.database_url) as database:
            accounts = Accounts(
                database=database,
                hasher=hasher,
                key=key,
                refresh_key=settings.refresh_key,
                admin_secret=None if secret is None else secret.get_secret_value(),
                access_lifetime=timedelta(seconds=settings.access_token_ttl_seconds),
                refresh_lifetime=timedelta(days=settings.refresh_token_ttl_days),
            )
            yield Service(
                servicers=[
                    Servicer(
                        AuthServicer(accounts, published, clock),
                        auth_service_pb2_grpc.add_AuthServiceServicer_to_server,
                        auth_service_pb2.DESCRIPTOR.services_by_name["AuthService"],
                    ),
                    Servicer(
                        AccountServicer(accounts, database, clock),
                        auth_service_pb2_grpc.add_AccountServiceServicer_to_server,
                        auth_service_pb2.DESCRIPTOR.services_by_name["AccountService"],
                    ),
                    Servicer(
                        UserServicer(database, clock),
                        user_service_pb2_grpc.add_UserServiceServicer_to_server,
                        user_service_pb2.DESCRIPTOR.services_by_name["UserService"],
                    ),
                ],
                jwks=own_keys,
                ping_database=database.ping,
            )
    finally:
        hasher.close()


if __name__ == "__main__":
    main()
