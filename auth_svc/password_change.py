"""Changing the password of a signed-in user.

`PasswordChange` opens its own transactions, unlike other domain code: no transaction may stay open
while a password is hashed, which takes long.
"""

from datetime import datetime, timedelta
from uuid import UUID

from auth_svc import sessions
from auth_svc.accounts import (
    InTransaction,
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
    """Replaces the password of a user who knows the current one."""

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
        in_transaction: InTransaction = nothing,
    ) -> datetime:
        """Replaces the password and ends every session but `session_id`. Returns the change time.

        `in_transaction` is called in the last transaction. Raises PASSWORD_TOO_WEAK, CURRENT_PASSWORD_INCORRECT,
        PASSWORD_UNCHANGED, LOGIN_THROTTLED, OVERLOADED, ACCOUNT_DEACTIVATED or USER_NOT_FOUND.
        """
        async with self._database.transaction() as connection:
            user = await get_user(connection, user_id=user_id)
            credentials = await get_credentials(connection, user_id=user_id)
        check_policy(new_password, email=user.email, full_name=user.full_name, field="new_password")
        # A stolen access token must not allow guessing the password. Counted apart from sign-ins,
        # so that such guesses do not delay the owner's next sign-in.
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
                "the new password equals the current one",
                violations=(
                    FieldViolation("new_password", "must differ from the current password"),
                ),
            )
        password_hash = await self._hasher.hash(new_password)
        async with self._database.transaction() as connection:
            if await lock_verified(connection, credentials=credentials) is None:
                raise _wrong_current_password()
            await self._throttle.clear_row(connection, account)
            await end_resets(connection, user_id=user_id, now=now)
            await self._mailing.password_changed(connection, user, now=now)
            await in_transaction(connection, user)
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
        "the current password is wrong",
        violations=(FieldViolation("current_password", "is wrong"),),
    )
