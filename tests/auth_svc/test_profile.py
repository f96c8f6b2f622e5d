"""Profile updates, on a real database."""

import dataclasses
from datetime import timedelta
from uuid import UUID, uuid4

import pytest

from auth_svc.accounts import User
from auth_svc.profile import update_profile
from mesh.db.database import Database
from mesh.errors import Reason
from tests.auth_svc.conftest import NOW, Accounts, a_sign_up, refusal_of

LATER = NOW + timedelta(hours=1)


async def change(database: Database, user_id: UUID, **changes: str) -> User:
    nothing = dict.fromkeys(("full_name", "phone", "address"))
    async with database.transaction() as connection:
        return await update_profile(
            connection, user_id=user_id, now=LATER, **{**nothing, **changes}
        )


@pytest.mark.parametrize(
    "changes",
    [
        {"full_name": "mira DE la Rao"},
        {"phone": "+4915112345678"},
        {"phone": ""},
        {"address": "12 Marine Drive\nMumbai 400020"},
        {"full_name": "M. R.", "phone": "", "address": "🎭" * 500},
    ],
)
async def test_only_the_sent_fields_change(
    accounts: Accounts, database: Database, changes: dict[str, str]
) -> None:
    before = await accounts.register(**a_sign_up())
    other = await accounts.register(**a_sign_up(email="noor@example.com"))
    after = await change(database, before.user_id, **changes)
    expected = dataclasses.replace(before, update_time=LATER, **changes)  # type: ignore[arg-type]
    assert after == expected
    assert await accounts.get(before.user_id) == expected
    assert await accounts.get(other.user_id) == other


async def test_an_empty_update_changes_nothing(accounts: Accounts, database: Database) -> None:
    user = await accounts.register(**a_sign_up())
    assert await change(database, user.user_id) == user


async def test_update_time_does_not_decrease_with_a_clock_that_is_behind(
    accounts: Accounts, database: Database
) -> None:
    user = await accounts.register(**a_sign_up(now=LATER + timedelta(seconds=1)))
    changed = await change(database, user.user_id, address="here")
    assert (changed.address, changed.update_time) == ("here", user.update_time)


async def test_an_unknown_account_is_not_found(accounts: Accounts, database: Database) -> None:
    error = await refusal_of(change(database, uuid4(), address="nowhere"))
    assert error.reason is Reason.USER_NOT_FOUND
