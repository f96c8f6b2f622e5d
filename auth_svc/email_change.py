"""Changing the e-mail address of a signed-in user, who proves to know the password.

`EmailChange` opens its own transactions, unlike other domain code: no transaction may stay open
while a password is verified, which takes long.
"""

from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from auth_svc import email_confirmation, sessions
from auth_svc.accounts import InTransaction, User, get_user, nothing
from auth_svc.current_password import CurrentPassword
from auth_svc.mailing import Mailing
from mesh.db.database import Database


@dataclass(frozen=True, kw_only=True, slots=True)
class EmailChange:
    """Starts the change and completes it with the token from the mail.

    With `is_required`, confirming an address revokes the access tokens that refuse bookings.
    """

    database: Database
    current_password: CurrentPassword
    mailing: Mailing
    access_lifetime: timedelta
    is_required: bool

    async def start(
        self,
        *,
        user_id: UUID,
        new_email: str,
        current_password: str,
        now: datetime,
        in_transaction: InTransaction = nothing,
    ) -> datetime:
        """Queues the mails. Returns when the link expires.

        `in_transaction` is called in the last transaction. Raises CURRENT_PASSWORD_INCORRECT,
        LOGIN_THROTTLED, OVERLOADED and what `email_confirmation.start_change` raises.
        """
        credentials = await self.current_password.verify(user_id, current_password, now=now)
        async with self.database.transaction() as connection:
            await self.current_password.lock(connection, credentials)
            expire_time = await email_confirmation.start_change(
                connection, self.mailing, user_id=user_id, new_email=new_email, now=now
            )
            await in_transaction(connection, await get_user(connection, user_id=user_id))
        self.mailing.wake()
        return expire_time

    async def confirm(self, connection: AsyncConnection, *, token: str, now: datetime) -> User:
        """Completes a verification or a change. Raises what `email_confirmation.confirm` raises."""
        user = await email_confirmation.confirm(connection, self.mailing, token=token, now=now)
        if self.is_required and user.email_verify_time == now:
            await sessions.revoke_access(
                connection, user_id=user.user_id, access_lifetime=self.access_lifetime, now=now
            )
        return user
