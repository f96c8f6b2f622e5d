"""Mails about bookings, from the booking's event to the customer's mailbox, over real SMTP."""

import asyncio
from collections.abc import Sequence
from contextlib import aclosing
from datetime import timedelta
from email.message import EmailMessage
from uuid import UUID

import pytest
import sqlalchemy as sa

from booking_svc import tables as service_tables
from booking_svc.bookings import customers, outbox
from booking_svc.bookings.bookings import Actor, Booking
from booking_svc.bookings.outbox import (
    BookingEvent,
    BookingEvents,
    Cancelled,
    Change,
    Completed,
    EventMoved,
    Refunded,
    Rescheduled,
    Updated,
)
from booking_svc.catalogue.event_moves import Schedule
from booking_svc.clients.ports import Contact, Erased
from booking_svc.notifications import consumer, contacts
from booking_svc.notifications.tables import mails
from mesh.db.outbox import OutboxReader
from mesh.ids import new_id
from mesh.mail.sender import Sender
from mesh.mail.smtp import SmtpTransport
from mesh.mail_settings import SmtpServer, address_of
from mesh.money import Money
from testing.booking_harness import START, BookingHarness, an_offer
from testing.smtp_server import MailServer, mail_server

MIRA = Contact(new_id(), "mira@example.org", "Mira Rao")


async def apply_accounts(harness: BookingHarness, *changes: Contact | Erased) -> None:
    """Applies events of auth_svc's stream."""
    async with harness.database.transaction() as connection:
        await consumer.apply_accounts(connection, changes, harness.clock())


async def first_events(harness: BookingHarness, count: int) -> list[BookingEvent]:
    events = BookingEvents(OutboxReader(harness.database, service_tables.outbox))
    collected: list[BookingEvent] = []
    async with asyncio.timeout(60), aclosing(events.open("")) as batches:  # type: ignore[type-var]
        async for _, batch in batches:
            collected += batch
            if len(collected) >= count:
                break
    return collected


async def apply_bookings(harness: BookingHarness, count: int) -> None:
    """Applies the first `count` booking events."""
    events = await first_events(harness, count)
    async with harness.database.transaction() as connection:
        await consumer.apply(connection, events, harness.clock())


async def append(harness: BookingHarness, booking: Booking, *changes: Change) -> None:
    async with harness.database.transaction() as connection:
        for change in changes:
            await outbox.append(connection, booking=booking, change=change, now=harness.clock())


async def delivered(harness: BookingHarness) -> list[EmailMessage]:
    """Sends everything that is queued. Returns the mails that arrived."""
    async with mail_server() as server:
        sender = a_sender(harness, server)
        while await sender.send_due():
            pass
    return server.mails


def a_sender(harness: BookingHarness, server: MailServer) -> Sender:
    return Sender(
        database=harness.database,
        table=mails,
        transport=SmtpTransport(SmtpServer.parse(f"smtp://127.0.0.1:{server.port}")),
        sender=address_of("Boxoffice <noreply@example.com>"),
        clock=harness.clock,
    )


def subjects(mails: Sequence[EmailMessage]) -> list[str]:
    return [mail["Subject"] for mail in mails]


def text(mail: EmailMessage) -> str:
    part = mail.get_body(("plain",))
    assert part is not None
    content = part.get_content()
    assert isinstance(content, str)
    # Its encoding decides whether the lines keep their CR.
    return content.replace("\r\n", "\n")


async def confirmed(harness: BookingHarness, **changes: object) -> Booking:
    event = await harness.an_event(**changes)
    booking = await harness.place(event, quantity=2, customer_id=MIRA.user_id)
    await harness.capture(booking)
    await harness.run_until_idle()
    return await harness.booking(booking.booking_id)


async def test_a_confirmed_booking_is_mailed_once_with_all_its_facts(
    harness: BookingHarness,
) -> None:
    await apply_accounts(harness, MIRA)
    booking = await confirmed(harness, venue_name="Bandra Amphitheatre")
    await apply_bookings(harness, 2)
    await apply_bookings(harness, 2)
    [mail] = await delivered(harness)
    assert mail["To"] == "mira@example.org"
    assert mail["Subject"] == "Confirmed: Monsoon Nights, 1 Jul 2030"
    content = text(mail)
    for expected in (
        "Hello Mira Rao,",
        "Monday, 1 July 2030, 5:30\u202fpm (IST)",
        "Bandra Amphitheatre",
        "2 × Floor: ₹3,000.00",
        "Total: ₹3,000.00",
        "Until 17 Jun 2030, 5:30\u202fpm: 97 % refund",
        str(booking.booking_id),
    ):
        assert expected in content
    assert await delivered(harness) == []


