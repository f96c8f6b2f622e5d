"""The queue of mails and its loop: once per cause, until sent, and no content is kept."""

import asyncio
import itertools
import logging
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from pathlib import Path

import pytest
import sqlalchemy as sa

from launcher.errors import LaunchError
from launcher.settings_listing import load
from mesh.db.database import Database
from mesh.mail import queue
from mesh.mail.files import FileTransport
from mesh.mail.queue import Mail, Status
from mesh.mail.sender import Sender
from mesh.mail.smtp import SmtpTransport
from mesh.mail.transport import Outcome, Transport, Verdict
from mesh.mail_settings import SmtpServer, address_of
from mesh.settings import MeshSettings
from testing.smtp_server import MailServer, mail_server

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
MIRA = "mira@example.org"

metadata = sa.MetaData()
mails = queue.mail_table(metadata)


class Clock:
    now = START

    def __call__(self) -> datetime:
        return self.now

    def advance(self, by: timedelta) -> None:
        self.now += by


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def database(database: Database) -> Database:
    async with database.transaction() as connection:
        await connection.run_sync(metadata.create_all)
    return database


def a_sender(database: Database, clock: Clock, to: MailServer | Transport) -> Sender:
    transport = to
    if isinstance(to, MailServer):
        transport = SmtpTransport(SmtpServer.parse(f"smtp://127.0.0.1:{to.port}"))
    assert not isinstance(transport, MailServer)
    return Sender(
        database=database,
        table=mails,
        transport=transport,
        sender=address_of("Boxoffice <noreply@example.com>"),
        clock=clock,
    )


async def enqueue(
    database: Database,
    clock: Clock,
    key: str = "key",
    *,
    to: str = MIRA,
    expire_time: datetime | None = None,
) -> bool:
    mail = Mail(to, f"About {key}", "text\n", "<p>html</p>\n", key, expire_time)
    async with database.transaction() as connection:
        return await queue.enqueue(connection, mails, mail, now=clock())


async def rows(database: Database) -> list[sa.Row[tuple[object, ...]]]:
    async with database.reading() as connection:
        return list(await connection.execute(sa.select(mails).order_by(mails.c.mail_id)))


async def test_a_cause_is_mailed_once(database: Database, clock: Clock) -> None:
    async with mail_server() as server:
        sender = a_sender(database, clock, server)
        assert await enqueue(database, clock, "booking-confirmed:1")
        assert not await enqueue(database, clock, "booking-confirmed:1")
        assert await sender.send_due() == 1
        assert not await enqueue(database, clock, "booking-confirmed:1")
        assert await sender.send_due() == 0
    assert [mail["Subject"] for mail in server.mails] == ["About booking-confirmed:1"]


async def test_no_mail_without_its_cause(database: Database, clock: Clock) -> None:
    with pytest.raises(RuntimeError, match="refused"):
        await _enqueue_and_fail(database, clock)
    assert await rows(database) == []


async def _enqueue_and_fail(database: Database, clock: Clock) -> None:
    async with database.transaction() as connection:
        mail = Mail(MIRA, "About nothing", "text\n", "html\n", "key")
        await queue.enqueue(connection, mails, mail, now=clock())
        raise RuntimeError("the effect was refused after all")


async def test_the_content_of_a_mail_is_deleted_when_it_is_sent(
    database: Database, clock: Clock
) -> None:
    async with mail_server() as server:
        await enqueue(database, clock)
        await a_sender(database, clock, server).send_due()
    [row] = await rows(database)
    assert (row.key, row.status, row.last_answer) == ("key", Status.SENT, "250")
    assert (row.recipient, row.subject, row.text, row.html) == (None,) * 4


async def test_many_processes_send_each_mail_once(database: Database, clock: Clock) -> None:
    for number in range(60):
        await enqueue(database, clock, str(number))
    async with mail_server() as server:
        senders = [a_sender(database, clock, server) for _ in range(4)]

        async def drain(sender: Sender) -> None:
            while await sender.send_due():
                pass

        await asyncio.gather(*map(drain, senders))
    subjects = [mail["Subject"] for mail in server.mails]
    assert sorted(subjects) == sorted(f"About {number}" for number in range(60))


