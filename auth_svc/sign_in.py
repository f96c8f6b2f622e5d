"""Sign-in: tokens for a password or for a refresh token.

`SignIn` opens its own transactions, unlike other domain code: no transaction may stay open while a
password is verified, which takes long.
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from auth_svc import sessions, tokens
from auth_svc.accounts import (
    User,
    email_key,
    find_credentials,
    get_user,
    lock_verified,
    replace_hash,
    require_active,
)
from auth_svc.passwords import PasswordHasher
from auth_svc.throttle import LoginThrottle
from auth_svc.tokens import SigningKey
from mesh.db.database import Database
from mesh.errors import DomainError, Reason


@dataclass(frozen=True, slots=True)
class SignedIn:
    """A session's newest tokens and their lifetimes."""

    user: User
    access_token: str
    access_lifetime: timedelta
    refresh_token: str
    refresh_lifetime: timedelta


class SignIn:
    """Starts and refreshes sessions."""

    def __init__(
        self,
        *,
        database: Database,
        hasher: PasswordHasher,
        throttle: LoginThrottle,
        signing_key: Callable[[], SigningKey],
        refresh_key: bytes,
        access_lifetime: timedelta,
        refresh_lifetime: timedelta,
        refreshes_per_minute: int,
    ) -> None:
        self._database = database
        self._hasher = hasher
        self._throttle = throttle
        self._signing_key = signing_key
        self._refresh_key = refresh_key
        self._access_lifetime = access_lifetime
        self._refresh_lifetime = refresh_lifetime
        self._refreshes_per_minute = refreshes_per_minute

    async def login(self, *, email: str, password: str, now: datetime) -> SignedIn:
        """Starts a session.

        Raises INVALID_CREDENTIALS for an unknown e-mail address and for a wrong password, after the
        same time; LOGIN_THROTTLED for both; OVERLOADED; and, only for the right password,
        ACCOUNT_DEACTIVATED.
        """
        account = email_key(email)
        # Before verification, which occupies a core for a fifth of a second.
        await self._throttle.admit(account, now=now)
        async with self._database.transaction() as connection:
            credentials = await find_credentials(connection, email=email)
        try:
            is_right = await self._hasher.verify(
                password, credentials.password_hash if credentials else None
            )
        except DomainError:
            await self._throttle.refund_attempt(account)
            raise
        if credentials is None or not is_right:
            raise _wrong_credentials()
        fresh_hash = None
        if self._hasher.is_outdated(credentials.password_hash):
            fresh_hash = await self._hasher.hash(password)
        async with self._database.transaction() as connection:
            user = await lock_verified(connection, credentials=credentials)
            if user is None:
                raise _wrong_credentials()
            if fresh_hash is not None:
                await replace_hash(connection, user_id=user.user_id, password_hash=fresh_hash)
            session = await sessions.start(
                connection, user_id=user.user_id, idle_lifetime=self._refresh_lifetime, now=now
            )
            await self._throttle.clear_row(connection, account)
        await self._throttle.clear(account)
        return self._signed_in(user, session, now=now)

    async def refresh(self, *, refresh_token: str, now: datetime) -> SignedIn:
        """The next tokens of a session.

        Raises TOKEN_INVALID, TOKEN_EXPIRED, TOKEN_WRONG_TYPE, ACCOUNT_DEACTIVATED, RATE_LIMITED,
        or TOKEN_REUSED after ending the session.
        """
        async with self._database.transaction() as connection:
            session = await sessions.rotate(
                connection,
                refresh_token=refresh_token,
                key=self._refresh_key,
                idle_lifetime=self._refresh_lifetime,
                access_lifetime=self._access_lifetime,
                limit_per_minute=self._refreshes_per_minute,
                now=now,
            )
            if session is not None:
                user = await get_user(connection, user_id=session.user_id)
                require_active(user)
        # Outside of the block: an error inside would roll back the end of the session.
        if session is None:
            raise DomainError(
                Reason.TOKEN_REUSED, "this refresh token was used before; sign in again"
            )
        return self._signed_in(user, session, now=now)

    def _signed_in(self, user: User, session: sessions.Tokens, *, now: datetime) -> SignedIn:
        access_token = tokens.issue(
            self._signing_key(),
            user_id=user.user_id,
            session_id=session.session_id,
            role=user.role,
            version=user.access_version,
            lifetime=self._access_lifetime,
            now=now,
        )
        return SignedIn(
            user,
            access_token,
            self._access_lifetime,
            session.refresh_token,
            session.expire_time - now,
        )


def _wrong_credentials() -> DomainError:
    # The same text for both cases: it must not reveal which addresses have accounts.
    return DomainError(Reason.INVALID_CREDENTIALS, "wrong e-mail address or password")
