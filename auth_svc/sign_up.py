"""Sign-up of customers and admins.

`SignUp` opens its own transactions, unlike other domain code: no transaction may stay open while a
password is hashed, which takes long.
"""

import hmac
from dataclasses import dataclass
from datetime import datetime

from auth_svc.accounts import InTransaction, Role, User, insert_user, nothing
from auth_svc.email_confirmation import verify_new
from auth_svc.mailing import Mailing
from auth_svc.passwords import PasswordHasher, check_policy
from auth_svc.sign_in_guard import SignInGuard
from mesh.db.database import Database
from mesh.errors import DomainError, Reason
from mesh.ids import new_id


@dataclass(frozen=True, kw_only=True, slots=True)
class SignUp:
    """Creates accounts. Without `admin_secret`, admin sign-up is off.

    With `verifies_email`, a new account's address receives a link that verifies it.
    """

    database: Database
    hasher: PasswordHasher
    guard: SignInGuard
    mailing: Mailing
    admin_secret: str | None
    verifies_email: bool

    async def register(
        self,
        *,
        email: str,
        password: str,
        full_name: str,
        phone: str,
        now: datetime,
        address: str = "",
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
            address=address,
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
        address: str = "",
        in_transaction: InTransaction = nothing,
    ) -> User:
        """Creates an admin's account. Raises INVALID_ADMIN_SECRET, and what `register` raises."""
        expected = self.admin_secret
        if expected is None or not hmac.compare_digest(expected.encode(), admin_secret.encode()):
            raise DomainError(Reason.INVALID_ADMIN_SECRET, "the admin registration secret is wrong")
        return await self._sign_up(
            role=Role.ADMIN,
            email=email,
            password=password,
            full_name=full_name,
            phone=phone,
            now=now,
            address=address,
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
        address: str,
        in_transaction: InTransaction,
    ) -> User:
        check_policy(password, email=email, full_name=full_name)
        password_hash = await self.hasher.hash(password)
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
        async with self.database.transaction() as connection:
            await insert_user(connection, user=user, password_hash=password_hash)
            await self.guard.remember(connection, user_id=user.user_id, address=address, now=now)
            if self.verifies_email:
                await verify_new(connection, self.mailing, user, now=now)
            await in_transaction(connection, user)
        self.mailing.wake()
        return user