async def test_each_kind_of_event_has_its_mail_or_none(
    harness: BookingHarness,
) -> None:
    await apply_accounts(harness, MIRA)
    booking = await confirmed(harness)
    later = await harness.an_event(start_time=START + timedelta(days=40), end_time=None)
    refund = Money(50_000, "INR")
    await append(
        harness,
        booking,
        Cancelled(Actor.CUSTOMER, "", refund),
        Cancelled(Actor.ORGANISER, "The singer is ill", refund),
        Refunded(new_id(), refund),
        Rescheduled(later.event_id, Money(350_000, "INR"), refund),
        Updated(Money(350_000, "INR"), refund),
        Completed(),
        EventMoved(
            Schedule(START, None, "Regal", new_id(), "Screen 1"),
            Schedule(START + timedelta(days=1), None, "Regal", new_id(), "Screen 2"),
            START + timedelta(days=7),
            new_id(),
        ),
    )
    await apply_bookings(harness, 9)
    mails = await delivered(harness)
    assert sorted(subjects(mails)) == [
        "Cancelled: Monsoon Nights, 1 Jul 2030",
        "Changed: Monsoon Nights, 1 Jul 2030",
        "Confirmed: Monsoon Nights, 1 Jul 2030",
        "Monsoon Nights has moved: 1 Jul 2030",
        "Monsoon Nights on 1 Jul 2030 does not take place",
        "Moved: Monsoon Nights, now on 1 Jul 2030",
        "₹500.00 refunded for Monsoon Nights",
    ]
    [moved] = [text(mail) for mail in mails if "has moved" in mail["Subject"]]
    by_subject = {
        mail["Subject"].split(" ")[0]: text(mail)
        for mail in mails
        if "has moved" not in mail["Subject"]
    }
    for expected in (
        "Starts\n- before: Saturday, 1 June 2030, 5:30\u202fpm (IST)\n- now: Sunday, 2 June 2030",
        "Auditorium\n- before: Screen 1\n- now: Screen 2",
        "Until Saturday, 8 June 2030, 5:30\u202fpm (IST) you get a full refund.",
    ):
        assert expected in moved
    assert "Venue" not in moved
    assert "₹500.00 goes back" in by_subject["Cancelled:"]
    assert "The singer is ill" in by_subject["Monsoon"]
    assert "Before, it was for Monsoon Nights, Thursday, 11 July 2030" in by_subject["Moved:"]


@pytest.mark.parametrize("is_wanted", [False, True])
async def test_a_hold_is_mailed_only_if_requested(harness: BookingHarness, is_wanted: bool) -> None:
    await apply_accounts(harness, MIRA)
    event = await harness.an_event()
    await harness.place(event, customer_id=MIRA.user_id, checkout=None, is_mail_wanted=is_wanted)
    await apply_bookings(harness, 1)
    expected = ["Held until 1 Jun 2030, 5:40 pm: Monsoon Nights"] if is_wanted else []
    assert subjects(await delivered(harness)) == expected


async def test_a_mail_about_an_expired_hold_is_not_sent(harness: BookingHarness) -> None:
    await apply_accounts(harness, MIRA)
    event = await harness.an_event()
    await harness.place(event, customer_id=MIRA.user_id, checkout=None, is_mail_wanted=True)
    await apply_bookings(harness, 1)
    harness.clock.advance(timedelta(minutes=10))
    assert await delivered(harness) == []


async def test_reasons_of_the_system_are_not_mailed(harness: BookingHarness) -> None:
    await apply_accounts(harness, MIRA)
    booking = await confirmed(harness)
    await append(harness, booking, Cancelled(Actor.SYSTEM, "payment mismatch, flagged", None))
    await apply_bookings(harness, 3)
    assert "flagged" not in "".join(map(text, await delivered(harness)))


async def test_names_are_escaped_in_mails(harness: BookingHarness) -> None:
    await apply_accounts(harness, Contact(MIRA.user_id, MIRA.email, "<img src=x> Rao"))
    await confirmed(harness, name="Rock & <b>Roll</b>\nBcc: all@example.org")
    await apply_bookings(harness, 2)
    [mail] = await delivered(harness)
    html = mail.get_body(("html",))
    assert html is not None
    assert "<img" not in html.get_content()
    assert "Rock &amp; &lt;b&gt;Roll" in html.get_content()
    assert mail["Bcc"] is None


