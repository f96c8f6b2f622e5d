"""Strangers who guess slow down themselves, not the owner of the account."""

from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from auth_svc.passwords import PasswordHasher
from auth_svc.sign_in_guard import ADDRESS_RETENTION, MAX_ADDRESSES, PER_ADDRESS, Source
from auth_svc.tables import sign_in_addresses
from auth_svc.throttle import FREE_ATTEMPTS
from auth_svc.tokens import SigningKey
from mesh.db.database import Database
from mesh.errors import DomainError, Reason
from mesh.redis.link import RedisLink
from tests.auth_svc.conftest import GOOD_PASSWORD, NOW, Accounts, a_sign_up, refusal_of, rows

HOME, STRANGER, CAFE = Source("192.0.2.1"), Source("198.51.100.1"), Source("203.0.113.1")
EMAIL = "mira@example.com"
SECOND = timedelta(seconds=1)


@pytest.fixture(params=["redis", "database"])
def accounts(
    request: pytest.FixtureRequest,
    database: Database,
    hasher: PasswordHasher,
    key: SigningKey,
    link: RedisLink,
) -> Accounts:
    """The same tests run with both stores of counts."""
    return Accounts(database, hasher, key, link=link if request.param == "redis" else None)


async def guess(
    accounts: Accounts, source: Source, *, email: str = EMAIL, times: int = 1
) -> Reason:
    """The reason of the last of some wrong guesses."""
    for _ in range(times):
        error = await refusal_of(
            accounts.login(email=email, password="wrong", now=NOW, source=source)
        )
    return error.reason


async def sign_in(accounts: Accounts, source: Source) -> Source:
    """Signs in with the right password. Returns the source with its device token."""
    signed_in = await accounts.login(email=EMAIL, password=GOOD_PASSWORD, now=NOW, source=source)
    return Source(source.address, signed_in.device_token)


async def test_a_stranger_who_guesses_does_not_lock_the_owner_out(accounts: Accounts) -> None:
    await accounts.register(**a_sign_up())
    await sign_in(accounts, HOME)
    assert await guess(accounts, STRANGER, times=FREE_ATTEMPTS + 1) is Reason.LOGIN_THROTTLED
    # Another stranger is slowed too: one guesser may have many addresses.
    assert await guess(accounts, CAFE) is Reason.LOGIN_THROTTLED
    await sign_in(accounts, HOME)


async def test_the_address_of_the_sign_up_is_known(accounts: Accounts) -> None:
    await accounts.register(**a_sign_up(), address=HOME.address)
    await guess(accounts, STRANGER, times=FREE_ATTEMPTS)
    await sign_in(accounts, HOME)


async def test_a_device_with_an_earlier_success_stays_open_at_any_address(
    accounts: Accounts,
) -> None:
    await accounts.register(**a_sign_up())
    device = await sign_in(accounts, HOME)
    assert await sign_in(accounts, device) == device
    await guess(accounts, STRANGER, times=FREE_ATTEMPTS)
    away = Source(CAFE.address, device.device_token)
    assert await sign_in(accounts, away) == away


async def test_a_known_address_is_slowed_by_its_own_guesses_only(accounts: Accounts) -> None:
    await accounts.register(**a_sign_up())
    device = await sign_in(accounts, HOME)
    assert await guess(accounts, HOME, times=FREE_ATTEMPTS + 1) is Reason.LOGIN_THROTTLED
    assert await guess(accounts, STRANGER) is Reason.INVALID_CREDENTIALS
    # Someone at the same address guesses: the device still signs in.
    await sign_in(accounts, device)
    assert await guess(accounts, device, times=FREE_ATTEMPTS + 1) is Reason.LOGIN_THROTTLED


@pytest.mark.parametrize("token", ["", "x", "A" * 64, "é", "====", "A" * 63])
async def test_an_invalid_device_token_is_ignored(accounts: Accounts, token: str) -> None:
    await accounts.register(**a_sign_up())
    source = Source(CAFE.address, token)
    assert await guess(accounts, source, times=FREE_ATTEMPTS + 1) is Reason.LOGIN_THROTTLED


