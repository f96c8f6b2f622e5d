"""The loop that sends what is queued. Any number of processes may run it."""

import asyncio
import logging
from datetime import timedelta
from email.headerregistry import Address
from email.message import EmailMessage

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.clock import Clock
from mesh.db.database import Database
from mesh.mail import queue
from mesh.mail.files import FileTransport
from mesh.mail.message import UnsendableError, build
from mesh.mail.queue import QueuedMail, Status
from mesh.mail.smtp import SmtpTransport
from mesh.mail.transport import Outcome, Transport, Verdict
from mesh.mail_settings import SmtpServer, address_of
from mesh.observability import metrics
from mesh.settings import MeshSettings

_log = logging.getLogger(__name__)

_MAILS = metrics.counter("mails", "Tries to send a mail, by what became of them.", "verdict")

_BATCH = 20
_POLL_SECONDS = 1.0
# After a server was not reached: doubled up to a minute, so that mails leave soon after it is back.
_FIRST_PAUSE_SECONDS = 1.0
_MAX_PAUSE_SECONDS = 60.0
# The keys are kept for so long after the mails' end; who repeats a cause later repeats the mail.
_RETENTION = timedelta(days=30)
_FORGET_EVERY = timedelta(hours=1)


class Sender:
    """Sends a service's mails until they are taken, refused, or too old."""

    def __init__(
        self,
        *,
        database: Database,
        table: sa.Table,
        transport: Transport,
        sender: Address,
        clock: Clock,
    ) -> None:
        self._database = database
        self._table = table
        self._transport = transport
        self._sender = sender
        self._clock = clock
        self._queued = asyncio.Event()
        self._failures = 0
        self._forget_time = clock()

    @classmethod
    def of(
        cls, settings: MeshSettings, *, database: Database, table: sa.Table, clock: Clock
    ) -> "Sender":
        """The sender that the settings ask for: over SMTP, or into files when no server is set."""
        transport: Transport
        if settings.smtp_url is None:
            transport = FileTransport(settings.home / "mails")
            if not settings.is_development:
                _log.warning("BOXOFFICE_SMTP_URL is not set: mails go to files")
        else:
            transport = SmtpTransport(SmtpServer.parse(settings.smtp_url.get_secret_value()))
        return cls(
            database=database,
            table=table,
            transport=transport,
            sender=address_of(settings.mail_from),
            clock=clock,
        )

    def wake(self) -> None:
        """Something was queued, and is committed: the loop need not find it by itself."""
        self._queued.set()

    async def turn(self) -> None:
        """One turn of the loop: a batch, and a pause unless more is due and the server is there."""
        sent = await self.send_due()
        if self._failures:
            await asyncio.sleep(self._pause.total_seconds())
        elif sent < _BATCH:
            await self._forget()
            await self._wait()

    async def send_due(self) -> int:
        """Sends one batch of the mails whose time has come. Returns how many it took up."""
        async with self._database.single() as connection:
            due = await queue.lease_due(connection, self._table, now=self._clock(), limit=_BATCH)
        if not due:
            return 0
        built = [(mail, self._build(mail)) for mail in due]
        sending = [(mail, it) for mail, it in built if isinstance(it, EmailMessage)]
        outcomes = await self._transport.send([message for _, message in sending])
        settled = [(mail, it) for mail, it in built if isinstance(it, Outcome)]
        settled += [(mail, it) for (mail, _), it in zip(sending, outcomes, strict=True)]
        is_reached = not any(it.verdict is Verdict.UNREACHABLE for _, it in settled)
        self._failures = 0 if is_reached else self._failures + 1
        async with self._database.transaction() as connection:
            for mail, outcome in settled:
                await self._settle(connection, mail, outcome)
        return len(due)

    def _build(self, mail: QueuedMail) -> EmailMessage | Outcome:
        if mail.expire_time is not None and mail.expire_time <= self._clock():
            return Outcome(Verdict.REFUSED, "expired")
        try:
            return build(mail, sender=self._sender)
        except UnsendableError as error:
            return Outcome(Verdict.REFUSED, str(error))

    async def _settle(
        self, connection: AsyncConnection, mail: QueuedMail, outcome: Outcome
    ) -> None:
        now = self._clock()
        is_too_old = now - mail.create_time >= queue.GIVE_UP_AFTER
        if outcome.verdict is Verdict.SENT:
            status: Status | None = Status.SENT
        elif outcome.verdict is Verdict.REFUSED or is_too_old:
            status = Status.GIVEN_UP
            _log.error(
                "a mail is given up",
                extra={"mail_id": str(mail.mail_id), "key": mail.key, "answer": outcome.answer},
            )
        else:
            status = None
        _MAILS.labels(outcome.verdict.name.lower()).inc()
        if status is not None:
            await queue.end(
                connection, self._table, mail=mail, status=status, answer=outcome.answer, now=now
            )
        elif outcome.verdict is Verdict.DEFERRED:
            await queue.put_off(connection, self._table, mail=mail, answer=outcome.answer, now=now)
        else:
            await queue.put_back(connection, self._table, mail=mail, due_time=now + self._pause)

    @property
    def _pause(self) -> timedelta:
        doublings = min(max(self._failures, 1) - 1, 16)
        return timedelta(seconds=min(_FIRST_PAUSE_SECONDS * 2**doublings, _MAX_PAUSE_SECONDS))

    async def _forget(self) -> None:
        now = self._clock()
        if now < self._forget_time:
            return
        self._forget_time = now + _FORGET_EVERY
        async with self._database.transaction() as connection:
            await queue.forget(connection, self._table, before=now - _RETENTION)

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(_POLL_SECONDS):
                await self._queued.wait()
        except TimeoutError:
            return
        finally:
            self._queued.clear()
