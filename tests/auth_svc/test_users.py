"""Accounts as admins list and change them, on a real database."""

import asyncio
import dataclasses
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest
import sqlalchemy as sa

from auth_svc import users
from auth_svc.accounts import Role, User
from auth_svc.tables import outbox, password_resets, sessions
from auth_svc.tables import users as users_table
from auth_svc.users import UserPage
from boxoffice.auth.v1 import auth_event_service_pb2 as stream_pb2
from mesh.db.database import Database
from mesh.errors import DomainError, Reason
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


async def listed(
    database: Database,
    *,
    role: Role | None = None,
    is_active: bool | None = None,
    show_deleted: bool = False,
    page_size: int = 20,
    page_token: str = "",
) -> UserPage:
    async with database.snapshot() as connection:
        return await users.list_page(
            connection,
            role=role,
            is_active=is_active,
            show_deleted=show_deleted,
            page_size=page_size,
            page_token=page_token,
        )


async def update(
    database: Database, user_id: UUID, *, role: Role | None = None, is_active: bool | None = None
) -> User:
    async with database.transaction() as connection:
        return await users.update_user(
            connection,
            user_id=user_id,
            role=role,
            is_active=is_active,
            access_lifetime=ACCESS_LIFETIME,
            now=LATER,
        )


async def some_users(accounts: Accounts, count: int) -> list[User]:
    return [
        await accounts.register(**a_sign_up(email=f"user{number}@example.com"))
        for number in range(count)
    ]


async def test_the_pages_together_are_the_whole_list(
    accounts: Accounts, database: Database
) -> None:
    made = await some_users(accounts, 5)
    collected: list[User] = []
    token, pages = "", 0
    while token or not pages:
        page = await listed(database, page_size=2, page_token=token)
        assert page.total_size == 5
        collected += page.users
        token, pages = page.next_page_token, pages + 1
    assert (collected, pages) == (made[::-1], 3)


async def test_filters_combine(accounts: Accounts, database: Database) -> None:
    first, second, third = await some_users(accounts, 3)
    first = await update(database, first.user_id, role=Role.STAFF)
    second = await update(database, second.user_id, role=Role.STAFF, is_active=False)
    assert (await listed(database, role=Role.STAFF)).users == (second, first)
    assert (await listed(database, is_active=True)).users == (third, first)
    assert await listed(database, role=Role.STAFF, is_active=False) == UserPage((second,), "", 1)
    assert await listed(database, role=Role.ADMIN) == UserPage((), "", 0)


async def test_only_the_sent_fields_change(accounts: Accounts, database: Database) -> None:
    user, other = await some_users(accounts, 2)
    assert await update(database, user.user_id) == user
    staff = await update(database, user.user_id, role=Role.STAFF)
    assert staff == dataclasses.replace(user, role=Role.STAFF, update_time=LATER, access_version=1)
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
    # Reactivation does not revive sessions.
    error = await refusal_of(accounts.refresh(refresh_token=current.refresh_token, now=LATER))
    assert error.reason is Reason.TOKEN_INVALID
    await signed_in(accounts)


async def delete(database: Database, user_id: UUID) -> None:
    async with database.transaction() as connection:
        await users.delete_user(
            connection, user_id=user_id, access_lifetime=ACCESS_LIFETIME, now=LATER
        )


async def test_a_deleted_account_is_hidden_and_kept(accounts: Accounts, database: Database) -> None:
    [other] = await some_users(accounts, 1)
    current = await signed_in(accounts)
    user = current.user
    await accounts.ask_for_reset(user.email, now=NOW)
    await accounts.answer_resets(now=NOW)
    for _ in range(2):
        await delete(database, user.user_id)
    kept = await accounts.get(user.user_id)
    assert kept == dataclasses.replace(
        user, is_active=False, delete_time=LATER, update_time=LATER, access_version=1
    )
    assert (await listed(database)).users == (other,)
    everyone = await listed(database, show_deleted=True)
    assert (everyone.users, everyone.total_size) == ((kept, other), 2)
    assert {row.revoke_time for row in await rows(database, sessions)} == {LATER}
    assert await rows(database, password_resets) == []
    events = [
        stream_pb2.AuthEvent.FromString(row.payload)
        for row in await rows(database, outbox)
        if row.event_type == "user_deleted"
    ]
    assert [event.user_deleted.user_id for event in events] == [str(user.user_id)]
    for change in ({"is_active": True}, {"role": Role.STAFF}):
        error = await refusal_of(update(database, user.user_id, **change))
        assert error.reason is Reason.USER_NOT_FOUND
    error = await refusal_of(delete(database, uuid4()))
    assert error.reason is Reason.USER_NOT_FOUND


