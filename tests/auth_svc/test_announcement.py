"""Accounts from before the event stream are announced by a migration, once."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime
from uuid import UUID

import alembic.command
import psycopg
import pytest
import sqlalchemy as sa

from auth_svc.tables import outbox, users
from boxoffice.auth.v1 import auth_event_service_pb2 as stream_pb2
from mesh.db.database import alembic_config
from mesh.db.outbox import OutboxReader
from mesh.ids import new_id
from testing.databases import open_patiently

# The revision before the one that announces them.
BEFORE = "0005"
JOINED = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.fixture
def url(postgres_url: Callable[[str], str]) -> str:
    """A database at the earlier revision."""
    name = f"announce_{new_id().hex}"
    admin_url = postgres_url("postgres").replace("+psycopg", "")
    with psycopg.connect(admin_url, autocommit=True) as admin:
        admin.execute(f"CREATE DATABASE {name}".encode())
    alembic.command.upgrade(alembic_config("auth_svc", postgres_url(name)), BEFORE)
    return postgres_url(name)


def add(connection: sa.Connection, email: str, *, erased: bool = False) -> UUID:
    user_id = new_id()
    connection.execute(
        users.insert().values(
            user_id=user_id,
            email=email,
            email_key=email.lower(),
            full_name="Mira Rao",
            phone="",
            address="",
            role="CUSTOMER",
            is_active=not erased,
            password_hash="$2b$12$" + "x" * 53,
            password_change_time=JOINED,
            create_time=JOINED,
            update_time=JOINED,
            erase_time=JOINED if erased else None,
        )
    )
    return user_id


def upgrade(url: str) -> None:
    alembic.command.upgrade(alembic_config("auth_svc", url), "head")


async def heard(url: str, count: int) -> list[stream_pb2.AuthEvent]:
    """The first so many events of the stream, as a service that listens reads them."""
    found: list[stream_pb2.AuthEvent] = []
    async with asyncio.timeout(60), open_patiently(url) as database:
        async for batch in OutboxReader(database, outbox).stream(""):
            found += [stream_pb2.AuthEvent.FromString(event.payload) for event in batch]
            if len(found) >= count:
                return found
    raise AssertionError("the stream ended")


async def test_who_was_never_announced_is(url: str) -> None:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        older = [add(connection, f"Mira.{number}@example.com") for number in range(3)]
        add(connection, "erased@example.com", erased=True)
        known = add(connection, "noor@example.com")
        told = stream_pb2.AuthEvent(
            user_id=str(known), user_changed=stream_pb2.UserChanged(user_id=str(known))
        )
        connection.execute(
            outbox.insert().values(
                aggregate_id=known,
                event_type="user_changed",
                payload=told.SerializeToString(),
                create_time=JOINED,
            )
        )
    upgrade(url)
    events = await heard(url, 4)
    assert [event.user_id for event in events] == [str(known), *map(str, older)]
    first = events[1].user_changed
    assert (first.user_id, first.email, first.full_name) == (
        str(older[0]),
        "Mira.0@example.com",
        "Mira Rao",
    )
    assert events[1].event_time.ToDatetime(UTC) > JOINED
    # Down and up again, as after a release that was taken back: nobody is announced twice.
    alembic.command.downgrade(alembic_config("auth_svc", url), BEFORE)
    upgrade(url)
    with engine.begin() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(outbox)) == 4
    engine.dispose()


async def test_more_accounts_than_one_step_takes(url: str) -> None:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        ids = {str(add(connection, f"{number}@example.com")) for number in range(1001)}
    upgrade(url)
    assert {event.user_id for event in await heard(url, 1001)} == ids
    engine.dispose()
