"""A signed-in user proves to know the current password, before the password or the address changes."""

from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from auth_svc.accounts import Credentials, get_credentials, get_user, lock_verified
from auth_svc.passwords import PasswordHasher
from auth_svc.throttle import LoginThrottle
from mesh.db.database import Database
from mesh.errors import DomainError, FieldViolation, Reason


@dataclass(frozen=True, kw_only=True, slots=True)
class CurrentPassword:
    """Verifies the current password of an account, outside of any transaction."""

    database: Database
    hasher: PasswordHasher
    throttle: LoginThrottle

    async def verify(self, user_id: UUID, password: str, *, now: datetime) -> Credentials:
        """Raises CURRENT_PASSWORD_INCORRECT, LOGIN_THROTTLED, OVERLOADED or USER_NOT_FOUND."""
        async with self.database.transaction() as connection:
            await get_user(connection, user_id=user_id)
            credentials = await get_credentials(connection, user_id=user_id)
        # A stolen access token must not allow guessing the password. Counted apart from sign-ins,
        # so that such guesses do not delay the owner's next sign-in.
        account = _subject(user_id)
        await self.throttle.admit(account, now=now)
        try:
            is_right = await self.hasher.verify(password, credentials.password_hash)
        except DomainError:
            await self.throttle.refund_attempt(account)
            raise
        if not is_right:
            raise _wrong()
        await self.throttle.clear(account)
        return credentials

    async def lock(self, connection: AsyncConnection, credentials: Credentials) -> None:
        """Locks the account whose password was verified.

        Raises CURRENT_PASSWORD_INCORRECT if it has changed since, or ACCOUNT_DEACTIVATED.
        """
        if await lock_verified(connection, credentials=credentials) is None:
            raise _wrong()
        await self.throttle.clear_row(connection, _subject(credentials.user_id))


def _subject(user_id: UUID) -> str:
    return f"password of {user_id}"


def _wrong() -> DomainError:
    return DomainError(
        Reason.CURRENT_PASSWORD_INCORRECT,
        "the current password is wrong",
        violations=(FieldViolation("current_password", "is wrong"),),
    )
