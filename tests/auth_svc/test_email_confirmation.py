"""An address is verified, and changed, with a link that was mailed to it."""

import re
from datetime import datetime, timedelta
from typing import Any

import pytest

from auth_svc import email_confirmation, mail_requests
from auth_svc.accounts import User
from auth_svc.email_confirmation import LIFETIME
from auth_svc.mail_requests import MAX_PER_HOUR, MIN_PAUSE
from auth_svc.passwords import PasswordHasher
from auth_svc.tables import email_verification_requests, mails, outbox
from auth_svc.tokens import SigningKey
from boxoffice.auth.v1 import auth_event_service_pb2 as stream_pb2
from mesh.db.database import Database
from mesh.errors import DomainError, Reason
from tests.auth_svc.conftest import (
    CONFIRM_URL,
    GOOD_PASSWORD,
    NOW,
    Accounts,
    a_sign_up,
    refusal_of,
    rows,
    signed_in,
)

OLD, NEW = "mira@example.com", "mira@bücher.example"
MINUTE = timedelta(minutes=1)


@pytest.fixture
def accounts(database: Database, hasher: PasswordHasher, key: SigningKey) -> Accounts:
    return Accounts(database, hasher, key, verifies_email=True)


@pytest.fixture
async def mira(accounts: Accounts) -> User:
    return await accounts.register(**a_sign_up())


async def mails_to(database: Database, email: str) -> list[Any]:
    received = [row for row in await rows(database, mails) if row.recipient == email]
    return sorted(received, key=lambda row: row.mail_id)


async def token_to(database: Database, email: str) -> str:
    """The token in the newest mail to an address that has one."""
    pattern = re.compile(rf"{re.escape(CONFIRM_URL)}#token=(\S+)")
    links = [pattern.search(row.text) for row in await mails_to(database, email)]
    return [link[1] for link in links if link is not None][-1]


async def start(accounts: Accounts, user: User, new_email: str = NEW, **changes: Any) -> datetime:
    given = {"current_password": GOOD_PASSWORD, "now": NOW, **changes}
    return await accounts.email_change.start(user_id=user.user_id, new_email=new_email, **given)


async def confirm(
    accounts: Accounts, database: Database, token: str, *, now: datetime = NOW
) -> User:
    async with database.transaction() as connection:
        return await accounts.email_change.confirm(connection, token=token, now=now)


async def resend(accounts: Accounts, database: Database, *, now: datetime) -> None:
    async with database.transaction() as connection:
        await mail_requests.record(connection, email_verification_requests, email=OLD, now=now)
        await mail_requests.answer(
            connection,
            email_verification_requests,
            email_confirmation.verify_again,
            accounts.mailing,
            now=now,
        )


async def test_a_new_account_is_verified_by_the_link(
    accounts: Accounts, database: Database, mira: User
) -> None:
    assert mira.email_verify_time is None
    token = await token_to(database, OLD)
    verified = await confirm(accounts, database, token, now=NOW + MINUTE)
    assert (verified.email, verified.email_verify_time) == (OLD, NOW + MINUTE)
    # A second click changes nothing.
    stored = await accounts.get(mira.user_id)
    assert await confirm(accounts, database, token, now=NOW + 2 * MINUTE) == stored


async def test_tokens_of_an_unverified_user_say_so_until_the_link_is_used(
    accounts: Accounts, database: Database, mira: User
) -> None:
    before = await accounts.get(mira.user_id)
    await confirm(accounts, database, await token_to(database, OLD))
    after = await accounts.get(mira.user_id)
    # The tokens that refuse bookings are revoked, so that clients refresh them.
    assert after.access_version == before.access_version + 1


async def test_an_address_is_changed_by_the_link_to_the_new_one(
    accounts: Accounts, database: Database, mira: User
) -> None:
    expire_time = await start(accounts, mira)
    assert expire_time == NOW + LIFETIME
    assert (await accounts.get(mira.user_id)).email == OLD
    assert "is about to change" in (await mails_to(database, OLD))[-1].subject
    changed = await confirm(accounts, database, await token_to(database, NEW))
    assert (changed.email, changed.email_verify_time) == (NEW, NOW)
    assert "was changed" in (await mails_to(database, OLD))[-1].subject
    # No mail tells one mailbox the address of the other.
    assert not any("bücher" in row.text + row.html for row in await mails_to(database, OLD))
    login: dict[str, Any] = {"password": GOOD_PASSWORD, "now": NOW}
    await accounts.login(email="mira@xn--bcher-kva.example", **login)
    refused = await refusal_of(accounts.login(email=OLD, **login))
    assert refused.reason is Reason.INVALID_CREDENTIALS
    events = [
        stream_pb2.AuthEvent.FromString(row.payload)
        for row in sorted(await rows(database, outbox), key=lambda row: row.sequence)
    ]
    assert [e.user_changed.email for e in events if e.HasField("user_changed")] == [OLD, NEW]


async def test_the_password_is_required(accounts: Accounts, database: Database, mira: User) -> None:
    refused = await refusal_of(start(accounts, mira, current_password="wrong"))
    assert refused.reason is Reason.CURRENT_PASSWORD_INCORRECT
    assert await mails_to(database, NEW) == []


async def test_an_address_of_another_account_is_refused_at_both_steps(
    accounts: Accounts, database: Database, mira: User
) -> None:
    await start(accounts, mira)
    token = await token_to(database, NEW)
    await accounts.register(**a_sign_up(email="mira@xn--bcher-kva.example"))
    for attempt in (confirm(accounts, database, token), start(accounts, mira)):
        assert (await refusal_of(attempt)).reason is Reason.EMAIL_ALREADY_REGISTERED
    assert (await accounts.get(mira.user_id)).email == OLD


