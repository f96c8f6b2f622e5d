"""Changing the password of a signed-in user.

`PasswordChange` opens its own transactions, unlike other domain code: no transaction may stay open
while a password is hashed, which takes long.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from auth_svc import sessions
from auth_svc.accounts import (
    InTransaction,
    get_user,
    nothing,
    replace_password,
)
from auth_svc.current_password import CurrentPassword
from auth_svc.email_confirmation import cancel_changes
from auth_svc.mailed_tokens import end_unused
from auth_svc.mailing import Mailing
from auth_svc.passwords import PasswordHasher, check_policy, is_same
from auth_svc.tables import password_resets
from mesh.db.database import Database
from mesh.errors import DomainError, FieldViolation, Reason


@dataclass(frozen=True, kw_only=True, slots=True)
class PasswordChange:
    """Replaces the password of a user who knows the current one."""

    database: Database
    hasher: PasswordHasher
    current_password: CurrentPassword
    mailing: Mailing
    access_lifetime: timedelta

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
        async with self.database.transaction() as connection:
            user = await get_user(connection, user_id=user_id)
        check_policy(new_password, email=user.email, full_name=user.full_name, field="new_password")
        credentials = await self.current_password.verify(user_id, current_password, now=now)
        if is_same(current_password, new_password):
            raise DomainError(
                Reason.PASSWORD_UNCHANGED,
                "the new password equals the current one",
                violations=(
                    FieldViolation("new_password", "must differ from the current password"),
                ),
            )
        password_hash = await self.hasher.hash(new_password)
        async with self.database.transaction() as connection:
            await self.current_password.lock(connection, credentials)
            await end_unused(connection, password_resets, user_id=user_id, now=now)
            await cancel_changes(connection, user, now=now)
            await self.mailing.password_changed(connection, user, now=now)
            await in_transaction(connection, user)
            await replace_password(
                connection, user_id=user_id, password_hash=password_hash, now=now
            )
            await sessions.end_all(
                connection,
                user_id=user_id,
                keep=session_id,
                access_lifetime=self.access_lifetime,
                now=now,
            )
        self.mailing.wake()
        return now
