"""Changing one's password while signed in.

`PasswordChange` opens its own transactions, unlike other domain code: hashing a password
takes long, and no transaction may be open meanwhile.
"""

from datetime import datetime, timedelta
from uuid import UUID

from auth_svc import sessions
from auth_svc.accounts import (
    Besides,
    get_credentials,
    get_user,
    lock_verified,
    nothing,
    replace_password,
)
from auth_svc.mailing import Mailing
from auth_svc.password_reset import end_resets
from auth_svc.passwords import PasswordHasher, check_policy, is_same
from auth_svc.throttle import LoginThrottle
from mesh.db.database import Database
from mesh.errors import DomainError, FieldViolation, Reason


class PasswordChange:
    """Replaces a password by another for who knows it."""

    def __init__(
        self,
        *,
        database: Database,
        hasher: PasswordHasher,
        mailing: Mailing,
        throttle: LoginThrottle,
        access_lifetime: timedelta,
    ) -> None:
        self._database = database
        self._hasher = hasher
        self._mailing = mailing
        self._throttle = throttle
        self._access_lifetime = access_lifetime

    async def change(
        self,
        *,
        user_id: UUID,
        session_id: UUID,
        current_password: str,
        new_password: str,
        now: datetime,
        besides: Besides = nothing,
    ) -> datetime:
        """Replaces the password and ends every session but `session_id`.

        Returns when it changed. Raises PASSWORD_TOO_WEAK, CURRENT_PASSWORD_INCORRECT,
        PASSWORD_UNCHANGED, LOGIN_THROTTLED, OVERLOADED, ACCOUNT_DEACTIVATED or USER_NOT_FOUND.
        """
        async with self._database.transaction() as connection:
            user = await get_user(connection, user_id=user_id)
            credentials = await get_credentials(connection, user_id=user_id)
        check_policy(new_password, email=user.email, full_name=user.full_name, field="new_password")
        # Who found a token must not guess the password with it. Not the count of signing in:
        # the owner's next sign-in must not wait for what somebody does in here.
        account = f"password of {user_id}"
        await self._throttle.admit(account, now=now)
        try:
            is_right = await self._hasher.verify(current_password, credentials.password_hash)
        except DomainError:
            await self._throttle.refund_attempt(account)
            raise
        if not is_right:
            raise _wrong_current_password()
        await self._throttle.clear(account)
        if is_same(current_password, new_password):
            raise DomainError(
                Reason.PASSWORD_UNCHANGED,
                "the new password is the one of now",
                violations=(FieldViolation("new_password", "must be another password than now"),),
            )
        password_hash = await self._hasher.hash(new_password)
        async with self._database.transaction() as connection:
            if await lock_verified(connection, credentials=credentials) is None:
                raise _wrong_current_password()
            await self._throttle.clear_row(connection, account)
            await end_resets(connection, user_id=user_id, now=now)
            await self._mailing.password_changed(connection, user, now=now)
            await besides(connection, user)
            await replace_password(
                connection, user_id=user_id, password_hash=password_hash, now=now
            )
            await sessions.end_all(
                connection,
                user_id=user_id,
                keep=session_id,
                access_lifetime=self._access_lifetime,
                now=now,
            )
        self._mailing.wake()
        return now


def _wrong_current_password() -> DomainError:
    return DomainError(
        Reason.CURRENT_PASSWORD_INCORRECT,
        "this is not the password of now",
        violations=(FieldViolation("current_password", "is not the password of now"),),
    )
