"""Password reset by mail: tokens for one use within half an hour; requests reveal no accounts."""

import asyncio
import re
from datetime import datetime, timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from auth_svc.accounts import User
from auth_svc.passwords import PasswordHasher
from auth_svc.tables import mails, password_reset_requests, password_resets, sessions, users
from auth_svc.throttle import FREE_ATTEMPTS
from mesh.db.database import Database
from mesh.errors import Reason
from tests.auth_svc.conftest import (
    GOOD_PASSWORD,
    NOW,
    RESET_URL,
    Accounts,
    a_sign_up,
    refusal_of,
    rows,
    signed_in,
)

EMAIL = "mira@example.com"
NEW_PASSWORD = "Quiet-Harbour-58"
MINUTE = timedelta(minutes=1)


async def queued(database: Database) -> list[Any]:
    return [row for row in await rows(database, mails) if row.key.startswith("password-reset:")]


async def a_token(accounts: Accounts, database: Database, *, now: datetime = NOW) -> str:
    await accounts.ask_for_reset(EMAIL, now=now)
    await accounts.answer_resets(now=now)
    newest = max(await queued(database), key=lambda row: row.create_time)
    link = re.search(rf"{re.escape(RESET_URL)}#token=(\S+)", newest.text)
    assert link is not None
    assert link[0] in newest.html
    return link[1]


@pytest.fixture
async def mira(accounts: Accounts) -> User:
    return await accounts.register(**a_sign_up())


async def test_a_forgotten_password_is_replaced(
    accounts: Accounts, database: Database, mira: User
) -> None:
    session = await signed_in(accounts)
    token = await a_token(accounts, database)
    await accounts.reset_password(token=token, new_password=NEW_PASSWORD, now=NOW + MINUTE)
    await accounts.login(email=EMAIL, password=NEW_PASSWORD, now=NOW + MINUTE)
    old = accounts.login(email=EMAIL, password=GOOD_PASSWORD, now=NOW + MINUTE)
    assert (await refusal_of(old)).reason is Reason.INVALID_CREDENTIALS
    ended = accounts.refresh(refresh_token=session.refresh_token, now=NOW + MINUTE)
    assert (await refusal_of(ended)).reason is Reason.TOKEN_INVALID
    assert (await accounts.get(mira.user_id)).access_version == 1
    notices = [
        row for row in await rows(database, mails) if row.key.startswith("password-changed:")
    ]
    assert [row.recipient for row in notices] == [EMAIL]


async def test_the_mail_names_the_user_and_the_expiry(
    accounts: Accounts, database: Database, mira: User
) -> None:
    await a_token(accounts, database)
    [mail] = await queued(database)
    assert (mail.recipient, mail.subject) == (EMAIL, "Choose a new password")
    assert mail.expire_time == NOW + timedelta(minutes=30)
    assert "Hello Mira Rao," in mail.text
    assert "until 01 March 2026, 12:30 UTC" in mail.text


async def test_a_name_is_escaped_in_html(accounts: Accounts, database: Database) -> None:
    await accounts.register(**a_sign_up(full_name="<b>Mira</b>"))
    await a_token(accounts, database)
    [mail] = await queued(database)
    assert "<b>Mira" not in mail.html


async def test_the_token_is_stored_as_a_hash(
    accounts: Accounts, database: Database, mira: User
) -> None:
    token = await a_token(accounts, database)
    [row] = await rows(database, password_resets)
    assert len(row.token_hash) == 32
    assert token not in repr(row)


async def test_requests_for_unknown_addresses_are_stored_and_get_no_mail(
    accounts: Accounts, database: Database, mira: User
) -> None:
    await accounts.ask_for_reset("nobody@example.com", now=NOW)
    await accounts.ask_for_reset(EMAIL, now=NOW)
    assert {row.email_key for row in await rows(database, password_reset_requests)} == {
        EMAIL,
        "nobody@example.com",
    }
    assert await accounts.answer_resets(now=NOW) == 2
    assert [row.recipient for row in await queued(database)] == [EMAIL]
    assert await rows(database, password_reset_requests) == []


async def test_a_deactivated_account_gets_no_mail(
    accounts: Accounts, database: Database, mira: User
) -> None:
    token = await a_token(accounts, database)
    async with database.transaction() as connection:
        await connection.execute(sa.update(users).values(is_active=False))
    refused = accounts.reset_password(token=token, new_password=NEW_PASSWORD, now=NOW)
    assert (await refusal_of(refused)).reason is Reason.ACCOUNT_DEACTIVATED
    await accounts.ask_for_reset(EMAIL, now=NOW + 10 * MINUTE)
    await accounts.answer_resets(now=NOW + 10 * MINUTE)
    assert len(await queued(database)) == 1


