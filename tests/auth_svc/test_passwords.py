"""The password policy, and hashing off the event loop."""

import asyncio
import base64
import hmac
import os
import threading
import time
from functools import partial

import bcrypt
import pytest

from auth_svc.hashing_threads import NICENESS, HashingThreads
from auth_svc.passwords import PasswordHasher, check_confirmation, check_policy
from mesh.errors import DomainError, Reason
from tests.auth_svc.conftest import GOOD_PASSWORD, PEPPER


def unmet_rules(
    password: str, *, email: str = "mira@example.com", full_name: str = "Mira Rao"
) -> set[str]:
    try:
        check_policy(password, email=email, full_name=full_name)
    except DomainError as error:
        refused = error
    else:
        return set()
    assert refused.reason is Reason.PASSWORD_TOO_WEAK
    assert {violation.field for violation in refused.violations} == {"password"}
    return {violation.description for violation in refused.violations}


LENGTH = "must have 8–128 characters"
UPPER = "must contain an upper-case letter"
LOWER = "must contain a lower-case letter"
DIGIT = "must contain a digit"
SPECIAL = "must contain a special character"
CONTROL = "must not contain control characters"
PERSONAL = "must not be the e-mail address or the name"
COMMON = "must not be a common password"


@pytest.mark.parametrize(
    ("password", "unmet"),
    [
        (GOOD_PASSWORD, set()),
        ("Ünï-Körn 4 äöü", set()),
        ("Aa1!" * 32, set()),
        ("Aa1!" * 32 + "x", {LENGTH}),
        ("Aa1!xyz", {LENGTH}),
        # Eight characters after NFC, nine before.
        ("Aa1!xyze\u0301", set()),
        ("Aa1!xye\u0301", {LENGTH}),
        ("", {LENGTH, UPPER, LOWER, DIGIT, SPECIAL}),
        ("mango", {LENGTH, UPPER, DIGIT, SPECIAL, COMMON}),
        ("mango-tram-47", {UPPER}),
        ("MANGO-TRAM-47", {LOWER}),
        ("Mango-Tram-XL", {DIGIT}),
        ("MangoTram47", {SPECIAL}),
        ("Mango-Tram\x00-47", {CONTROL}),
        ("Mango-Tram\n-47", {CONTROL}),
        ("Mira@Example.com1", {PERSONAL}),
        ("Mira.Rao-1985", {PERSONAL}),
        ("!Mira#2026", {PERSONAL}),
        ("Mira-knows-47-tunes", set()),
        ("P@ssw0rd", {COMMON}),
        ("Password1!", {COMMON}),
        ("*Dragon2026*", {COMMON}),
        ("12345678", {UPPER, LOWER, SPECIAL, COMMON}),
    ],
)
def test_all_unmet_rules_are_reported_together(password: str, unmet: set[str]) -> None:
    assert unmet_rules(password) == unmet


async def test_a_long_password_differs_from_its_first_72_bytes(hasher: PasswordHasher) -> None:
    long = "Aa1!" * 18 + "the rest"
    assert len(long.encode()[:72]) == 72
    hashed = await hasher.hash(long)
    assert await hasher.verify(long, hashed)
    assert not await hasher.verify(long[:72], hashed)


async def test_control_bcrypt_alone_ignores_the_rest() -> None:
    """Control: without the HMAC, bytes after the 72nd or after a NUL are not used."""
    hashed = bcrypt.hashpw(b"x" * 72, bcrypt.gensalt(4))
    with pytest.raises(ValueError, match="72 bytes"):
        bcrypt.checkpw(b"x" * 73, hashed)


@pytest.mark.parametrize("other", ["Mango\x00", "Mango\x00Tram-48", "Mango"])
async def test_characters_after_a_nul_are_significant(hasher: PasswordHasher, other: str) -> None:
    hashed = await hasher.hash("Mango\x00Tram-47")
    assert not await hasher.verify(other, hashed)


async def test_the_same_text_in_another_unicode_form_is_the_same_password(
    hasher: PasswordHasher,
) -> None:
    hashed = await hasher.hash("Cafe\u0301-Tram-47")
    assert await hasher.verify("Caf\u00e9-Tram-47", hashed)


async def test_the_hash_has_the_documented_form(hasher: PasswordHasher) -> None:
    """Computed independently: stored hashes must stay valid when the code changes."""
    mac = hmac.digest(PEPPER, "Café-Tram-47".encode(), "sha256")
    hashed = await hasher.hash("Café-Tram-47")
    assert bcrypt.checkpw(base64.b64encode(mac), hashed.encode())


async def test_another_pepper_does_not_verify(hasher: PasswordHasher) -> None:
    hashed = await hasher.hash(GOOD_PASSWORD)
    other = PasswordHasher(cost=4, pepper=b"another" + PEPPER)
    try:
        assert not await other.verify(GOOD_PASSWORD, hashed)
    finally:
        other.close()


