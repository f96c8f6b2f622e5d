"""Sign-in: tokens for a password or for a refresh token.

`SignIn` opens its own transactions, unlike other domain code: no transaction may stay open while a
password is verified, which takes long.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime, timedelta

from auth_svc import sessions, tokens
from auth_svc.accounts import (
    User,
    find_credentials,
    get_user,
    lock_verified,
    replace_hash,
    require_active,
)
from auth_svc.passwords import PasswordHasher
from auth_svc.sign_in_guard import NO_SOURCE, SignInGuard, Source
from auth_svc.tokens import SigningKey
from mesh.db.database import Database
from mesh.errors import DomainError, Reason
from mesh.text import email_key


@dataclass(frozen=True, slots=True)
class SignedIn:
    """A session's newest tokens and their lifetimes; `device_token` after a sign-in only."""

    user: User
    access_token: str
    access_lifetime: timedelta
    refresh_token: str
    refresh_lifetime: timedelta
    device_token: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class SignIn:
    """Starts and refreshes sessions."""

    database: Database
    hasher: PasswordHasher
    guard: SignInGuard
    signing_key: Callable[[], SigningKey]
    refresh_key: bytes
    access_lifetime: timedelta
    refresh_lifetime: timedelta
    refreshes_per_minute: int
    requires_verified_email: bool = False

    async def login(
        self, *, email: str, password: str, now: datetime, source: Source = NO_SOURCE
    ) -> SignedIn:
        """Starts a session.

        Raises INVALID_CREDENTIALS for an unknown e-mail address and for a wrong password, after the
        same time; LOGIN_THROTTLED for both; OVERLOADED; and, only for the right password,
        ACCOUNT_DEACTIVATED.
        """
        async with self.database.transaction() as connection:
            credentials = await find_credentials(connection, email=email)
            is_known = await self.guard.is_known(connection, credentials, source, now=now)
        # Before verification, which occupies a core for a fifth of a second.
        attempt = await self.guard.admit(
            email_key(email), credentials, source, is_known=is_known, now=now
        )
        try:
            is_right = await self.hasher.verify(
                password, credentials.password_hash if credentials else None
            )
        except DomainError:
            await self.guard.refund(attempt)
            raise
        if credentials is None or not is_right:
            raise _wrong_credentials()
        fresh_hash = None
        if self.hasher.is_outdated(credentials.password_hash):
            fresh_hash = await self.hasher.hash(password)
        async with self.database.transaction() as connection:
            user = await lock_verified(connection, credentials=credentials)
            if user is None:
                raise _wrong_credentials()
            if fresh_hash is not None:
                await replace_hash(connection, user_id=user.user_id, password_hash=fresh_hash)
            session = await sessions.start(
                connection, user_id=user.user_id, idle_lifetime=self.refresh_lifetime, now=now
            )
            await self.guard.clear_rows(connection, attempt, user_id=user.user_id, now=now)
        await self.guard.clear(attempt)
        return replace(
            self._signed_in(user, session, now=now),
            device_token=self.guard.device_token(credentials, source),
        )

    async def refresh(self, *, refresh_token: str, now: datetime) -> SignedIn:
        """The next tokens of a session.

        Raises TOKEN_INVALID, TOKEN_EXPIRED, TOKEN_WRONG_TYPE, ACCOUNT_DEACTIVATED, RATE_LIMITED,
        or TOKEN_REUSED after ending the session.
        """
        async with self.database.transaction() as connection:
            session = await sessions.rotate(
                connection,
                refresh_token=refresh_token,
                key=self.refresh_key,
                idle_lifetime=self.refresh_lifetime,
                access_lifetime=self.access_lifetime,
                limit_per_minute=self.refreshes_per_minute,
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
            self.signing_key(),
            user_id=user.user_id,
            session_id=session.session_id,
            role=user.role,
            version=user.access_version,
            must_verify_email=self.requires_verified_email and user.email_verify_time is None,
            lifetime=self.access_lifetime,
            now=now,
        )
        return SignedIn(
            user,
            access_token,
            self.access_lifetime,
            session.refresh_token,
            session.expire_time - now,
        )


def _wrong_credentials() -> DomainError:
    # The same text for both cases: it must not reveal which addresses have accounts.
    return DomainError(Reason.INVALID_CREDENTIALS, "wrong e-mail address or password")
