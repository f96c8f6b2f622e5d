"""Refresh tokens: one use each, the same successor during GRACE; later reuse ends the session."""

from datetime import timedelta

import jwt
import pytest
import sqlalchemy as sa

from auth_svc import sessions
from auth_svc.passwords import PasswordHasher
from auth_svc.tables import refresh_tokens, users
from auth_svc.tables import sessions as sessions_table
from auth_svc.tokens import SigningKey
from mesh.db.database import Database
from mesh.errors import Reason
from tests.auth_svc.conftest import (
    ACCESS_LIFETIME,
    GOOD_PASSWORD,
    NOW,
    Accounts,
    a_sign_up,
    refusal_of,
    rows,
    signed_in,
)

SECOND = timedelta(seconds=1)
DAY = timedelta(days=1)


async def test_a_refresh_continues_the_session(accounts: Accounts, database: Database) -> None:
    first = await signed_in(accounts)
    later = NOW + DAY
    second = await accounts.refresh(refresh_token=first.refresh_token, now=later)
    assert second.user == first.user
    assert second.refresh_token != first.refresh_token
    assert len(second.refresh_token) == 43
    assert second.refresh_lifetime == timedelta(days=7)
    claims = [
        jwt.decode(tokens.access_token, options={"verify_signature": False})
        for tokens in (first, second)
    ]
    assert claims[0]["sid"] == claims[1]["sid"]
    assert claims[1]["iat"] == later.timestamp()
    [session] = await rows(database, sessions_table)
    assert session.expire_time == NOW + timedelta(days=30)
    stored = {token.token_hash: token for token in await rows(database, refresh_tokens)}
    assert stored[sessions.hash_of(first.refresh_token)].use_time == later
    successor = stored[sessions.hash_of(second.refresh_token)]
    assert (successor.use_time, successor.expire_time) == (None, later + 7 * DAY)
    third = await accounts.refresh(refresh_token=second.refresh_token, now=later + DAY)
    assert third.refresh_token not in {first.refresh_token, second.refresh_token}


async def test_a_user_may_refresh_thirty_times_in_any_minute(accounts: Accounts) -> None:
    """The limit applies to all sessions of a user together, and to no other user."""
    await accounts.register(**a_sign_up(email="other@example.com"))
    other = await accounts.login(email="other@example.com", password=GOOD_PASSWORD, now=NOW)
    token = (await signed_in(accounts)).refresh_token
    second = (await signed_in(accounts)).refresh_token
    for n in range(30):
        token = (await accounts.refresh(refresh_token=token, now=NOW + n * SECOND)).refresh_token
    at = NOW + 59 * SECOND
    for refused in (token, second):
        error = await refusal_of(accounts.refresh(refresh_token=refused, now=at))
        assert error.reason is Reason.RATE_LIMITED
        assert error.retry_after_seconds == 1
    await accounts.refresh(refresh_token=other.refresh_token, now=at)
    # The oldest of the 30 is a minute ago: exactly one more refresh is allowed.
    await accounts.refresh(refresh_token=token, now=at + SECOND)
    error = await refusal_of(accounts.refresh(refresh_token=second, now=at + SECOND))
    assert error.reason is Reason.RATE_LIMITED


async def test_tokens_are_not_stored_in_plain_text(accounts: Accounts, database: Database) -> None:
    first = await signed_in(accounts)
    second = await accounts.refresh(refresh_token=first.refresh_token, now=NOW)
    stored = str(await rows(database, refresh_tokens)) + str(await rows(database, sessions_table))
    for token in (first.refresh_token, second.refresh_token):
        assert token not in stored


@pytest.mark.parametrize("late", [timedelta(0), SECOND, sessions.GRACE])
async def test_a_repeated_refresh_returns_the_same_successor(
    accounts: Accounts, database: Database, late: timedelta
) -> None:
    first = await signed_in(accounts)
    second = await accounts.refresh(refresh_token=first.refresh_token, now=NOW + DAY)
    again = await accounts.refresh(refresh_token=first.refresh_token, now=NOW + DAY + late)
    assert again.refresh_token == second.refresh_token
    assert again.refresh_lifetime == second.refresh_lifetime - late
    assert len(await rows(database, refresh_tokens)) == 2
    await accounts.refresh(refresh_token=again.refresh_token, now=NOW + 2 * DAY)


async def test_another_process_returns_the_same_successor(
    accounts: Accounts, database: Database, hasher: PasswordHasher, key: SigningKey
) -> None:
    """As after a crash between commit and reply: the answer is not in memory any more."""
    first = await signed_in(accounts)
    lost = await accounts.refresh(refresh_token=first.refresh_token, now=NOW)
    restarted = Accounts(database, hasher, key)
    again = await restarted.refresh(refresh_token=first.refresh_token, now=NOW + 3 * SECOND)
    assert again.refresh_token == lost.refresh_token


async def test_the_successor_depends_on_the_key(accounts: Accounts, database: Database) -> None:
    first = await signed_in(accounts)
    async with database.transaction() as connection:
        with_another = await sessions.rotate(
            connection,
            refresh_token=first.refresh_token,
            key=b"another",
            idle_lifetime=DAY,
            access_lifetime=ACCESS_LIFETIME,
            limit_per_minute=1,
            now=NOW,
        )
        await connection.rollback()
    second = await accounts.refresh(refresh_token=first.refresh_token, now=NOW)
    assert with_another is not None
    assert with_another.refresh_token != second.refresh_token