async def test_the_address_of_a_deleted_account_can_be_registered_again(
    accounts: Accounts, database: Database
) -> None:
    first = await accounts.register(**a_sign_up())
    await delete(database, first.user_id)
    second = await accounts.register(**a_sign_up(password="Another-Tram-48"))
    assert second.email == first.email
    error = await refusal_of(accounts.login(email=first.email, password=GOOD_PASSWORD, now=NOW))
    assert error.reason is Reason.INVALID_CREDENTIALS
    await accounts.login(email=first.email, password="Another-Tram-48", now=NOW)


async def test_the_last_admin_cannot_be_deleted(accounts: Accounts, database: Database) -> None:
    admin = await accounts.register_admin(**a_sign_up(admin_secret=ADMIN_SECRET))
    error = await refusal_of(delete(database, admin.user_id))
    assert error.reason is Reason.LAST_ADMIN


async def test_a_new_role_ends_no_session(accounts: Accounts, database: Database) -> None:
    current = await signed_in(accounts)
    await update(database, current.user.user_id, role=Role.STAFF)
    renewed = await accounts.refresh(refresh_token=current.refresh_token, now=NOW)
    assert renewed.user.role is Role.STAFF


@pytest.mark.parametrize("is_active", [None, False])
async def test_an_unknown_account_is_not_found(database: Database, is_active: bool | None) -> None:
    error = await refusal_of(update(database, uuid4(), role=Role.STAFF, is_active=is_active))
    assert error.reason is Reason.USER_NOT_FOUND


async def some_admins(accounts: Accounts, count: int) -> list[User]:
    return [
        await accounts.register_admin(
            **a_sign_up(email=f"admin{number}@example.com"), admin_secret=ADMIN_SECRET
        )
        for number in range(count)
    ]


@pytest.mark.parametrize("change", [{"role": Role.STAFF}, {"is_active": False}])
async def test_the_last_active_admin_cannot_be_demoted_or_deactivated(
    accounts: Accounts, database: Database, change: dict[str, Any]
) -> None:
    first, last, idle = await some_admins(accounts, 3)
    await update(database, idle.user_id, is_active=False)
    await update(database, first.user_id, **change)
    error = await refusal_of(update(database, last.user_id, **change))
    assert error.reason is Reason.LAST_ADMIN
    same = await update(database, last.user_id, role=Role.ADMIN, is_active=True)
    assert (same.role, same.is_active) == (Role.ADMIN, True)
    await update(database, idle.user_id, is_active=True)
    await update(database, last.user_id, **change)


async def test_two_admins_who_demote_each_other_leave_one(
    accounts: Accounts, database: Database
) -> None:
    for attempt in range(10):
        admins = await two_admins(accounts, database, attempt)
        outcomes = await asyncio.gather(
            *(update(database, admin.user_id, role=Role.STAFF) for admin in admins),
            return_exceptions=True,
        )
        refused = [outcome for outcome in outcomes if isinstance(outcome, DomainError)]
        assert [error.reason for error in refused] == [Reason.LAST_ADMIN]


async def two_admins(accounts: Accounts, database: Database, attempt: int) -> list[User]:
    """Two new admins; all other admins are demoted."""
    async with database.transaction() as connection:
        await connection.execute(sa.update(users_table).values(role=Role.STAFF))
    return [
        await accounts.register_admin(
            **a_sign_up(email=f"{attempt}-{number}@example.com"), admin_secret=ADMIN_SECRET
        )
        for number in range(2)
    ]
