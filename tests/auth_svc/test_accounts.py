"""Sign-up and sign-in, on a real database."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from uuid import uuid4

import pytest
import sqlalchemy as sa

from auth_svc import sessions
from auth_svc.accounts import Role
from auth_svc.passwords import PasswordHasher
from auth_svc.tables import refresh_tokens, users
from auth_svc.tables import sessions as sessions_table
from auth_svc.tokens import SigningKey
from mesh.db.database import Database
from mesh.errors import DomainError, Reason
from tests.auth_svc.conftest import (
    ADMIN_SECRET,
    GOOD_PASSWORD,
    NOW,
    PEPPER,
    Accounts,
    a_sign_up,
    rows,
)


async def change_users(database: Database, **values: object) -> None:
    async with database.transaction() as connection:
        await connection.execute(sa.update(users).values(**values))


async def reason_of_login(accounts: Accounts, email: str, password: str) -> tuple[Reason, str]:
    with pytest.raises(DomainError) as refused:
        await accounts.login(email=email, password=password, now=NOW)
    assert refused.value.metadata == {}
    return refused.value.reason, refused.value.message


async def test_sign_up_stores_the_data_as_entered(accounts: Accounts, database: Database) -> None:
    user = await accounts.register(
        **a_sign_up(email="Mira.RAO@Example.com", full_name="mira de la RAO")
    )
    assert user == await accounts.get(user.user_id)
    assert (user.email, user.full_name, user.phone, user.address) == (
        "Mira.RAO@Example.com",
        "mira de la RAO",
        "+919876543210",
        "",
    )
    assert (user.role, user.is_active) == (Role.CUSTOMER, True)
    assert (user.create_time, user.update_time) == (NOW, NOW)
    assert user.user_id.version == 7
    [row] = await rows(database, users)
    assert GOOD_PASSWORD not in str(row)
    assert await rows(database, sessions_table) == []


async def test_an_address_in_another_case_is_the_same_address(
    accounts: Accounts, database: Database
) -> None:
    await accounts.register(**a_sign_up(email="mira@example.com"))
    with pytest.raises(DomainError) as refused:
        await accounts.register(**a_sign_up(email="MIRA@Example.COM"))
    assert refused.value.reason is Reason.EMAIL_ALREADY_REGISTERED
    assert len(await rows(database, users)) == 1


async def test_ten_concurrent_sign_ups_create_one_account(
    accounts: Accounts, database: Database
) -> None:
    cases = [f"{'M' if n % 2 else 'm'}ira@example.com" for n in range(10)]
    results = await asyncio.gather(
        *(accounts.register(**a_sign_up(email=email)) for email in cases), return_exceptions=True
    )
    refused = [result for result in results if isinstance(result, DomainError)]
    assert len(refused) == 9
    assert {error.reason for error in refused} == {Reason.EMAIL_ALREADY_REGISTERED}
    assert len(await rows(database, users)) == 1


async def test_a_weak_password_creates_no_account(accounts: Accounts, database: Database) -> None:
    with pytest.raises(DomainError) as refused:
        await accounts.register(**a_sign_up(password="mango"))
    assert refused.value.reason is Reason.PASSWORD_TOO_WEAK
    assert len(refused.value.violations) == 5
    assert await rows(database, users) == []


async def test_admin_sign_up_needs_the_secret(accounts: Accounts, database: Database) -> None:
    for wrong in ("", ADMIN_SECRET[:-1], ADMIN_SECRET + "x", "ü" * 40):
        with pytest.raises(DomainError) as refused:
            await accounts.register_admin(**a_sign_up(admin_secret=wrong))
        assert refused.value.reason is Reason.INVALID_ADMIN_SECRET
    assert await rows(database, users) == []
    admin = await accounts.register_admin(**a_sign_up(admin_secret=ADMIN_SECRET))
    assert (await accounts.get(admin.user_id)).role is Role.ADMIN


@pytest.mark.parametrize("guess", ["", "None", ADMIN_SECRET])
async def test_without_a_configured_secret_admin_sign_up_is_off(
    database: Database, hasher: PasswordHasher, key: SigningKey, guess: str
) -> None:
    accounts = Accounts(database, hasher, key, admin_secret=None)
    with pytest.raises(DomainError) as refused:
        await accounts.register_admin(**a_sign_up(admin_secret=guess))
    assert refused.value.reason is Reason.INVALID_ADMIN_SECRET


async def test_login_starts_a_session_and_stores_no_token(
    accounts: Accounts, database: Database
) -> None:
    user = await accounts.register(**a_sign_up())
    signed_in = await accounts.login(email="Mira@EXAMPLE.com", password=GOOD_PASSWORD, now=NOW)
    assert signed_in.user == user
    assert signed_in.access_lifetime == timedelta(minutes=15)
    assert signed_in.refresh_lifetime == timedelta(days=7)
    assert len(signed_in.refresh_token) == 43
    [session] = await rows(database, sessions_table)
    assert (session.user_id, session.create_time, session.revoke_time) == (user.user_id, NOW, None)
    assert session.expire_time == NOW + timedelta(days=30)
    [token] = await rows(database, refresh_tokens)
    assert token.session_id == session.session_id
    assert token.token_hash == sessions.hash_of(signed_in.refresh_token)
    assert token.expire_time == NOW + timedelta(days=7)
    assert token.use_time is None
    assert signed_in.refresh_token not in str(session) + str(token)


async def test_an_unknown_address_and_a_wrong_password_get_the_same_answer(
    accounts: Accounts,
) -> None:
    await accounts.register(**a_sign_up())
    unknown = await reason_of_login(accounts, "nobody@example.com", GOOD_PASSWORD)
    wrong = await reason_of_login(accounts, "mira@example.com", "Mango-Tram-48")
    assert unknown == wrong
    assert unknown[0] is Reason.INVALID_CREDENTIALS


@pytest.mark.parametrize("password", ["", "x" * 73, "\x00", "🙂" * 64, "Mango-Tram-47\x00"])
async def test_unusual_passwords_are_refused_as_wrong(accounts: Accounts, password: str) -> None:
    await accounts.register(**a_sign_up())
    reason, _ = await reason_of_login(accounts, "mira@example.com", password)
    assert reason is Reason.INVALID_CREDENTIALS


async def test_deactivation_is_revealed_only_with_the_right_password(
    accounts: Accounts, database: Database
) -> None:
    await accounts.register(**a_sign_up())
    await change_users(database, is_active=False)
    reason, _ = await reason_of_login(accounts, "mira@example.com", GOOD_PASSWORD)
    assert reason is Reason.ACCOUNT_DEACTIVATED
    reason, _ = await reason_of_login(accounts, "mira@example.com", "Mango-Tram-48")
    assert reason is Reason.INVALID_CREDENTIALS
    assert await rows(database, sessions_table) == []


class Interrupted(PasswordHasher):
    """Changes the account while the password is verified."""

    def __init__(self, database: Database, **values: object) -> None:
        super().__init__(cost=4, pepper=PEPPER)
        self._database = database
        self._values = values

    async def verify(self, password: str, password_hash: str | None) -> bool:
        is_right = await super().verify(password, password_hash)
        await change_users(self._database, **self._values)
        return is_right


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"is_active": False}, Reason.ACCOUNT_DEACTIVATED),
        ({"password_change_time": NOW + timedelta(seconds=1)}, Reason.INVALID_CREDENTIALS),
    ],
)
async def test_a_change_during_verification_takes_effect(
    accounts: Accounts,
    database: Database,
    key: SigningKey,
    change: dict[str, object],
    reason: Reason,
) -> None:
    await accounts.register(**a_sign_up())
    interrupted = Interrupted(database, **change)
    try:
        refusal, _ = await reason_of_login(
            Accounts(database, interrupted, key), "mira@example.com", GOOD_PASSWORD
        )
    finally:
        interrupted.close()
    assert refusal is reason
    assert await rows(database, sessions_table) == []


class RecordingHasher(PasswordHasher):
    """Records how many connections are in use during its calls."""

    def __init__(self, database: Database) -> None:
        super().__init__(cost=5, pepper=PEPPER)
        self._database = database
        self.in_use: list[int] = []

    async def hash(self, password: str) -> str:
        self.in_use.append(checked_out(self._database))
        return await super().hash(password)

    async def verify(self, password: str, password_hash: str | None) -> bool:
        self.in_use.append(checked_out(self._database))
        return await super().verify(password, password_hash)


def checked_out(database: Database) -> int:
    pool = database._engine.pool
    assert isinstance(pool, sa.AsyncAdaptedQueuePool)
    return pool.checkedout()


@pytest.fixture
async def recording(database: Database) -> AsyncIterator[RecordingHasher]:
    hasher = RecordingHasher(database)
    yield hasher
    hasher.close()


async def test_no_transaction_is_open_while_a_password_is_hashed(
    accounts: Accounts, database: Database, key: SigningKey, recording: RecordingHasher
) -> None:
    await accounts.register(**a_sign_up())
    other = Accounts(database, recording, key)
    # The cost differs: the login verifies and then hashes again.
    await other.login(email="mira@example.com", password=GOOD_PASSWORD, now=NOW)
    noor = await other.register(**a_sign_up(email="noor@example.com"))
    await other.change_password(
        user_id=noor.user_id,
        session_id=uuid4(),
        current_password=GOOD_PASSWORD,
        new_password="Papaya-Ship-58",
        now=NOW,
    )
    assert recording.in_use == [0, 0, 0, 0, 0]


async def test_a_login_after_a_change_of_the_cost_hashes_again(
    accounts: Accounts, database: Database, key: SigningKey, recording: RecordingHasher
) -> None:
    user = await accounts.register(**a_sign_up())
    costlier = Accounts(database, recording, key)
    # Concurrent logins: a new hash by one must not look like a new password to another.
    await asyncio.gather(
        *(
            costlier.login(email="mira@example.com", password=GOOD_PASSWORD, now=NOW)
            for _ in range(5)
        )
    )
    [row] = await rows(database, users)
    assert row.password_hash.startswith("$2b$05$")
    assert row.password_change_time == user.create_time
    assert len(await rows(database, sessions_table)) == 5
    await costlier.login(email="mira@example.com", password=GOOD_PASSWORD, now=NOW)


async def test_an_unknown_user_is_not_found(accounts: Accounts) -> None:
    with pytest.raises(DomainError) as refused:
        await accounts.get(uuid4())
    assert refused.value.reason is Reason.USER_NOT_FOUND
