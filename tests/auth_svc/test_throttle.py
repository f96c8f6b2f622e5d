"""The login throttle, with the same rules in Redis and in the database, for any account."""

import asyncio
import contextlib
import os
import signal
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
import redis.asyncio
import sqlalchemy as sa

from auth_svc.passwords import PasswordHasher
from auth_svc.tables import login_throttles
from auth_svc.throttle import FORGET_AFTER, FREE_ATTEMPTS, LoginThrottle
from auth_svc.tokens import SigningKey
from launcher.supervisor import Process
from mesh.db.database import Database
from mesh.errors import DomainError, Reason
from mesh.ids import new_id
from mesh.redis.link import RedisLink
from tests.auth_svc.conftest import (
    GOOD_PASSWORD,
    NOW,
    THROTTLE_KEY,
    Accounts,
    a_sign_up,
    refusal_of,
    rows,
)

SECOND = timedelta(seconds=1)


@pytest.fixture(params=["redis", "database"])
def throttle(request: pytest.FixtureRequest, database: Database, link: RedisLink) -> LoginThrottle:
    """The same tests run with both stores."""
    store = link if request.param == "redis" else None
    return LoginThrottle(database=database, link=store, key=THROTTLE_KEY)


async def wait_of(attempt: Awaitable[None]) -> float:
    """Seconds to wait; 0 when the attempt is admitted."""
    try:
        await attempt
    except DomainError as error:
        return error.retry_after_seconds or -1.0
    return 0.0


async def test_the_pause_doubles_up_to_an_hour(throttle: LoginThrottle) -> None:
    now = NOW
    pauses = []
    for _ in range(20):
        assert await wait_of(throttle.admit("mira", now=now)) == 0
        pause = await wait_of(throttle.admit("mira", now=now))
        if pause:
            # A refused attempt is not counted: the pause does not grow.
            assert await wait_of(throttle.admit("mira", now=now)) == pause
        else:
            await throttle.refund_attempt("mira")
        pauses.append(pause)
        now += timedelta(seconds=pause)
    assert pauses == [0, 0, 0, 0, *(2.0**n for n in range(12)), 3600, 3600, 3600, 3600]


async def test_accounts_are_throttled_independently(throttle: LoginThrottle) -> None:
    for _ in range(FREE_ATTEMPTS):
        await throttle.admit("mira", now=NOW)
    assert await wait_of(throttle.admit("mira", now=NOW)) == 1
    assert await wait_of(throttle.admit("noor", now=NOW)) == 0


async def test_success_clears_the_count(throttle: LoginThrottle, database: Database) -> None:
    for _ in range(FREE_ATTEMPTS):
        await throttle.admit("mira", now=NOW)
    async with database.transaction() as connection:
        await throttle.clear_row(connection, "mira")
    await throttle.clear("mira")
    for _ in range(FREE_ATTEMPTS):
        assert await wait_of(throttle.admit("mira", now=NOW)) == 0


async def test_a_refunded_attempt_is_not_counted(throttle: LoginThrottle) -> None:
    for _ in range(10):
        assert await wait_of(throttle.admit("mira", now=NOW)) == 0
        await throttle.refund_attempt("mira")
    # A refund for an account without attempts has no effect.
    await throttle.refund_attempt("noor")
    assert await wait_of(throttle.admit("noor", now=NOW)) == 0


async def test_concurrent_attempts_are_throttled_like_sequential_ones(
    throttle: LoginThrottle,
) -> None:
    waits = await asyncio.gather(*(wait_of(throttle.admit("mira", now=NOW)) for _ in range(10)))
    assert waits.count(0) == FREE_ATTEMPTS
    assert waits.count(1) == 10 - FREE_ATTEMPTS


async def test_an_old_count_expires(database: Database) -> None:
    throttle = LoginThrottle(database=database, link=None, key=THROTTLE_KEY)
    for _ in range(FREE_ATTEMPTS):
        await throttle.admit("mira", now=NOW)
    later = NOW + FORGET_AFTER + SECOND
    for _ in range(FREE_ATTEMPTS):
        assert await wait_of(throttle.admit("mira", now=later)) == 0


async def test_a_count_in_redis_expires_and_is_not_in_the_database(
    link: RedisLink, cache: "redis.asyncio.Redis", database: Database
) -> None:
    throttle = LoginThrottle(database=database, link=link, key=THROTTLE_KEY)
    await throttle.admit("mira", now=NOW)
    [key] = await cache.keys("*")
    assert 0 < await cache.pttl(key) <= FORGET_AFTER.total_seconds() * 1000
    assert await rows(database, login_throttles) == []


async def test_stored_counts_do_not_contain_the_address(
    link: RedisLink, cache: "redis.asyncio.Redis", database: Database
) -> None:
    for store in (link, None):
        throttle = LoginThrottle(database=database, link=store, key=THROTTLE_KEY)
        await throttle.admit("mira@example.com", now=NOW)
    [row] = await rows(database, login_throttles)
    [key] = await cache.keys("*")
    assert b"mira" not in row.account
    assert b"mira" not in key


