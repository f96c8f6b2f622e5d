"""Lists and ends of sessions, on a real database."""

from datetime import datetime, timedelta
from uuid import UUID, uuid4

import pytest

from auth_svc import sessions
from auth_svc.sessions import Session, SessionPage
from auth_svc.sign_in import SignedIn
from auth_svc.tables import sessions as sessions_table
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


async def listed(
    database: Database,
    user_id: UUID,
    *,
    page_size: int = 20,
    page_token: str = "",
    now: datetime = NOW,
) -> SessionPage:
    async with database.snapshot() as connection:
        return await sessions.list_page(
            connection, user_id=user_id, page_size=page_size, page_token=page_token, now=now
        )


async def end_all(
    database: Database, user_id: UUID, *, keep: UUID | None = None, now: datetime = NOW
) -> int:
    async with database.transaction() as connection:
        return await sessions.end_all(
            connection, user_id=user_id, keep=keep, access_lifetime=ACCESS_LIFETIME, now=now
        )


async def end_one(
    database: Database, user_id: UUID, session_id: UUID, *, now: datetime = NOW
) -> int:
    async with database.transaction() as connection:
        return await sessions.end_one(
            connection,
            user_id=user_id,
            session_id=session_id,
            access_lifetime=ACCESS_LIFETIME,
            now=now,
        )


async def revoke(
    database: Database, user_id: UUID, session_id: UUID, *, now: datetime = NOW
) -> None:
    async with database.transaction() as connection:
        await sessions.revoke(
            connection,
            user_id=user_id,
            session_id=session_id,
            access_lifetime=ACCESS_LIFETIME,
            now=now,
        )


async def another_user(accounts: Accounts) -> SignedIn:
    await accounts.register(**a_sign_up(email="noor@example.com"))
    return await accounts.login(email="noor@example.com", password=GOOD_PASSWORD, now=NOW)


async def test_a_list_contains_the_sessions_that_can_be_refreshed(
    accounts: Accounts, database: Database
) -> None:
    await another_user(accounts)
    first = await signed_in(accounts)
    second = await signed_in(accounts, now=NOW + DAY)
    await accounts.refresh(refresh_token=first.refresh_token, now=NOW + 2 * DAY)
    user_id = second.user.user_id
    page = await listed(database, user_id, now=NOW + 2 * DAY)
    [newer, older] = page.sessions
    assert newer == Session(newer.session_id, NOW + DAY, NOW + DAY, NOW + 8 * DAY)
    assert older == Session(older.session_id, NOW, NOW + 2 * DAY, NOW + 9 * DAY)
    assert (page.next_page_token, page.total_size) == ("", 2)
    # The newer session expires unused, then the older one.
    assert (await listed(database, user_id, now=NOW + 8 * DAY)).sessions == (older,)
    assert await listed(database, user_id, now=NOW + 9 * DAY) == SessionPage((), "", 0)


async def test_the_pages_together_are_the_whole_list(
    accounts: Accounts, database: Database
) -> None:
    for _ in range(5):
        user_id = (await signed_in(accounts)).user.user_id
    everything = await listed(database, user_id)
    collected: list[Session] = []
    token, pages = "", 0
    while token or not pages:
        page = await listed(database, user_id, page_size=2, page_token=token)
        assert page.total_size == 5
        collected += page.sessions
        token, pages = page.next_page_token, pages + 1
    assert (tuple(collected), pages) == (everything.sessions, 3)


async def test_ending_all_sessions_counts_those_that_could_be_refreshed(
    accounts: Accounts, database: Database
) -> None:
    first = await signed_in(accounts)
    second = await signed_in(accounts)
    other = await another_user(accounts)
    await accounts.refresh(refresh_token=first.refresh_token, now=NOW + 6 * DAY)
    user_id = first.user.user_id
    # The second session has expired by then; it is ended, too, but not counted.
    assert await end_all(database, user_id, now=NOW + 7 * DAY) == 1
    assert await end_all(database, user_id, now=NOW + 7 * DAY + SECOND) == 0
    assert await listed(database, user_id) == SessionPage((), "", 0)
    ends = [
        session.revoke_time
        for session in await rows(database, sessions_table)
        if session.user_id == user_id
    ]
    assert ends == [NOW + 7 * DAY] * 2
    error = await refusal_of(accounts.refresh(refresh_token=second.refresh_token, now=NOW))
    assert error.reason is Reason.TOKEN_INVALID
    await accounts.refresh(refresh_token=other.refresh_token, now=NOW + 6 * DAY)


async def test_a_successor_is_invalid_after_the_end_of_its_session_also_within_the_grace(
    accounts: Accounts, database: Database
) -> None:
    first = await signed_in(accounts)
    second = await accounts.refresh(refresh_token=first.refresh_token, now=NOW)
    assert await end_all(database, first.user.user_id, now=NOW + SECOND) == 1
    for token in (first.refresh_token, second.refresh_token):
        error = await refusal_of(accounts.refresh(refresh_token=token, now=NOW + SECOND))
        assert error.reason is Reason.TOKEN_INVALID


async def test_one_session_may_be_kept(accounts: Accounts, database: Database) -> None:
    for _ in range(3):
        user_id = (await signed_in(accounts)).user.user_id
    kept = (await listed(database, user_id)).sessions[1]
    assert await end_all(database, user_id, keep=kept.session_id) == 2
    assert (await listed(database, user_id)).sessions == (kept,)


async def test_ending_one_session_is_limited_to_its_user(
    accounts: Accounts, database: Database
) -> None:
    await signed_in(accounts)
    user_id = (await signed_in(accounts)).user.user_id
    [mine, other] = (await listed(database, user_id)).sessions
    assert await end_one(database, user_id, mine.session_id) == 1
    assert await end_one(database, user_id, mine.session_id) == 0
    assert (await listed(database, user_id)).sessions == (other,)
    assert await end_one(database, uuid4(), other.session_id) == 0
    assert (await listed(database, user_id)).sessions == (other,)


async def test_revoking_twice_keeps_the_first_time(accounts: Accounts, database: Database) -> None:
    user_id = (await signed_in(accounts)).user.user_id
    [session] = (await listed(database, user_id)).sessions
    await revoke(database, user_id, session.session_id)
    await revoke(database, user_id, session.session_id, now=NOW + DAY)
    [row] = await rows(database, sessions_table)
    assert row.revoke_time == NOW


@pytest.mark.parametrize("owner", ["another user", "nobody"])
async def test_only_own_sessions_can_be_revoked(
    accounts: Accounts, database: Database, owner: str
) -> None:
    user_id = (await signed_in(accounts)).user.user_id
    other = (await another_user(accounts)).user.user_id
    [foreign] = (await listed(database, other)).sessions
    session_id = foreign.session_id if owner == "another user" else uuid4()
    error = await refusal_of(revoke(database, user_id, session_id))
    assert (error.reason, error.message, error.metadata) == (
        Reason.SESSION_NOT_FOUND,
        "no such session",
        {},
    )
    assert (await listed(database, other)).sessions == (foreign,)