async def test_reuse_ends_the_session_for_all_its_clients(
    accounts: Accounts, database: Database
) -> None:
    first = await signed_in(accounts)
    other = await signed_in(accounts)
    second = await accounts.refresh(refresh_token=first.refresh_token, now=NOW)
    late = NOW + sessions.GRACE + timedelta(microseconds=1)
    error = await refusal_of(accounts.refresh(refresh_token=first.refresh_token, now=late))
    assert error.reason is Reason.TOKEN_REUSED
    error = await refusal_of(accounts.refresh(refresh_token=second.refresh_token, now=late))
    assert error.reason is Reason.TOKEN_INVALID
    # A further attempt neither revives the session nor changes its end.
    error = await refusal_of(accounts.refresh(refresh_token=first.refresh_token, now=late + DAY))
    assert error.reason is Reason.TOKEN_REUSED
    ends = {session.revoke_time for session in await rows(database, sessions_table)}
    assert ends == {late, None}
    await accounts.refresh(refresh_token=other.refresh_token, now=late)


async def test_reuse_is_detected_after_the_token_expired(accounts: Accounts) -> None:
    first = await signed_in(accounts)
    second = await accounts.refresh(refresh_token=first.refresh_token, now=NOW + 6 * DAY)
    third = await accounts.refresh(refresh_token=second.refresh_token, now=NOW + 12 * DAY)
    error = await refusal_of(
        accounts.refresh(refresh_token=first.refresh_token, now=NOW + 13 * DAY)
    )
    assert error.reason is Reason.TOKEN_REUSED
    error = await refusal_of(
        accounts.refresh(refresh_token=third.refresh_token, now=NOW + 13 * DAY)
    )
    assert error.reason is Reason.TOKEN_INVALID


async def test_an_unused_token_expires_after_seven_days(accounts: Accounts) -> None:
    first = await signed_in(accounts)
    error = await refusal_of(accounts.refresh(refresh_token=first.refresh_token, now=NOW + 7 * DAY))
    assert error.reason is Reason.TOKEN_EXPIRED
    last_moment = NOW + 7 * DAY - SECOND
    second = await accounts.refresh(refresh_token=first.refresh_token, now=last_moment)
    # A refresh after a lost reply works although the first token has expired meanwhile.
    again = await accounts.refresh(refresh_token=first.refresh_token, now=last_moment + 2 * SECOND)
    assert again.refresh_token == second.refresh_token


async def test_a_session_ends_after_thirty_days_despite_refreshes(
    accounts: Accounts,
) -> None:
    current = await signed_in(accounts)
    for day in range(6, 30, 6):
        current = await accounts.refresh(
            refresh_token=current.refresh_token, now=NOW + timedelta(days=day)
        )
    assert current.refresh_lifetime == timedelta(days=6)
    last_moment = NOW + 30 * DAY - SECOND
    last = await accounts.refresh(refresh_token=current.refresh_token, now=last_moment)
    assert last.refresh_lifetime == SECOND
    for token in (current.refresh_token, last.refresh_token):
        error = await refusal_of(accounts.refresh(refresh_token=token, now=NOW + 30 * DAY))
        assert error.reason is Reason.TOKEN_EXPIRED


@pytest.mark.parametrize("token", ["x", "A" * 43, "ü" * 43, "\x00", "a.b.c", " "])
async def test_an_invalid_refresh_token_is_refused(accounts: Accounts, token: str) -> None:
    await signed_in(accounts)
    error = await refusal_of(accounts.refresh(refresh_token=token, now=NOW))
    assert (error.reason, error.metadata) == (Reason.TOKEN_INVALID, {})


async def test_an_access_token_is_refused_as_refresh_token(accounts: Accounts) -> None:
    current = await signed_in(accounts)
    error = await refusal_of(accounts.refresh(refresh_token=current.access_token, now=NOW))
    assert error.reason is Reason.TOKEN_WRONG_TYPE


async def test_a_deactivated_account_cannot_refresh(accounts: Accounts, database: Database) -> None:
    current = await signed_in(accounts)
    async with database.transaction() as connection:
        await connection.execute(sa.update(users).values(is_active=False))
    error = await refusal_of(accounts.refresh(refresh_token=current.refresh_token, now=NOW))
    assert error.reason is Reason.ACCOUNT_DEACTIVATED
    [token] = await rows(database, refresh_tokens)
    assert token.use_time is None


async def test_the_next_access_token_has_the_current_role(
    accounts: Accounts, database: Database
) -> None:
    current = await signed_in(accounts)
    async with database.transaction() as connection:
        await connection.execute(sa.update(users).values(role="STAFF"))
    renewed = await accounts.refresh(refresh_token=current.refresh_token, now=NOW)
    claims = jwt.decode(renewed.access_token, options={"verify_signature": False})
    assert claims["role"] == "STAFF"


async def test_a_second_unused_token_is_refused_by_the_database(
    accounts: Accounts, database: Database
) -> None:
    await accounts.register(**a_sign_up())
    await signed_in(accounts)
    [token] = await rows(database, refresh_tokens)
    with pytest.raises(sa.exc.IntegrityError, match="refresh_tokens_unused_idx"):
        async with database.transaction() as connection:
            await connection.execute(
                sa.insert(refresh_tokens).values(
                    token_hash=b"2" * 32,
                    session_id=token.session_id,
                    create_time=NOW,
                    expire_time=NOW + DAY,
                )
            )
