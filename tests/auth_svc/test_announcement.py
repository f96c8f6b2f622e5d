"""A migration publishes accounts that are older than the event stream, once."""

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
from mesh.db.migrations import alembic_config
from mesh.db.outbox import OutboxReader
from mesh.ids import new_id
from testing.databases import open_patiently

# The revision before the one that publishes them.
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


async def first_events(url: str, count: int) -> list[stream_pb2.AuthEvent]:
    """The first `count` events of the stream, as a consumer reads them."""
    events: list[stream_pb2.AuthEvent] = []
    async with asyncio.timeout(60), open_patiently(url) as database:
        async for batch in OutboxReader(database, outbox).stream(""):
            events += [stream_pb2.AuthEvent.FromString(event.payload) for event in batch]
            if len(events) >= count:
                return events
    raise AssertionError("the stream ended")


async def test_accounts_without_an_event_are_published(url: str) -> None:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        older = [add(connection, f"Mira.{number}@example.com") for number in range(3)]
        add(connection, "erased@example.com", erased=True)
        known = add(connection, "noor@example.com")
        event = stream_pb2.AuthEvent(
            user_id=str(known), user_changed=stream_pb2.UserChanged(user_id=str(known))
        )
        connection.execute(
            outbox.insert().values(
                aggregate_id=known,
                event_type="user_changed",
                payload=event.SerializeToString(),
                create_time=JOINED,
            )
        )
    upgrade(url)
    events = await first_events(url, 4)
    assert [event.user_id for event in events] == [str(known), *map(str, older)]
    first = events[1].user_changed
    assert (first.user_id, first.email, first.full_name) == (
        str(older[0]),
        "Mira.0@example.com",
        "Mira Rao",
    )
    assert events[1].event_time.ToDatetime(UTC) > JOINED
    # A downgrade and another upgrade, as after a rollback, publish no account twice.
    alembic.command.downgrade(alembic_config("auth_svc", url), BEFORE)
    upgrade(url)
    with engine.begin() as connection:
        assert connection.scalar(sa.select(sa.func.count()).select_from(outbox)) == 4
    engine.dispose()


async def test_more_accounts_than_one_batch_are_published(url: str) -> None:
    engine = sa.create_engine(url, poolclass=sa.NullPool)
    with engine.begin() as connection:
        ids = {str(add(connection, f"{number}@example.com")) for number in range(1001)}
    upgrade(url)
    assert {event.user_id for event in await first_events(url, 1001)} == ids
    engine.dispose()
