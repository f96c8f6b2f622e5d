"""Password changes of signed-in users, on a real database."""

import asyncio
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import jwt
import pytest
import sqlalchemy as sa

from auth_svc.sign_in import SignedIn
from auth_svc.tables import sessions, users
from mesh.db.database import Database
from mesh.errors import Reason
from tests.auth_svc.conftest import (
    GOOD_PASSWORD,
    NOW,
    Accounts,
    a_sign_up,
    refusal_of,
    rows,
    signed_in,
)

NEXT_PASSWORD = "Papaya-Ship-58"
LATER = NOW + timedelta(minutes=5)


def session_of(signed_in: SignedIn) -> UUID:
    claims = jwt.decode(signed_in.access_token, options={"verify_signature": False})
    return UUID(claims["sid"])


async def change(accounts: Accounts, current: SignedIn, **changes: Any) -> datetime:
    arguments: dict[str, Any] = {
        "user_id": current.user.user_id,
        "session_id": session_of(current),
        "current_password": GOOD_PASSWORD,
        "new_password": NEXT_PASSWORD,
        "now": LATER,
    }
    return await accounts.change_password(**arguments | changes)


async def login(accounts: Accounts, password: str) -> SignedIn:
    return await accounts.login(email="mira@example.com", password=password, now=LATER)


async def test_only_the_new_password_works_after_a_change(
    accounts: Accounts, database: Database
) -> None:
    current = await signed_in(accounts)
    assert await change(accounts, current) == LATER
    error = await refusal_of(login(accounts, GOOD_PASSWORD))
    assert error.reason is Reason.INVALID_CREDENTIALS
    await login(accounts, NEXT_PASSWORD)
    [row] = await rows(database, users)
    assert (row.password_change_time, row.update_time) == (LATER, LATER)
    assert NEXT_PASSWORD not in str(row)


async def test_every_other_session_ends(accounts: Accounts) -> None:
    other, current = await signed_in(accounts), await signed_in(accounts)
    await accounts.register(**a_sign_up(email="noor@example.com"))
    stranger = await accounts.login(email="noor@example.com", password=GOOD_PASSWORD, now=NOW)
    await change(accounts, current)
    error = await refusal_of(accounts.refresh(refresh_token=other.refresh_token, now=LATER))
    assert error.reason is Reason.TOKEN_INVALID
    for kept in (current, stranger):
        await accounts.refresh(refresh_token=kept.refresh_token, now=LATER)


async def assert_unchanged(accounts: Accounts, database: Database) -> None:
    assert [row.revoke_time for row in await rows(database, sessions)] == [None, None]
    await login(accounts, GOOD_PASSWORD)


@pytest.mark.parametrize(
    ("changes", "reason", "fields"),
    [
        (
            {"current_password": "Mango-Tram-48"},
            Reason.CURRENT_PASSWORD_INCORRECT,
            ["current_password"],
        ),
        ({"current_password": "\x00"}, Reason.CURRENT_PASSWORD_INCORRECT, ["current_password"]),
        ({"new_password": GOOD_PASSWORD}, Reason.PASSWORD_UNCHANGED, ["new_password"]),
        ({"new_password": "mango"}, Reason.PASSWORD_TOO_WEAK, ["new_password"] * 5),
        ({"new_password": "Mira-Rao-1"}, Reason.PASSWORD_TOO_WEAK, ["new_password"]),
    ],
)
async def test_a_refused_change_changes_nothing(
    accounts: Accounts,
    database: Database,
    changes: dict[str, str],
    reason: Reason,
    fields: list[str],
) -> None:
    await signed_in(accounts)
    current = await signed_in(accounts)
    error = await refusal_of(change(accounts, current, **changes))
    assert error.reason is reason
    assert [violation.field for violation in error.violations] == fields
    await assert_unchanged(accounts, database)


async def test_another_unicode_form_of_the_password_is_the_same_password(
    accounts: Accounts,
) -> None:
    composed, decomposed = "Caf\u00e9-Tram-47", "Cafe\u0301-Tram-47"
    current = await signed_in(accounts)
    await change(accounts, current, new_password=composed)
    error = await refusal_of(
        change(accounts, current, current_password=composed, new_password=decomposed)
    )
    assert error.reason is Reason.PASSWORD_UNCHANGED


async def test_only_the_right_password_reveals_that_it_is_unchanged(accounts: Accounts) -> None:
    current = await signed_in(accounts)
    guess = "Mango-Tram-48"
    error = await refusal_of(change(accounts, current, current_password=guess, new_password=guess))
    assert error.reason is Reason.CURRENT_PASSWORD_INCORRECT


async def test_of_two_concurrent_changes_one_succeeds(accounts: Accounts) -> None:
    first, second = await signed_in(accounts), await signed_in(accounts)
    passwords = [NEXT_PASSWORD, "Banana-Sled-69"]
    outcomes = await asyncio.gather(
        change(accounts, first, new_password=passwords[0]),
        change(accounts, second, new_password=passwords[1]),
        return_exceptions=True,
    )
    winners = [n for n, outcome in enumerate(outcomes) if outcome == LATER]
    assert len(winners) == 1
    await login(accounts, passwords[winners[0]])
    error = await refusal_of(login(accounts, passwords[1 - winners[0]]))
    assert error.reason is Reason.INVALID_CREDENTIALS


async def test_a_deactivated_account_keeps_its_password(
    accounts: Accounts, database: Database
) -> None:
    await signed_in(accounts)
    current = await signed_in(accounts)
    async with database.transaction() as connection:
        await connection.execute(sa.update(users).values(is_active=False))
    error = await refusal_of(change(accounts, current))
    assert error.reason is Reason.ACCOUNT_DEACTIVATED
    async with database.transaction() as connection:
        await connection.execute(sa.update(users).values(is_active=True))
    await assert_unchanged(accounts, database)


async def test_the_password_of_an_unknown_account_cannot_change(accounts: Accounts) -> None:
    current = await signed_in(accounts)
    error = await refusal_of(change(accounts, current, user_id=uuid4()))
    assert error.reason is Reason.USER_NOT_FOUND