async def test_events_before_the_address_is_known_wait_for_it(harness: BookingHarness) -> None:
    booking = await confirmed(harness)
    await append(harness, booking, Refunded(new_id(), Money(100, "INR")))
    await apply_bookings(harness, 3)
    assert await delivered(harness) == []
    await apply_accounts(harness, MIRA)
    assert subjects(await delivered(harness)) == [
        "Confirmed: Monsoon Nights, 1 Jul 2030",
        "₹1.00 refunded for Monsoon Nights",
    ]
    await apply_accounts(harness, MIRA)
    assert await delivered(harness) == []


async def test_an_address_stored_by_a_concurrent_transaction_is_not_missed(
    harness: BookingHarness,
) -> None:
    """The booking's mail is queued, whichever transaction commits first."""
    await confirmed(harness)
    events = await first_events(harness, 2)
    async with harness.database.transaction() as connection:
        await consumer.apply_accounts(connection, [MIRA], harness.clock())

        async def apply() -> None:
            async with harness.database.transaction() as other:
                await consumer.apply(other, events, harness.clock())

        applying = asyncio.create_task(apply())
        await _until_a_lock_is_waited_for(harness)
    await applying
    assert len(await delivered(harness)) == 1


async def _until_a_lock_is_waited_for(harness: BookingHarness) -> None:
    async with asyncio.timeout(60):
        while True:
            async with harness.database.reading() as connection:
                waiting = await connection.execute(
                    sa.text(
                        "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"
                        " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
                    )
                )
            if waiting.scalar_one():
                return
            await asyncio.sleep(0.01)


async def test_mails_go_to_the_changed_address(harness: BookingHarness) -> None:
    await apply_accounts(harness, MIRA, Contact(MIRA.user_id, "rao@example.org", "Mira Rao"))
    await confirmed(harness)
    await apply_bookings(harness, 2)
    [mail] = await delivered(harness)
    assert mail["To"] == "rao@example.org"


async def test_an_erased_account_gets_no_mail_and_leaves_no_address(
    harness: BookingHarness,
) -> None:
    await apply_accounts(harness, MIRA)
    await confirmed(harness)
    await apply_bookings(harness, 2)
    await apply_accounts(harness, Erased(MIRA.user_id))
    assert await delivered(harness) == []
    async with harness.database.reading() as connection:
        assert await customers.find(connection, user_id=MIRA.user_id) is None
        stored = await connection.execute(sa.select(mails))
        assert MIRA.email not in repr(stored.all())


async def test_events_that_wait_too_long_for_an_address_are_deleted(
    harness: BookingHarness,
) -> None:
    await confirmed(harness)
    await apply_bookings(harness, 2)
    harness.clock.advance(contacts.WAIT_AT_MOST + timedelta(seconds=1))
    async with harness.database.transaction() as connection:
        assert await contacts.delete_expired(connection, now=harness.clock()) == 1
    await apply_accounts(harness, MIRA)
    assert await delivered(harness) == []


async def test_the_consumer_resumes_at_its_cursor(harness: BookingHarness) -> None:
    await apply_accounts(harness, MIRA)
    reader = OutboxReader(harness.database, service_tables.outbox)
    queued = asyncio.Event()
    for _ in range(2):
        await confirmed(harness)
        running = asyncio.create_task(
            consumer.booking_consumer(
                harness.database, reader, harness.clock, on_queued=queued.set
            ).run()
        )
        await _until_queued(harness)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        assert len(await delivered(harness)) == 1
    assert queued.is_set()


async def _until_queued(harness: BookingHarness) -> None:
    async with asyncio.timeout(60):
        while True:
            async with harness.database.reading() as connection:
                count = await connection.execute(
                    sa.select(sa.func.count()).where(mails.c.status == "QUEUED")
                )
            if count.scalar_one():
                return
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("customer_id", [MIRA.user_id, new_id()])
async def test_a_customer_gets_mails_about_own_bookings_only(
    harness: BookingHarness, customer_id: UUID
) -> None:
    await apply_accounts(harness, MIRA)
    event = await harness.an_event(an_offer(price=Money(0, "INR")))
    await harness.place(event, customer_id=customer_id)
    await apply_bookings(harness, 2)
    assert len(await delivered(harness)) == (1 if customer_id == MIRA.user_id else 0)
