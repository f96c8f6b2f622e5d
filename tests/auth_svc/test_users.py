"""What admins see and change of accounts, on a real database."""

import dataclasses
from datetime import timedelta
from uuid import UUID, uuid4

import pytest

from auth_svc import users
from auth_svc.accounts import Accounts, Role, User
from auth_svc.tables import sessions
from auth_svc.users import UserPage
from mesh.database import Database
from mesh.errors import Reason
from tests.auth_svc.conftest import (
    GOOD_PASSWORD,
    NOW,
    a_sign_up,
    refusal_of,
    rows,
    signed_in,
)

LATER = NOW + timedelta(hours=1)


async def listed(
    database: Database,
    *,
    role: Role | None = None,
    is_active: bool | None = None,
    page_size: int = 20,
    page_token: str = "",
) -> UserPage:
    async with database.snapshot() as connection:
        return await users.list_page(
            connection, role=role, is_active=is_active, page_size=page_size, page_token=page_token
        )


async def update(
    database: Database, user_id: UUID, *, role: Role | None = None, is_active: bool | None = None
) -> User:
    async with database.transaction() as connection:
        return await users.update_user(
            connection, user_id=user_id, role=role, is_active=is_active, now=LATER
        )


async def some_users(accounts: Accounts, count: int) -> list[User]:
    return [
        await accounts.register(**a_sign_up(email=f"user{number}@example.com"))
        for number in range(count)
    ]


async def test_pages_join_up(accounts: Accounts, database: Database) -> None:
    made = await some_users(accounts, 5)
    found: list[User] = []
    token, pages = "", 0
    while token or not pages:
        page = await listed(database, page_size=2, page_token=token)
        assert page.total_size == 5
        found += page.users
        token, pages = page.next_page_token, pages + 1
    assert (found, pages) == (made[::-1], 3)


async def test_filters_go_together(accounts: Accounts, database: Database) -> None:
    one, two, three = await some_users(accounts, 3)
    one = await update(database, one.user_id, role=Role.STAFF)
    two = await update(database, two.user_id, role=Role.STAFF, is_active=False)
    assert (await listed(database, role=Role.STAFF)).users == (two, one)
    assert (await listed(database, is_active=True)).users == (three, one)
    assert await listed(database, role=Role.STAFF, is_active=False) == UserPage((two,), "", 1)
    assert await listed(database, role=Role.ADMIN) == UserPage((), "", 0)


async def test_only_what_is_sent_changes(accounts: Accounts, database: Database) -> None:
    user, other = await some_users(accounts, 2)
    assert await update(database, user.user_id) == user
    staff = await update(database, user.user_id, role=Role.STAFF)
    assert staff == dataclasses.replace(user, role=Role.STAFF, update_time=LATER)
    assert await accounts.get(user.user_id) == staff
    assert await accounts.get(other.user_id) == other


async def test_a_deactivated_user_is_signed_out_until_active_again(
    accounts: Accounts, database: Database
) -> None:
    [stranger] = await some_users(accounts, 1)
    await accounts.login(email=stranger.email, password=GOOD_PASSWORD, now=NOW)
    current = await signed_in(accounts)
    user_id = current.user.user_id
    assert not (await update(database, user_id, is_active=False)).is_active
    ended = {row.user_id: row.revoke_time for row in await rows(database, sessions)}
    assert ended == {stranger.user_id: None, user_id: LATER}
    error = await refusal_of(signed_in(accounts))
    assert error.reason is Reason.ACCOUNT_DEACTIVATED
    await update(database, user_id, is_active=True)
    # Being active again revives no session.
    error = await refusal_of(accounts.refresh(refresh_token=current.refresh_token, now=LATER))
    assert error.reason is Reason.TOKEN_INVALID
    await signed_in(accounts)


async def test_a_new_role_ends_no_session(accounts: Accounts, database: Database) -> None:
    current = await signed_in(accounts)
    await update(database, current.user.user_id, role=Role.STAFF)
    renewed = await accounts.refresh(refresh_token=current.refresh_token, now=NOW)
    assert renewed.user.role is Role.STAFF


@pytest.mark.parametrize("is_active", [None, False])
async def test_nobodys_account(database: Database, is_active: bool | None) -> None:
    error = await refusal_of(update(database, uuid4(), role=Role.STAFF, is_active=is_active))
    assert error.reason is Reason.USER_NOT_FOUND
