"""The loop that sends queued mails. Any number of processes may run it."""

import asyncio
import logging
from datetime import timedelta
from email.headerregistry import Address
from email.message import EmailMessage
from functools import partial

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.clock import Clock
from mesh.db.database import Database
from mesh.db.jobs import Backoff, Wakeup, run_forever
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

_MAILS = metrics.counter("mails", "Attempts to send a mail, by outcome.", "verdict")

_BATCH = 20
_IDLE_SECONDS = 3.0
# While no server is reachable: short, so that mails are sent soon after it is back.
_PAUSES = Backoff(first_seconds=1, max_seconds=60)
# A cause that is repeated after this time is mailed again.
_RETENTION = timedelta(days=30)
_DELETE_EVERY = timedelta(hours=1)


class Sender:
    """Sends a service's mails until they are accepted, refused or too old."""

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
        self._queued = Wakeup()
        self._failures = 0
        self._delete_time = clock()

    @classmethod
    def of(
        cls, settings: MeshSettings, *, database: Database, table: sa.Table, clock: Clock
    ) -> "Sender":
        """A sender over SMTP, or into files when the settings name no server."""
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
        """Mails were enqueued and committed: send them now."""
        self._queued.ring()

    async def run(self, name: str) -> None:
        """Sends mails as they fall due, as a loop of this name. Runs until cancelled."""
        await run_forever(name, self._turn, wake=self._queued, idle_seconds=_IDLE_SECONDS)

    async def _turn(self) -> int:
        leased = await self.send_due()
        if self._failures:
            await asyncio.sleep(self._pause.total_seconds())
        await self._delete_ended()
        return leased

    async def send_due(self) -> int:
        """Sends one batch of due mails. Returns how many it leased."""
        async with self._database.single() as connection:
            due = await queue.lease_due(connection, self._table, now=self._clock(), limit=_BATCH)
        if not due:
            return 0
        built = [(mail, self._build(mail)) for mail in due]
        messages = [result for _, result in built if isinstance(result, EmailMessage)]
        sent = iter(await self._transport.send(messages))
        outcomes = [
            (mail, next(sent) if isinstance(result, EmailMessage) else result)
            for mail, result in built
        ]
        is_reached = all(outcome.verdict is not Verdict.UNREACHABLE for _, outcome in outcomes)
        self._failures = 0 if is_reached else self._failures + 1
        async with self._database.transaction() as connection:
            for mail, outcome in outcomes:
                await self._record(connection, mail, outcome)
        return len(due)

    def _build(self, mail: QueuedMail) -> EmailMessage | Outcome:
        if mail.expire_time is not None and mail.expire_time <= self._clock():
            return Outcome(Verdict.REFUSED, "expired")
        try:
            return build(mail, sender=self._sender)
        except UnsendableError as error:
            return Outcome(Verdict.REFUSED, str(error))

    async def _record(
        self, connection: AsyncConnection, mail: QueuedMail, outcome: Outcome
    ) -> None:
        _MAILS.labels(outcome.verdict.name.lower()).inc()
        jobs, now, answer = queue.jobs(self._table), self._clock(), outcome.answer
        retry_time = jobs.retry_time(mail.attempt, now=now, age=now - mail.create_time)
        reschedule = partial(jobs.reschedule, connection, mail.mail_id, lease_end=mail.lease_end)
        if outcome.verdict is Verdict.SENT:
            await reschedule(**queue.ended(Status.SENT, answer, now))
        elif outcome.verdict is Verdict.REFUSED or retry_time is None:
            _log.error(
                "a mail cannot be delivered",
                extra={"mail_id": str(mail.mail_id), "key": mail.key, "answer": answer},
            )
            await reschedule(**queue.ended(Status.GIVEN_UP, answer, now))
        elif outcome.verdict is Verdict.DEFERRED:
            await reschedule(due_time=retry_time, last_answer=answer)
        else:
            # No server was reached: that is not an attempt.
            await reschedule(due_time=now + self._pause, attempts=mail.attempt - 1)

    @property
    def _pause(self) -> timedelta:
        return _PAUSES.after(self._failures)

    async def _delete_ended(self) -> None:
        now = self._clock()
        if now < self._delete_time:
            return
        self._delete_time = now + _DELETE_EVERY
        async with self._database.transaction() as connection:
            await queue.delete_ended(connection, self._table, before=now - _RETENTION)
