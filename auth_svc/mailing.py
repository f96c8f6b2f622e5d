"""The mails of auth_svc, queued for mesh/mail. The texts are in mails/."""

from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from uuid import UUID

from sqlalchemy.ext.asyncio import AsyncConnection

from auth_svc.accounts import User
from auth_svc.tables import mails
from mesh.mail.queue import Mail, enqueue
from mesh.mail.templates import Rendered, Templates


class Mailing:
    """Queues mails in the caller's transaction. `reset_url` is the page that takes a token.

    Callers call `wake` after the commit.
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
        """Queues the mail with the token, which is stored nowhere else."""
        rendered = self._templates.render(
            "password_reset",
            full_name=user.full_name,
            # Browsers do not send the fragment to servers, so the token is in no access log.
            url=f"{self._reset_url}#token={token}",
            expire_time=_text(expire_time),
        )
        mail = _mail(user, rendered, key=f"password-reset:{reset_id}", expire_time=expire_time)
        await enqueue(connection, mails, mail, now=now)

    async def password_changed(
        self, connection: AsyncConnection, user: User, *, now: datetime
    ) -> None:
        """Queues the notice to the account's owner, who may not have made the change."""
        rendered = self._templates.render(
            "password_changed", full_name=user.full_name, change_time=_text(now)
        )
        mail = _mail(user, rendered, key=f"password-changed:{user.user_id}:{now.isoformat()}")
        await enqueue(connection, mails, mail, now=now)


def _mail(user: User, rendered: Rendered, *, key: str, expire_time: datetime | None = None) -> Mail:
    return Mail(
        to=user.email,
        subject=rendered.subject,
        text=rendered.text,
        html=rendered.html,
        key=key,
        expire_time=expire_time,
    )


def _text(time: datetime) -> str:
    return f"{time:%d %B %Y, %H:%M} UTC"