async def test_without_redis_the_database_counts(database: Database) -> None:
    async with RedisLink.open("unix:///nowhere/redis.sock") as broken_link:
        throttle = LoginThrottle(database=database, link=broken_link, key=THROTTLE_KEY)
        for _ in range(FREE_ATTEMPTS):
            assert await wait_of(throttle.admit("mira", now=NOW)) == 0
        assert await wait_of(throttle.admit("mira", now=NOW)) == 1
        await throttle.refund_attempt("mira")
        assert await wait_of(throttle.admit("mira", now=NOW)) == 0
        await throttle.clear("mira")
        await throttle.refund_attempt("noor")


async def test_the_database_counts_after_redis_was_killed(
    link: RedisLink, redis_server: Process, database: Database
) -> None:
    throttle = LoginThrottle(database=database, link=link, key=THROTTLE_KEY)
    await throttle.admit("mira", now=NOW)
    assert redis_server.pid is not None
    os.kill(redis_server.pid, signal.SIGKILL)
    async with asyncio.timeout(60):
        while not await rows(database, login_throttles):
            # The supervisor may restart Redis, empty, before the first attempt.
            await throttle.admit(str(new_id()), now=NOW)
        while link.is_away:
            await asyncio.sleep(0.05)


Attempt = Callable[[str, datetime], Awaitable[object]]


@pytest.mark.parametrize("email", ["mira@example.com", "nobody@example.com", "MIRA@example.com"])
async def test_known_and_unknown_accounts_are_throttled_alike(
    accounts: Accounts, email: str
) -> None:
    await accounts.register(**a_sign_up())
    reasons = [
        (await refusal_of(accounts.login(email=email, password="wrong", now=NOW))).reason
        for _ in range(FREE_ATTEMPTS + 2)
    ]
    assert reasons == [Reason.INVALID_CREDENTIALS] * FREE_ATTEMPTS + [Reason.LOGIN_THROTTLED] * 2


async def test_the_right_password_is_throttled_too_and_then_clears_the_count(
    accounts: Accounts, database: Database
) -> None:
    await accounts.register(**a_sign_up())
    for _ in range(FREE_ATTEMPTS):
        await refusal_of(accounts.login(email="mira@example.com", password="wrong", now=NOW))
    right: dict[str, Any] = {"email": "mira@example.com", "password": GOOD_PASSWORD}
    assert (await refusal_of(accounts.login(**right, now=NOW))).reason is Reason.LOGIN_THROTTLED
    await accounts.login(**right, now=NOW + SECOND)
    assert await rows(database, login_throttles) == []
    for _ in range(FREE_ATTEMPTS):
        wrong = accounts.login(email="mira@example.com", password="wrong", now=NOW + SECOND)
        assert (await refusal_of(wrong)).reason is Reason.INVALID_CREDENTIALS


async def test_existing_sessions_are_not_throttled(accounts: Accounts) -> None:
    await accounts.register(**a_sign_up())
    session = await accounts.login(email="mira@example.com", password=GOOD_PASSWORD, now=NOW)
    for _ in range(FREE_ATTEMPTS + 2):
        await refusal_of(accounts.login(email="mira@example.com", password="wrong", now=NOW))
    await accounts.refresh(refresh_token=session.refresh_token, now=NOW + SECOND)


async def test_an_attempt_refused_by_the_full_queue_is_not_counted_and_throttled_ones_are_not_hashed(
    database: Database, key: SigningKey
) -> None:
    hasher = PasswordHasher(cost=4, pepper=b"x" * 32, workers=1, waiting=0)
    with contextlib.closing(hasher):
        accounts = Accounts(database, hasher, key)
        await accounts.register(**a_sign_up())
        # The only place is taken: every call of the hasher is refused.
        assert hasher._places.acquire(blocking=False)
        for _ in range(FREE_ATTEMPTS + 2):
            error = await refusal_of(
                accounts.login(email="mira@example.com", password="wrong", now=NOW)
            )
            assert error.reason is Reason.OVERLOADED
        async with database.transaction() as connection:
            await connection.execute(sa.update(login_throttles).values(due_time=NOW + SECOND))
        error = await refusal_of(
            accounts.login(email="mira@example.com", password="wrong", now=NOW)
        )
        assert error.reason is Reason.LOGIN_THROTTLED
        hasher._places.release()


async def test_guesses_of_the_current_password_are_throttled_apart_from_sign_in(
    accounts: Accounts,
) -> None:
    await accounts.register(**a_sign_up())
    login = await accounts.login(email="mira@example.com", password=GOOD_PASSWORD, now=NOW)

    def change(current: str) -> Awaitable[object]:
        return accounts.change_password(
            user_id=login.user.user_id,
            session_id=login.user.user_id,
            current_password=current,
            new_password="Another-Tram-48",
            now=NOW,
        )

    for _ in range(FREE_ATTEMPTS):
        assert (await refusal_of(change("wrong"))).reason is Reason.CURRENT_PASSWORD_INCORRECT
    assert (await refusal_of(change(GOOD_PASSWORD))).reason is Reason.LOGIN_THROTTLED
    await accounts.login(email="mira@example.com", password=GOOD_PASSWORD, now=NOW)