async def test_an_account_gets_one_mail_per_minute_and_five_per_hour(
    accounts: Accounts, database: Database, mira: User
) -> None:
    for half_minutes in range(30):
        now = NOW + half_minutes * MINUTE / 2
        # Two requests before the background loop runs get one mail.
        await accounts.ask_for_reset(EMAIL, now=now)
        await accounts.ask_for_reset(EMAIL, now=now)
        await accounts.answer_resets(now=now)
    sent = sorted(row.create_time for row in await queued(database))
    assert sent == [NOW + n * MINUTE for n in range(5)]


@pytest.mark.parametrize("token", ["x", "A" * 43, "🎟" * 9, "\x00"])
async def test_an_invalid_token_is_refused(accounts: Accounts, token: str) -> None:
    refused = accounts.reset_password(token=token, new_password=NEW_PASSWORD, now=NOW)
    assert (await refusal_of(refused)).reason is Reason.TOKEN_INVALID


async def test_a_used_token_invalidates_itself_and_all_others(
    accounts: Accounts, database: Database, mira: User
) -> None:
    first = await a_token(accounts, database)
    second = await a_token(accounts, database, now=NOW + MINUTE)
    await accounts.reset_password(token=second, new_password=NEW_PASSWORD, now=NOW + MINUTE)
    for token in (first, second):
        repeated = accounts.reset_password(
            token=token, new_password=GOOD_PASSWORD, now=NOW + MINUTE
        )
        assert (await refusal_of(repeated)).reason is Reason.TOKEN_INVALID


async def test_a_password_change_invalidates_the_tokens(
    accounts: Accounts, database: Database, mira: User
) -> None:
    token = await a_token(accounts, database)
    await accounts.change_password(
        user_id=mira.user_id,
        session_id=mira.user_id,
        current_password=GOOD_PASSWORD,
        new_password=NEW_PASSWORD,
        now=NOW,
    )
    used = accounts.reset_password(token=token, new_password=GOOD_PASSWORD, now=NOW)
    assert (await refusal_of(used)).reason is Reason.TOKEN_INVALID


async def test_a_token_expires(accounts: Accounts, database: Database, mira: User) -> None:
    token = await a_token(accounts, database)
    end = NOW + timedelta(minutes=30)
    late = accounts.reset_password(token=token, new_password=NEW_PASSWORD, now=end)
    assert (await refusal_of(late)).reason is Reason.TOKEN_EXPIRED
    just_before = end - timedelta(microseconds=1)
    await accounts.reset_password(token=token, new_password=NEW_PASSWORD, now=just_before)


async def test_a_weak_password_leaves_the_token_usable(
    accounts: Accounts, database: Database, mira: User
) -> None:
    token = await a_token(accounts, database)
    weak = accounts.reset_password(token=token, new_password="miraRAO", now=NOW)
    error = await refusal_of(weak)
    assert error.reason is Reason.PASSWORD_TOO_WEAK
    assert {violation.field for violation in error.violations} == {"new_password"}
    # Too short, no digit, no special character, equal to the name.
    assert len(error.violations) == 4
    await accounts.reset_password(token=token, new_password=NEW_PASSWORD, now=NOW)


async def test_a_reset_clears_the_login_throttle(
    accounts: Accounts, database: Database, mira: User
) -> None:
    for _ in range(FREE_ATTEMPTS + 1):
        await refusal_of(accounts.login(email=EMAIL, password="wrong", now=NOW))
    token = await a_token(accounts, database)
    await accounts.reset_password(token=token, new_password=NEW_PASSWORD, now=NOW)
    await accounts.login(email=EMAIL, password=NEW_PASSWORD, now=NOW)


async def test_of_concurrent_uses_of_a_token_one_succeeds(
    accounts: Accounts, database: Database, mira: User, hasher: PasswordHasher
) -> None:
    token = await a_token(accounts, database)
    passwords = [f"Quiet-Harbour-{n}" for n in range(50, 54)]
    outcomes = await asyncio.gather(
        *(
            accounts.reset_password(token=token, new_password=password, now=NOW)
            for password in passwords
        ),
        return_exceptions=True,
    )
    assert outcomes.count(None) == 1
    [winner] = [
        password for password, outcome in zip(passwords, outcomes, strict=True) if outcome is None
    ]
    await accounts.login(email=EMAIL, password=winner, now=NOW)
    assert len(await rows(database, sessions)) == 1