async def test_a_later_change_replaces_an_earlier_one_and_leaves_the_verification(
    accounts: Accounts, database: Database, mira: User
) -> None:
    await start(accounts, mira)
    await start(accounts, mira, "mira@example.org")
    refused = await refusal_of(confirm(accounts, database, await token_to(database, NEW)))
    assert refused.reason is Reason.TOKEN_INVALID
    verified = await confirm(accounts, database, await token_to(database, OLD))
    assert verified.email_verify_time == NOW
    # The account has one link left to use at most: using one ends the others.
    refused = await refusal_of(
        confirm(accounts, database, await token_to(database, "mira@example.org"))
    )
    assert refused.reason is Reason.TOKEN_INVALID


@pytest.mark.parametrize("way", ["change", "reset"])
async def test_a_new_password_cancels_a_change(
    accounts: Accounts, database: Database, mira: User, way: str
) -> None:
    await start(accounts, mira)
    if way == "change":
        session = await signed_in(accounts)
        await accounts.change_password(
            user_id=mira.user_id,
            session_id=session.user.user_id,
            current_password=GOOD_PASSWORD,
            new_password="Quiet-Harbour-58",
            now=NOW,
        )
    else:
        await accounts.ask_for_reset(OLD, now=NOW)
        await accounts.answer_resets(now=NOW)
        link = re.search(r"new-password#token=(\S+)", (await mails_to(database, OLD))[-1].text)
        assert link is not None
        await accounts.reset_password(token=link[1], new_password="Quiet-Harbour-58", now=NOW)
        # That link was read at the address, too.
        assert (await accounts.get(mira.user_id)).email_verify_time == NOW
    refused = await refusal_of(confirm(accounts, database, await token_to(database, NEW)))
    assert refused.reason is Reason.TOKEN_INVALID


async def test_a_changed_address_ends_reset_links_in_the_old_mailbox(
    accounts: Accounts, database: Database, mira: User
) -> None:
    await accounts.ask_for_reset(OLD, now=NOW)
    await accounts.answer_resets(now=NOW)
    link = re.search(r"new-password#token=(\S+)", (await mails_to(database, OLD))[-1].text)
    assert link is not None
    await start(accounts, mira)
    await confirm(accounts, database, await token_to(database, NEW))
    refused = await refusal_of(
        accounts.reset_password(token=link[1], new_password="Quiet-Harbour-58", now=NOW)
    )
    assert refused.reason is Reason.TOKEN_INVALID


async def test_a_link_expires_and_others_are_invalid(
    accounts: Accounts, database: Database, mira: User
) -> None:
    await start(accounts, mira)
    token = await token_to(database, NEW)
    late = await refusal_of(confirm(accounts, database, token, now=NOW + LIFETIME))
    assert late.reason is Reason.TOKEN_EXPIRED
    for other in ("x", token + "x", token.lower()):
        refused = await refusal_of(confirm(accounts, database, other))
        assert refused.reason is Reason.TOKEN_INVALID


async def test_mails_to_strangers_are_few(accounts: Accounts, mira: User) -> None:
    """A signed-in user could send mails to any address."""
    for number in range(MAX_PER_HOUR - 1):  # the first was that of the sign-up
        await start(accounts, mira, f"{number}@example.org")
    refused = await refusal_of(start(accounts, mira, "one-more@example.org"))
    assert refused.reason is Reason.RATE_LIMITED
    assert refused.retry_after_seconds == 3600
    await start(accounts, mira, "later@example.org", now=NOW + timedelta(hours=1))


async def test_the_verification_is_sent_again_on_request(
    accounts: Accounts, database: Database, mira: User
) -> None:
    first = await token_to(database, OLD)
    await resend(accounts, database, now=NOW)
    assert len(await mails_to(database, OLD)) == 1
    for number in range(1, MAX_PER_HOUR + 2):
        await resend(accounts, database, now=NOW + number * MIN_PAUSE)
    assert len(await mails_to(database, OLD)) == MAX_PER_HOUR
    assert (await refusal_of(confirm(accounts, database, first))).reason is Reason.TOKEN_INVALID
    await confirm(accounts, database, await token_to(database, OLD))
    await resend(accounts, database, now=NOW + timedelta(hours=2))
    assert len(await mails_to(database, OLD)) == MAX_PER_HOUR


async def test_a_name_that_looks_like_a_link_is_in_no_mail(
    accounts: Accounts, database: Database
) -> None:
    """Anyone can register the address of a stranger, with any name."""
    await accounts.register(**a_sign_up(full_name="win at evil.example"))
    [mail] = await mails_to(database, OLD)
    assert "evil" not in mail.text + mail.html + mail.subject
    assert "Hello,\n" in mail.text


async def test_a_deactivated_account_changes_nothing(
    accounts: Accounts, database: Database, mira: User
) -> None:
    token = await token_to(database, OLD)
    async with database.transaction() as connection:
        from auth_svc.users import update_user

        await update_user(
            connection,
            user_id=mira.user_id,
            role=None,
            is_active=False,
            access_lifetime=timedelta(minutes=15),
            now=NOW,
        )
    with pytest.raises(DomainError) as refused:
        await confirm(accounts, database, token)
    assert refused.value.reason is Reason.ACCOUNT_DEACTIVATED