async def test_the_cost_is_the_configured_one(hasher: PasswordHasher) -> None:
    hashed = await hasher.hash(GOOD_PASSWORD)
    assert hashed.startswith("$2b$04$")
    assert not hasher.is_outdated(hashed)
    costlier = PasswordHasher(cost=5, pepper=PEPPER)
    try:
        assert (await costlier.hash(GOOD_PASSWORD)).startswith("$2b$05$")
        assert costlier.is_outdated(hashed)
    finally:
        costlier.close()


async def test_an_unknown_account_costs_a_hash_of_the_same_cost() -> None:
    """Measures CPU time of the hashing thread, which does not depend on the machine's load."""
    hasher = PasswordHasher(cost=9, pepper=PEPPER, workers=1)
    try:
        hashed = await hasher.hash(GOOD_PASSWORD)

        async def cpu_seconds(password_hash: str | None) -> float:
            before = await hasher._run(time.thread_time)
            assert not await hasher.verify("wrong", password_hash)
            return await hasher._run(time.thread_time) - before

        known = min([await cpu_seconds(hashed) for _ in range(3)])
        unknown = min([await cpu_seconds(None) for _ in range(3)])
    finally:
        hasher.close()
    assert known / 2 < unknown < known * 2


async def test_a_full_queue_refuses_work_until_places_are_free() -> None:
    hasher = PasswordHasher(cost=4, pepper=PEPPER, workers=1, waiting=2)
    release = threading.Event()
    try:
        blocked = [asyncio.create_task(hasher._run(release.wait)) for _ in range(3)]
        await asyncio.sleep(0)
        with pytest.raises(DomainError) as refused:
            async with asyncio.timeout(60):
                await hasher.hash(GOOD_PASSWORD)
        assert refused.value.reason is Reason.OVERLOADED
        assert refused.value.retry_after_seconds == 1
        release.set()
        await asyncio.gather(*blocked)
        assert await hasher.hash(GOOD_PASSWORD)
    finally:
        release.set()
        hasher.close()


async def test_a_cancelled_call_keeps_its_place_until_its_thread_ends() -> None:
    hasher = PasswordHasher(cost=4, pepper=PEPPER, workers=1, waiting=0)
    began, release = threading.Event(), threading.Event()

    def work() -> None:
        began.set()
        release.wait()

    try:
        task = asyncio.create_task(hasher._run(work))
        await asyncio.to_thread(began.wait)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(DomainError):
            async with asyncio.timeout(60):
                await hasher.hash(GOOD_PASSWORD)
        release.set()
        async with asyncio.timeout(60):
            while True:
                try:
                    assert await hasher.hash(GOOD_PASSWORD)
                    break
                except DomainError:
                    await asyncio.sleep(0.001)
    finally:
        release.set()
        hasher.close()


async def test_twenty_customers_at_once_are_not_too_many() -> None:
    hasher = PasswordHasher(cost=4, pepper=PEPPER, workers=1)
    try:
        hashed = await asyncio.gather(*(hasher.hash(GOOD_PASSWORD) for _ in range(20)))
        assert len(set(hashed)) == 20
    finally:
        hasher.close()


def test_work_that_waited_gets_a_thread_of_normal_priority() -> None:
    """As on a machine whose cores are busy: the workers hardly run."""
    began, release = threading.Event(), threading.Event()
    threads = HashingThreads(1, floor_seconds=0.01)

    def work() -> int:
        began.set()
        release.wait()
        return niceness()

    try:
        polite = threads.submit(work)
        began.wait()
        # The only worker is taken; if the floor did not exist, this would never end.
        assert threads.submit(niceness).result(timeout=60) == niceness()
        release.set()
        assert polite.result(timeout=60) == NICENESS
    finally:
        release.set()
        threads.close()


def test_new_work_goes_to_the_workers_in_order() -> None:
    threads = HashingThreads(1, floor_seconds=3600)
    order: list[int] = []
    try:
        futures = [threads.submit(partial(order.append, number)) for number in range(50)]
        for future in futures:
            future.result(timeout=60)
        assert order == list(range(50))
        assert threads.submit(niceness).result(timeout=60) == NICENESS
        with pytest.raises(ZeroDivisionError):
            threads.submit(lambda: 1 / 0).result(timeout=60)
    finally:
        threads.close()


def niceness() -> int:
    return os.getpriority(os.PRIO_PROCESS, threading.get_native_id())


async def test_the_event_loop_runs_while_a_password_is_hashed() -> None:
    hasher = PasswordHasher(cost=10, pepper=PEPPER, workers=1)
    try:
        hashing = asyncio.create_task(hasher.hash(GOOD_PASSWORD))
        turns = 0
        while not hashing.done():
            await asyncio.sleep(0)
            turns += 1
        assert turns > 10
    finally:
        hasher.close()


def test_the_second_entry_of_a_new_password_is_optional_and_must_be_equal() -> None:
    check_confirmation("Mango-Tram-47", None)
    check_confirmation("Mango-Tram-47", "Mango-Tram-47")
    for other in ("", "Mango-Tram-47 ", "mango-tram-47"):
        with pytest.raises(DomainError) as refused:
            check_confirmation("Mango-Tram-47", other)
        assert [violation.field for violation in refused.value.violations] == ["confirm_password"]
