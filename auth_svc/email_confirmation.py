"""Proof that a user receives mails at an address: at sign-up, and before an address is changed.

The proof is a token from a mail, stored as a hash. One table serves both: confirming an address
that is not the account's makes it the account's.
"""

from datetime import datetime, timedelta
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from auth_svc import mail_requests, outbox
from auth_svc.accounts import User, find_by_email_key, get_user, require_active
from auth_svc.mail_requests import MAX_PER_HOUR, may_have_mail
from auth_svc.mailed_tokens import end_unused, hash_of, new_token
from auth_svc.mailing import Mailing
from auth_svc.tables import (
    email_confirmations,
    email_verification_requests,
    password_resets,
    users,
)
from mesh.errors import DomainError, Reason
from mesh.text import email_key

LIFETIME = timedelta(hours=24)
"""How long a token is valid."""


async def verify_new(
    connection: AsyncConnection, mailing: Mailing, user: User, *, now: datetime
) -> None:
    """Queues the mail with the link that verifies the address of a new account."""
    token = await _issue(connection, user, email=user.email, now=now)
    await mailing.email_verification(
        connection, user, token=token, expire_time=now + LIFETIME, now=now
    )


async def request_again(connection: AsyncConnection, *, email: str, now: datetime) -> None:
    """Records a request for another verification mail. The same work for every address."""
    await mail_requests.record(connection, email_verification_requests, email=email, now=now)


async def verify_again(
    connection: AsyncConnection, mailing: Mailing, user: User, *, now: datetime
) -> None:
    """Queues the mail again, unless the address is verified or a limit is reached."""
    user = await get_user(connection, user_id=user.user_id, lock=True)
    if user.email_verify_time is None and await may_have_mail(
        connection, email_confirmations, user, now=now
    ):
        await verify_new(connection, mailing, user, now=now)


async def start_change(
    connection: AsyncConnection, mailing: Mailing, *, user_id: UUID, new_email: str, now: datetime
) -> datetime:
    """Queues the mail with the link to the new address, and a notice to the present one.

    Returns when the link expires. Raises USER_NOT_FOUND, ACCOUNT_DEACTIVATED,
    EMAIL_ALREADY_REGISTERED, or RATE_LIMITED after MAX_PER_HOUR mails in an hour.
    """
    user = await get_user(connection, user_id=user_id, lock=True)
    require_active(user)
    owner = await find_by_email_key(connection, key=email_key(new_email))
    # The account's own address is allowed: the user may correct upper and lower case.
    if owner is not None and owner.user_id != user_id:
        raise _already_registered()
    await _refuse_many(connection, user_id, now=now)
    await cancel_changes(connection, user, now=now)
    token = await _issue(connection, user, email=new_email, now=now)
    expire_time = now + LIFETIME
    await mailing.email_change(
        connection, user, to=new_email, token=token, expire_time=expire_time, now=now
    )
    await mailing.email_change_notice(connection, user, now=now)
    return expire_time


async def confirm(
    connection: AsyncConnection, mailing: Mailing, *, token: str, now: datetime
) -> User:
    """Confirms the address that the token was mailed to, and makes it the account's.

    Repeating it has no effect. Raises TOKEN_INVALID, TOKEN_EXPIRED, ACCOUNT_DEACTIVATED or
    EMAIL_ALREADY_REGISTERED.
    """
    rows = await connection.execute(
        sa.select(email_confirmations).where(email_confirmations.c.token_hash == hash_of(token))
    )
    row = rows.one_or_none()
    if row is None:
        raise _invalid_token()
    # The account is locked first, as everywhere: this orders two uses of one token.
    user = await get_user(connection, user_id=row.user_id, lock=True)
    require_active(user)
    ended = await connection.scalar(
        sa.select(email_confirmations.c.use_time).where(
            email_confirmations.c.token_hash == hash_of(token)
        )
    )
    is_present = row.email == user.email
    if ended is not None:
        if is_present and user.email_verify_time is not None:
            return user
        raise _invalid_token()
    if now >= row.expire_time:
        raise DomainError(Reason.TOKEN_EXPIRED, "the link has expired; request another one")
    await end_unused(connection, email_confirmations, user_id=user.user_id, now=now)
    await _set_email(connection, user, email=row.email, now=now)
    if not is_present:
        # Links in the old mailbox must not change the password any more.
        await end_unused(connection, password_resets, user_id=user.user_id, now=now)
        await mailing.email_changed(connection, user, now=now)
        await outbox.user_changed(
            connection,
            user_id=user.user_id,
            email=row.email,
            full_name=user.full_name,
            phone=user.phone,
            now=now,
        )
    return await get_user(connection, user_id=user.user_id)


async def mark_verified(connection: AsyncConnection, *, user_id: UUID, now: datetime) -> None:
    """The user used a link that was mailed to the present address."""
    await connection.execute(
        sa.update(users)
        .where(users.c.user_id == user_id, users.c.email_verify_time.is_(None))
        .values(email_verify_time=now)
    )


async def cancel_changes(connection: AsyncConnection, user: User, *, now: datetime) -> None:
    """Cancels a started change: whoever started it may not be the owner. Verification stays."""
    await connection.execute(
        sa.update(email_confirmations)
        .where(
            email_confirmations.c.user_id == user.user_id,
            email_confirmations.c.email != user.email,
            email_confirmations.c.use_time.is_(None),
        )
        .values(use_time=now)
    )


async def _issue(connection: AsyncConnection, user: User, *, email: str, now: datetime) -> str:
    """A new token, which replaces an earlier one for this address."""
    await connection.execute(
        sa.update(email_confirmations)
        .where(
            email_confirmations.c.user_id == user.user_id,
            email_confirmations.c.email == email,
            email_confirmations.c.use_time.is_(None),
        )
        .values(use_time=now)
    )
    token = new_token()
    await connection.execute(
        sa.insert(email_confirmations).values(
            token_hash=hash_of(token),
            user_id=user.user_id,
            email=email,
            create_time=now,
            expire_time=now + LIFETIME,
        )
    )
    return token


async def _set_email(connection: AsyncConnection, user: User, *, email: str, now: datetime) -> None:
    try:
        async with connection.begin_nested():
            await connection.execute(
                sa.update(users)
                .where(users.c.user_id == user.user_id)
                .values(
                    email=email,
                    email_key=email_key(email),
                    email_verify_time=now,
                    update_time=sa.func.greatest(users.c.update_time, now),
                )
            )
    except sa.exc.IntegrityError:
        # The address was registered after the change was started.
        raise _already_registered() from None


async def _refuse_many(connection: AsyncConnection, user_id: UUID, *, now: datetime) -> None:
    hour = timedelta(hours=1)
    issued = email_confirmations.c
    recent = await connection.execute(
        sa.select(issued.create_time)
        .where(issued.user_id == user_id, issued.create_time > now - hour)
        .order_by(issued.create_time.desc())
        .limit(MAX_PER_HOUR)
    )
    times = recent.scalars().all()
    if len(times) == MAX_PER_HOUR:
        wait = times[-1] + hour - now
        raise DomainError(
            Reason.RATE_LIMITED,
            f"at most {MAX_PER_HOUR} of these mails are sent in an hour",
            retry_after_seconds=wait.total_seconds(),
        )


def _already_registered() -> DomainError:
    return DomainError(Reason.EMAIL_ALREADY_REGISTERED, "another account has this e-mail address")


def _invalid_token() -> DomainError:
    return DomainError(
        Reason.TOKEN_INVALID, "the link is invalid or was replaced; request another one"
    )
