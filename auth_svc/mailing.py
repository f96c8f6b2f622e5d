"""The mails of auth_svc, queued for mesh/mail. The texts are in mails/."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from auth_svc.accounts import User
from auth_svc.tables import mails
from mesh.ids import new_id
from mesh.mail.queue import Mail, enqueue
from mesh.mail.templates import Rendered, Templates


class Mailing:
    """Queues mails in the caller's transaction. The URLs are the pages that take a token.

    Callers call `wake` after the commit.
    """

    def __init__(self, *, reset_url: str, confirm_url: str, wake: Callable[[], None]) -> None:
        self._reset_url = reset_url
        self._confirm_url = confirm_url
        self.wake = wake

    async def password_reset(
        self,
        connection: AsyncConnection,
        user: User,
        *,
        reset_id: UUID,
        token: str,
        expire_time: datetime,
        now: datetime,
    ) -> None:
        """Queues the mail with the token, which is stored nowhere else."""
        rendered = render(
            "password_reset",
            user,
            url=_link(self._reset_url, token),
            expire_time=_text(expire_time),
        )
        key = f"password-reset:{reset_id}"
        await self._enqueue(connection, user.email, rendered, key, now, expire_time)

    async def email_verification(
        self,
        connection: AsyncConnection,
        user: User,
        *,
        token: str,
        expire_time: datetime,
        now: datetime,
    ) -> None:
        """Queues the mail with the link that verifies the address of the account."""
        rendered = render(
            "email_verification",
            user,
            url=_link(self._confirm_url, token),
            expire_time=_text(expire_time),
        )
        key = f"email-verification:{new_id()}"
        await self._enqueue(connection, user.email, rendered, key, now, expire_time)

    async def email_change(
        self,
        connection: AsyncConnection,
        user: User,
        *,
        to: str,
        token: str,
        expire_time: datetime,
        now: datetime,
    ) -> None:
        """Queues the mail to the new address, with the link that makes it the account's."""
        rendered = render(
            "email_change",
            user,
            url=_link(self._confirm_url, token),
            expire_time=_text(expire_time),
        )
        await self._enqueue(connection, to, rendered, f"email-change:{new_id()}", now, expire_time)

    async def email_change_notice(
        self, connection: AsyncConnection, user: User, *, now: datetime
    ) -> None:
        """Queues the notice to the present address that a change was started."""
        rendered = render("email_change_notice", user, time=_text(now))
        await self._enqueue(
            connection, user.email, rendered, f"email-change-notice:{new_id()}", now
        )

    async def email_changed(
        self, connection: AsyncConnection, user: User, *, now: datetime
    ) -> None:
        """Queues the notice to the previous address, which `user` still has."""
        rendered = render("email_changed", user, change_time=_text(now))
        await self._enqueue(connection, user.email, rendered, f"email-changed:{new_id()}", now)

    async def password_changed(
        self, connection: AsyncConnection, user: User, *, now: datetime
    ) -> None:
        """Queues the notice to the account's owner, who may not have made the change."""
        rendered = render("password_changed", user, change_time=_text(now))
        key = f"password-changed:{user.user_id}:{now.isoformat()}"
        await self._enqueue(connection, user.email, rendered, key, now)

    async def _enqueue(
        self,
        connection: AsyncConnection,
        to: str,
        rendered: Rendered,
        key: str,
        now: datetime,
        expire_time: datetime | None = None,
    ) -> None:
        mail = Mail(to, rendered.subject, rendered.text, rendered.html, key, expire_time)
        await enqueue(connection, mails, mail, now=now)


def render(name: str, user: User, **values: str) -> Rendered:
    """Fills the templates of a mail to a user."""
    return _TEMPLATES.render(name, full_name=user.full_name, **values)


def _link(page: str, token: str) -> str:
    # Browsers do not send the fragment to servers, so the token is in no access log.
    return f"{page}#token={token}"


def _text(time: datetime) -> str:
    return f"{time:%d %B %Y, %H:%M} UTC"


_TEMPLATES = Templates(Path(__file__).parent / "mails")
