"""Erasure of an account: all personal data is deleted, the account's id stays."""

from collections.abc import Sequence
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa

from auth_svc import email_confirmation, erasure, mail_requests, profile
from auth_svc.accounts import Role, User
from auth_svc.passwords import PasswordHasher
from auth_svc.sign_in_guard import Source
from auth_svc.tables import email_verification_requests, metadata, outbox, users
from boxoffice.auth.v1 import auth_event_service_pb2 as stream_pb2
from mesh.db.database import Database
from mesh.errors import Reason
from tests.auth_svc.conftest import (
    ACCESS_LIFETIME,
    ADMIN_SECRET,
    GOOD_PASSWORD,
    NOW,
    Accounts,
    a_sign_up,
    refusal_of,
    rows,
    signed_in,
)

LATER = NOW + timedelta(hours=1)
CANARIES = ("canary", "Canary", "+919876500000")


async def erase(database: Database, hasher: PasswordHasher, user_id: UUID) -> User:
    async with database.transaction() as connection:
        return await erasure.erase(
            connection,
            user_id=user_id,
            unusable_hash=hasher.unusable_hash,
            access_lifetime=ACCESS_LIFETIME,
            now=LATER,
        )


async def a_canary(accounts: Accounts, database: Database) -> User:
    """An account with personal data in every table that can contain some."""
    user = await accounts.register(
        **a_sign_up(email="Canary@Example.com", full_name="Canary Bird", phone=CANARIES[2])
    )
    async with database.transaction() as connection:
        await profile.update_profile(
            connection,
            user_id=user.user_id,
            full_name="Canary B.",
            phone=None,
            address="1 Canary Row",
            now=NOW,
        )
        await mail_requests.record(
            connection, email_verification_requests, email=user.email, now=NOW
        )
        await email_confirmation.start_change(
            connection,
            accounts.mailing,
            user_id=user.user_id,
            new_email="canary.bird@example.com",
            now=NOW,
        )
    await accounts.ask_for_reset(user.email, now=NOW)
    await accounts.answer_resets(now=NOW)
    await accounts.ask_for_reset(user.email, now=NOW)
    await accounts.login(
        email=user.email, password=GOOD_PASSWORD, now=NOW, source=Source("192.0.2.1")
    )
    return user


async def everything(database: Database) -> Sequence[Any]:
    return [
        value
        for table in metadata.sorted_tables
        for row in await rows(database, table)
        for value in row
    ]


def personal(values: Sequence[Any]) -> list[Any]:
    return [
        value
        for value in values
        if any(canary in str(value) or canary.encode() in _bytes(value) for canary in CANARIES)
    ]


def _bytes(value: Any) -> bytes:
    return value if isinstance(value, bytes) else b""


async def test_no_table_contains_personal_data_after_erasure(
    accounts: Accounts, database: Database, hasher: PasswordHasher
) -> None:
    user = await a_canary(accounts, database)
    # Control: the search finds the data in account, outbox, mails and requests.
    assert len(personal(await everything(database))) > 8
    erased = await erase(database, hasher, user.user_id)
    assert personal(await everything(database)) == []
    assert (erased.user_id, erased.create_time) == (user.user_id, user.create_time)
    assert (erased.full_name, erased.is_active) == ("Erased user", False)
    assert erased.erase_time == erased.delete_time == LATER


async def test_erasure_ends_sessions_and_publishes_an_event(
    accounts: Accounts, database: Database, hasher: PasswordHasher
) -> None:
    session = await signed_in(accounts)
    await erase(database, hasher, session.user.user_id)
    ended = accounts.refresh(refresh_token=session.refresh_token, now=LATER)
    assert (await refusal_of(ended)).reason is Reason.TOKEN_INVALID
    events = [
        stream_pb2.AuthEvent.FromString(row.payload)
        for row in sorted(await rows(database, outbox), key=lambda row: row.sequence)
    ]
    assert [event.WhichOneof("event") for event in events] == ["access_revoked", "user_erased"]
    assert {event.user_id for event in events} == {str(session.user.user_id)}


async def test_an_erased_account_has_no_sign_in_and_its_address_is_free(
    accounts: Accounts, database: Database, hasher: PasswordHasher
) -> None:
    user = await accounts.register(**a_sign_up())
    erased = await erase(database, hasher, user.user_id)
    for email in (user.email, erased.email):
        wrong = accounts.login(email=email, password=GOOD_PASSWORD, now=LATER)
        assert (await refusal_of(wrong)).reason is Reason.INVALID_CREDENTIALS
    again = await accounts.register(**a_sign_up())
    assert again.user_id != user.user_id


async def test_repeated_erasure_changes_nothing(
    accounts: Accounts, database: Database, hasher: PasswordHasher
) -> None:
    user = await accounts.register(**a_sign_up())
    once = await erase(database, hasher, user.user_id)
    before = await everything(database)
    assert await erase(database, hasher, user.user_id) == once
    assert await everything(database) == before


async def test_an_unknown_account_is_not_found(database: Database, hasher: PasswordHasher) -> None:
    error = await refusal_of(erase(database, hasher, uuid4()))
    assert error.reason is Reason.USER_NOT_FOUND


async def test_the_last_admin_cannot_be_erased(
    accounts: Accounts, database: Database, hasher: PasswordHasher
) -> None:
    first, second = [
        await accounts.register_admin(
            **a_sign_up(email=f"{name}@example.com"), admin_secret=ADMIN_SECRET
        )
        for name in ("first", "second")
    ]
    await erase(database, hasher, first.user_id)
    error = await refusal_of(erase(database, hasher, second.user_id))
    assert error.reason is Reason.LAST_ADMIN
    assert (await accounts.get(second.user_id)).role is Role.ADMIN


@pytest.mark.parametrize("column", [users.c.email, users.c.password_hash])
async def test_two_accounts_can_be_erased(
    accounts: Accounts, database: Database, hasher: PasswordHasher, column: sa.Column[str]
) -> None:
    """The values of erased accounts violate no unique constraint."""
    for name in ("one", "two"):
        user = await accounts.register(**a_sign_up(email=f"{name}@example.com"))
        await erase(database, hasher, user.user_id)
    async with database.transaction() as connection:
        assert len(list(await connection.scalars(sa.select(column)))) == 2
