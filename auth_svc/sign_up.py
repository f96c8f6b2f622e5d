"""Signing up. Signing in is sign_in.py's part.

`SignUp` opens its own transactions, unlike other domain code: hashing a password takes
long, and no transaction may be open meanwhile.
"""

import hmac
from datetime import datetime

from auth_svc.accounts import Besides, Role, User, insert_user, nothing
from auth_svc.passwords import PasswordHasher, check_policy
from mesh.db.database import Database
from mesh.errors import DomainError, Reason
from mesh.ids import new_id


class SignUp:
    """Makes accounts. Admin sign-up is off without `admin_secret`."""

    def __init__(
        self, *, database: Database, hasher: PasswordHasher, admin_secret: str | None
    ) -> None:
        self._database = database
        self._hasher = hasher
        self._admin_secret = admin_secret

    async def register(
        self,
        *,
        email: str,
        password: str,
        full_name: str,
        phone: str,
        now: datetime,
        besides: Besides = nothing,
    ) -> User:
        """Makes a customer's account, and `besides` in the same transaction.

        Raises PASSWORD_TOO_WEAK or EMAIL_ALREADY_REGISTERED.
        """
        return await self._sign_up(
            role=Role.CUSTOMER,
            email=email,
            password=password,
            full_name=full_name,
            phone=phone,
            now=now,
            besides=besides,
        )

    async def register_admin(
        self,
        *,
        email: str,
        password: str,
        full_name: str,
        phone: str,
        admin_secret: str,
        now: datetime,
        besides: Besides = nothing,
    ) -> User:
        """Makes an admin's account. Raises INVALID_ADMIN_SECRET, and what `register` raises."""
        expected = self._admin_secret
        if expected is None or not hmac.compare_digest(expected.encode(), admin_secret.encode()):
            raise DomainError(Reason.INVALID_ADMIN_SECRET, "admin sign-up needs the right secret")
        return await self._sign_up(
            role=Role.ADMIN,
            email=email,
            password=password,
            full_name=full_name,
            phone=phone,
            now=now,
            besides=besides,
        )

    async def _sign_up(
        self,
        *,
        role: Role,
        email: str,
        password: str,
        full_name: str,
        phone: str,
        now: datetime,
        besides: Besides,
    ) -> User:
        check_policy(password, email=email, full_name=full_name)
        password_hash = await self._hasher.hash(password)
        user = User(
            user_id=new_id(),
            email=email,
            full_name=full_name,
            phone=phone,
            address="",
            role=role,
            is_active=True,
            create_time=now,
            update_time=now,
        )
        async with self._database.transaction() as connection:
            await insert_user(connection, user=user, password_hash=password_hash)
            await besides(connection, user)
        return user
