"""Sign-up of customers and admins.

`SignUp` opens its own transactions, unlike other domain code: no transaction may stay open while a
password is hashed, which takes long.
"""

import hmac
from datetime import datetime

from auth_svc.accounts import InTransaction, Role, User, insert_user, nothing
from auth_svc.passwords import PasswordHasher, check_policy
from mesh.db.database import Database
from mesh.errors import DomainError, Reason
from mesh.ids import new_id


class SignUp:
    """Creates accounts. Without `admin_secret`, admin sign-up is off."""

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
        in_transaction: InTransaction = nothing,
    ) -> User:
        """Creates a customer's account, and calls `in_transaction` in the same transaction.

        Raises PASSWORD_TOO_WEAK, EMAIL_ALREADY_REGISTERED or OVERLOADED.
        """
        return await self._sign_up(
            role=Role.CUSTOMER,
            email=email,
            password=password,
            full_name=full_name,
            phone=phone,
            now=now,
            in_transaction=in_transaction,
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
        in_transaction: InTransaction = nothing,
    ) -> User:
        """Creates an admin's account. Raises INVALID_ADMIN_SECRET, and what `register` raises."""
        expected = self._admin_secret
        if expected is None or not hmac.compare_digest(expected.encode(), admin_secret.encode()):
            raise DomainError(Reason.INVALID_ADMIN_SECRET, "the admin registration secret is wrong")
        return await self._sign_up(
            role=Role.ADMIN,
            email=email,
            password=password,
            full_name=full_name,
            phone=phone,
            now=now,
            in_transaction=in_transaction,
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
        in_transaction: InTransaction,
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
            await in_transaction(connection, user)
        return user
