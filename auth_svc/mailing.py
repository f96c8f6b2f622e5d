"""What auth_svc writes to people. Sending is mesh/mail's part; the texts are in mails/."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from auth_svc.accounts import User
from auth_svc.tables import mails
from mesh.mail.queue import Mail, enqueue
from mesh.mail.templates import Templates


class Mailing:
    """Queues mails in the caller's transaction. `reset_url` is the page that takes a token.

    `wake` is told once something may have been queued and committed.
    """

    def __init__(self, *, reset_url: str, wake: Callable[[], None]) -> None:
        self._templates = Templates(Path(__file__).parent / "mails")
        self._reset_url = reset_url
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
        """The link with the token, which exists in this mail only."""
        rendered = self._templates.render(
            "password_reset",
            full_name=user.full_name,
            # In the fragment: browsers send it to no server, so it is in no log on the way.
            url=f"{self._reset_url}#token={token}",
            expire_time=_text(expire_time),
        )
        mail = Mail(
            to=user.email,
            subject=rendered.subject,
            text=rendered.text,
            html=rendered.html,
            key=f"password-reset:{reset_id}",
            expire_time=expire_time,
        )
        await enqueue(connection, mails, mail, now=now)

    async def password_changed(
        self, connection: AsyncConnection, user: User, *, now: datetime
    ) -> None:
        """Tells the owner, who may be another than the one who changed it."""
        rendered = self._templates.render(
            "password_changed", full_name=user.full_name, change_time=_text(now)
        )
        mail = Mail(
            to=user.email,
            subject=rendered.subject,
            text=rendered.text,
            html=rendered.html,
            key=f"password-changed:{user.user_id}:{now.isoformat()}",
        )
        await enqueue(connection, mails, mail, now=now)


def _text(time: datetime) -> str:
    return f"{time:%d %B %Y, %H:%M} UTC"