async def test_mails_wait_for_a_server_that_is_down_and_leave_when_it_is_back(
    database: Database, clock: Clock
) -> None:
    async with mail_server() as server:
        sender = a_sender(database, clock, server)
    for number in range(3):
        await enqueue(database, clock, str(number))
    for _ in range(10):
        assert await sender.send_due() == 3
        clock.advance(timedelta(minutes=1))
    # Nothing counts against a mail that nobody looked at.
    assert {row.attempts for row in await rows(database)} == {0}
    async with mail_server(at=server):
        assert await sender.send_due() == 3
    assert len(server.mails) == 3
    assert len({mail["Message-ID"] for mail in server.mails}) == 3


async def test_the_loop_pauses_longer_while_no_server_is_there(
    database: Database, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with mail_server() as server:
        sender = a_sender(database, clock, server)
    await enqueue(database, clock)
    pauses = []
    for _ in range(9):
        await sender.send_due()
        [row] = await rows(database)
        pauses.append((row.due_time - clock.now).total_seconds())
        clock.now = row.due_time
    assert pauses == [1, 2, 4, 8, 16, 32, 60, 60, 60]


async def test_a_deferred_mail_is_retried_for_three_days(database: Database, clock: Clock) -> None:
    await enqueue(database, clock)
    tries = []
    async with mail_server() as server:
        server.answers[MIRA] = "451 4.7.1 greylisted"
        sender = a_sender(database, clock, server)
        while True:
            await sender.send_due()
            [row] = await rows(database)
            tries.append(clock.now - START)
            if row.status == Status.GIVEN_UP:
                break
            clock.now = row.due_time
    assert [pause.total_seconds() for pause in tries[:4]] == [0, 10, 30, 70]
    assert max(b - a for a, b in itertools.pairwise(tries)) == timedelta(hours=1)
    assert timedelta(days=3) <= tries[-1] < timedelta(days=3, hours=1)
    assert row.last_answer == "451"
    assert row.recipient is None


async def test_a_greylisted_mail_arrives_later_once(database: Database, clock: Clock) -> None:
    await enqueue(database, clock)
    async with mail_server() as server:
        server.answers[MIRA] = "451 4.7.1 greylisted"
        sender = a_sender(database, clock, server)
        await sender.send_due()
        server.answers.clear()
        assert await sender.send_due() == 0
        clock.advance(timedelta(seconds=10))
        assert await sender.send_due() == 1
    assert server.recipients == [MIRA]


async def test_a_mail_to_a_refused_recipient_ends_and_is_logged_without_the_address(
    database: Database, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    await enqueue(database, clock, "booking-confirmed:1")
    await enqueue(database, clock, "booking-confirmed:2", to="no address at all")
    async with mail_server() as server:
        server.answers[MIRA] = f"550 5.1.1 {MIRA} unknown"
        await a_sender(database, clock, server).send_due()
    assert {row.status for row in await rows(database)} == {Status.GIVEN_UP}
    given_up = [vars(line) for line in caplog.records if line.msg == "a mail cannot be delivered"]
    assert {(line["key"], line["answer"]) for line in given_up} == {
        ("booking-confirmed:1", "550"),
        ("booking-confirmed:2", "ValueError"),
    }
    ours = [vars(line) for line in caplog.records if line.name.startswith("mesh")]
    assert MIRA not in repr(ours)
    assert "no address" not in repr(ours)


async def test_an_expired_mail_is_not_sent(database: Database, clock: Clock) -> None:
    await enqueue(database, clock, "reset", expire_time=START + timedelta(minutes=30))
    clock.advance(timedelta(minutes=30))
    async with mail_server() as server:
        await a_sender(database, clock, server).send_due()
    [row] = await rows(database)
    assert (row.status, row.last_answer) == (Status.GIVEN_UP, "expired")
    assert server.mails == []


async def test_a_process_that_dies_while_sending_leaves_its_mails_to_others(
    database: Database, clock: Clock
) -> None:
    await enqueue(database, clock)
    async with database.transaction() as connection:
        assert len(await queue.lease_due(connection, mails, now=clock(), limit=9)) == 1
    async with mail_server() as server:
        sender = a_sender(database, clock, server)
        assert await sender.send_due() == 0
        clock.advance(queue.LEASE)
        assert await sender.send_due() == 1
    assert len(server.mails) == 1


async def test_an_outcome_after_the_lease_was_lost_is_refused(
    database: Database, clock: Clock
) -> None:
    class SlowTransport:
        """Answers after the lease has ended and another process has leased the mails."""

        async def send(self, messages: Sequence[EmailMessage]) -> Sequence[Outcome]:
            clock.advance(queue.LEASE)
            async with database.transaction() as connection:
                await queue.lease_due(connection, mails, now=clock(), limit=9)
            return [Outcome(Verdict.DEFERRED, "451") for _ in messages]

    await enqueue(database, clock)
    assert await a_sender(database, clock, SlowTransport()).send_due() == 1
    [row] = await rows(database)
    assert row.due_time == clock.now + queue.LEASE
    assert row.last_answer is None


async def test_the_queued_mails_of_an_erased_account_are_withdrawn(
    database: Database, clock: Clock
) -> None:
    await enqueue(database, clock, "hers")
    await enqueue(database, clock, "another's", to="zoe@example.org")
    async with database.transaction() as connection:
        assert await queue.withdraw(connection, mails, to=MIRA, now=clock()) == 1
    async with mail_server() as server:
        await a_sender(database, clock, server).send_due()
    assert server.recipients == ["zoe@example.org"]


async def test_ended_mails_are_deleted_and_queued_ones_are_kept(
    database: Database, clock: Clock
) -> None:
    await enqueue(database, clock, "sent")
    async with mail_server() as server:
        await a_sender(database, clock, server).send_due()
    await enqueue(database, clock, "queued")
    async with database.transaction() as connection:
        before = clock() + timedelta(seconds=1)
        assert await queue.delete_ended(connection, mails, before=before) == 1
    assert [row.key for row in await rows(database)] == ["queued"]


async def test_a_wake_up_makes_the_loop_send(database: Database, clock: Clock) -> None:
    async with mail_server() as server:
        sender = a_sender(database, clock, server)
        running = asyncio.create_task(sender.run("test"))
        await enqueue(database, clock)
        sender.wake()
        async with asyncio.timeout(60):
            while not server.mails:
                await asyncio.sleep(0.01)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    assert server.recipients == [MIRA]


async def test_without_a_server_mails_are_written_to_files(
    database: Database, clock: Clock, tmp_path: Path
) -> None:
    await enqueue(database, clock)
    settings = MeshSettings(home=tmp_path, smtp_url=None)
    sender = Sender.of(settings, database=database, table=mails, clock=clock)
    await sender.send_due()
    [path] = (tmp_path / "mails").iterdir()
    assert path.suffix == ".eml"
    mail = message_from_bytes(path.read_bytes(), policy=default)
    assert mail["To"] == MIRA
    assert mail["Subject"] == "About key"


async def test_a_folder_that_cannot_be_written_loses_no_mail(
    database: Database, clock: Clock, tmp_path: Path
) -> None:
    await enqueue(database, clock)
    (tmp_path / "mails").write_text("not a folder")
    sender = a_sender(database, clock, FileTransport(tmp_path / "mails"))
    await sender.send_due()
    (tmp_path / "mails").unlink()
    clock.advance(timedelta(minutes=1))
    await sender.send_due()
    assert len(list((tmp_path / "mails").glob("*.eml"))) == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("smtp_url", "http://u:geheim@mail.test"),
        ("smtp_url", "smtp://u:geheim@mail.test?tls=yes"),
        ("mail_from", "Boxoffice"),
    ],
)
def test_a_wrong_setting_is_refused_at_the_start(name: str, value: str) -> None:
    with pytest.raises(LaunchError, match=f"BOXOFFICE_{name.upper()}") as refused:
        load(MeshSettings, **{name: value})
    assert "geheim" not in str(refused.value)
