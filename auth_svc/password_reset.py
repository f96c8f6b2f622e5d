"""Password reset with a token from a mail.

mail_requests.py answers the requests for such mails.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from auth_svc import mail_requests, sessions
from auth_svc.accounts import (
    InTransaction,
    User,
    get_user,
    nothing,
    replace_password,
    require_active,
)
from auth_svc.email_confirmation import cancel_changes, mark_verified
from auth_svc.mail_requests import may_have_mail
from auth_svc.mailed_tokens import end_unused, hash_of, new_token
from auth_svc.mailing import Mailing
from auth_svc.passwords import PasswordHasher, check_policy
from auth_svc.sign_in_guard import SignInGuard
from auth_svc.tables import password_reset_requests, password_resets
from auth_svc.throttle import LoginThrottle
from mesh.db.database import Database
from mesh.errors import DomainError, Reason
from mesh.ids import new_id
from mesh.text import email_key

LIFETIME = timedelta(minutes=30)
"""How long a token is valid."""


async def request(connection: AsyncConnection, *, email: str, now: datetime) -> None:
    """Records a request for this address. The same work for every address."""
    await mail_requests.record(connection, password_reset_requests, email=email, now=now)


async def issue_due(
    connection: AsyncConnection, mailing: Mailing, user: User, *, now: datetime
) -> None:
    """Queues the mail with a token, unless the account received many."""
    if not await may_have_mail(connection, password_resets, user, now=now):
        return
    token = new_token()
    await connection.execute(
        sa.insert(password_resets).values(
            token_hash=hash_of(token),
            user_id=user.user_id,
            create_time=now,
            expire_time=now + LIFETIME,
        )
    )
    await mailing.password_reset(
        connection, user, reset_id=new_id(), token=token, expire_time=now + LIFETIME, now=now
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class PasswordReset:
    """Exchanges a token for a new password.

    Opens its own transactions, unlike other domain code: no transaction may stay open while a
    password is hashed, which takes long.
    """

    database: Database
    hasher: PasswordHasher
    mailing: Mailing
    throttle: LoginThrottle
    guard: SignInGuard
    access_lifetime: timedelta

    async def reset(
        self,
        *,
        token: str,
        new_password: str,
        now: datetime,
        address: str = "",
        in_transaction: InTransaction = nothing,
    ) -> None:
        """Replaces the password, ends all sessions and invalidates all tokens of the account.

        `in_transaction` is called in the last transaction. Raises TOKEN_INVALID, TOKEN_EXPIRED, PASSWORD_TOO_WEAK or ACCOUNT_DEACTIVATED.
        """
        token_hash = hash_of(token)
        async with self.database.transaction() as connection:
            user = await get_user(
                connection, user_id=await _owner(connection, token_hash=token_hash, now=now)
            )
        require_active(user)
        check_policy(new_password, email=user.email, full_name=user.full_name, field="new_password")
        password_hash = await self.hasher.hash(new_password)
        async with self.database.transaction() as connection:
            # The account is locked first, as everywhere: this orders two uses of one token.
            user = await get_user(connection, user_id=user.user_id, lock=True)
            require_active(user)
            await _owner(connection, token_hash=token_hash, now=now)
            await end_unused(connection, password_resets, user_id=user.user_id, now=now)
            # The link was mailed to the present address.
            await mark_verified(connection, user_id=user.user_id, now=now)
            await cancel_changes(connection, user, now=now)
            await replace_password(
                connection, user_id=user.user_id, password_hash=password_hash, now=now
            )
            await sessions.end_all(
                connection, user_id=user.user_id, access_lifetime=self.access_lifetime, now=now
            )
            await self.mailing.password_changed(connection, user, now=now)
            await in_transaction(connection, user)
            await self.throttle.clear_row(connection, email_key(user.email))
            await self.guard.remember(connection, user_id=user.user_id, address=address, now=now)
        await self.throttle.clear(email_key(user.email))
        self.mailing.wake()


async def _owner(connection: AsyncConnection, *, token_hash: bytes, now: datetime) -> UUID:
    """The id of the account whose password a token may replace.

    Raises TOKEN_INVALID or TOKEN_EXPIRED.
    """
    rows = await connection.execute(
        sa.select(
            password_resets.c.user_id, password_resets.c.use_time, password_resets.c.expire_time
        ).where(password_resets.c.token_hash == token_hash)
    )
    reset = rows.one_or_none()
    if reset is None or reset.use_time is not None:
        raise DomainError(
            Reason.TOKEN_INVALID, "the link is invalid or was used already; request another one"
        )
    if now >= reset.expire_time:
        raise DomainError(Reason.TOKEN_EXPIRED, "the link has expired; request another one")
    user_id: UUID = reset.user_id
    return user_id