async def test_a_device_token_is_of_one_account_and_one_password(accounts: Accounts) -> None:
    await accounts.register(**a_sign_up(email="noor@example.com"))
    user = await accounts.register(**a_sign_up())
    device = await sign_in(accounts, HOME)
    noor = Source(CAFE.address, device.device_token)
    guesses: dict[str, Any] = {"email": "noor@example.com", "times": FREE_ATTEMPTS + 1}
    assert await guess(accounts, noor, **guesses) is Reason.LOGIN_THROTTLED
    await accounts.change_password(
        user_id=user.user_id,
        session_id=user.user_id,
        current_password=GOOD_PASSWORD,
        new_password="Quiet-Harbour-58",
        now=NOW + SECOND,
    )
    thief = Source(CAFE.address, device.device_token)
    assert await guess(accounts, thief, times=FREE_ATTEMPTS + 1) is Reason.LOGIN_THROTTLED


async def test_guesses_on_many_accounts_slow_the_address(accounts: Accounts) -> None:
    await accounts.register(**a_sign_up())
    for number in range(PER_ADDRESS.free_attempts):
        email = f"{number}@example.com"
        assert await guess(accounts, STRANGER, email=email) is Reason.INVALID_CREDENTIALS
    assert await guess(accounts, STRANGER, email="one-more@example.com") is Reason.LOGIN_THROTTLED
    assert await guess(accounts, CAFE, email="one-more@example.com") is Reason.INVALID_CREDENTIALS
    # The pause of a shared address stays short, however many fail.
    later = NOW
    for _ in range(10):
        later += PER_ADDRESS.max_pause
        await refusal_of(
            accounts.login(email=f"{later}@a.example", password="x", now=later, source=STRANGER)
        )
    later += PER_ADDRESS.max_pause
    await accounts.login(email=EMAIL, password=GOOD_PASSWORD, now=later, source=STRANGER)


async def test_a_refused_attempt_on_a_paused_account_is_not_counted_for_the_address(
    accounts: Accounts,
) -> None:
    await guess(accounts, CAFE, times=FREE_ATTEMPTS)
    for _ in range(PER_ADDRESS.free_attempts):
        assert await guess(accounts, STRANGER) is Reason.LOGIN_THROTTLED
    assert await guess(accounts, STRANGER, email="noor@example.com") is Reason.INVALID_CREDENTIALS


async def test_known_addresses_are_digests_expire_and_are_bounded(
    accounts: Accounts, database: Database
) -> None:
    user = await accounts.register(**a_sign_up(), address=HOME.address)
    [row] = await rows(database, sign_in_addresses)
    assert HOME.address.encode() not in row.address
    async with database.transaction() as connection:
        await connection.execute(
            sa.update(sign_in_addresses).values(last_time=NOW - ADDRESS_RETENTION)
        )
    assert await guess(accounts, HOME, times=FREE_ATTEMPTS + 1) is Reason.LOGIN_THROTTLED
    assert await guess(accounts, CAFE) is Reason.LOGIN_THROTTLED
    for number in range(MAX_ADDRESSES + 5):
        async with database.transaction() as connection:
            await accounts.guard.remember(
                connection,
                user_id=user.user_id,
                address=f"192.0.2.{100 + number}",
                now=NOW + number * SECOND,
            )
    assert len(await rows(database, sign_in_addresses)) == MAX_ADDRESSES
    await sign_in(accounts, Source(f"192.0.2.{100 + MAX_ADDRESSES + 4}"))
    with pytest.raises(DomainError):
        await sign_in(accounts, Source("192.0.2.100"))


async def test_a_device_token_opens_no_other_account_and_ends_with_the_password(
    accounts: Accounts,
) -> None:
    noor = "noor@example.com"
    await accounts.register(**a_sign_up(email=noor))
    user = await accounts.register(**a_sign_up())
    device = await sign_in(accounts, HOME)
    away = Source(CAFE.address, device.device_token)
    for email in (EMAIL, noor):
        await guess(accounts, STRANGER, email=email, times=FREE_ATTEMPTS)
    # Control: the token opens the account that it is of.
    assert await guess(accounts, away) is Reason.INVALID_CREDENTIALS
    assert await guess(accounts, away, email=noor) is Reason.LOGIN_THROTTLED
    await accounts.change_password(
        user_id=user.user_id,
        session_id=user.user_id,
        current_password=GOOD_PASSWORD,
        new_password="Quiet-Harbour-58",
        now=NOW + SECOND,
    )
    assert await guess(accounts, away) is Reason.LOGIN_THROTTLED
