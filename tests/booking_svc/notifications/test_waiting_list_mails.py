"""Mails about waiting lists, from the entry's event to the queue of mails."""

import logging
from collections.abc import Sequence
from typing import Any

import pytest
import sqlalchemy as sa

from booking_svc import tables as service_tables
from booking_svc.bookings import pricing
from booking_svc.bookings.pricing import RequestedItem
from booking_svc.catalogue import events
from booking_svc.catalogue.event_update import EventChange, OfferChange
from booking_svc.catalogue.events import Event
from booking_svc.clients.ports import Contact, Erased
from booking_svc.notifications import consumer
from booking_svc.notifications.tables import mails, mails_without_address
from booking_svc.queueing import waiting_list_offers
from booking_svc.queueing.waiting_list_entries import Entry, State
from boxoffice.bookings.v1 import booking_event_pb2
from boxoffice.queueing.v1 import waiting_list_event_pb2
from mesh.errors import DomainError, Reason
from mesh.ids import new_id
from mesh.money import Money
from testing.booking_harness import BookingHarness, an_offer
from testing.waiting_list_harness import CLAIM_URL, OFFER, WaitingListHarness
from tests.booking_svc.catalogue.test_catalogue import an_auditorium


async def apply_events(harness: BookingHarness) -> None:
    """Applies all events of waiting lists, as the consumer of the outbox does."""
    outbox = service_tables.outbox.c
    async with harness.database.transaction() as connection:
        payloads = await connection.scalars(
            sa.select(outbox.payload)
            .where(outbox.event_type.startswith("waiting_list."))
            .order_by(outbox.sequence)
        )
        mailed = [consumer.from_payload(payload) for payload in payloads]
        await consumer.apply(connection, mailed, harness.clock())


async def offered_payload(harness: BookingHarness) -> bytes:
    """The stored event of the only offer."""
    outbox = service_tables.outbox.c
    async with harness.database.reading() as connection:
        rows = await connection.execute(
            sa.select(outbox.payload).where(outbox.event_type == "waiting_list.offered")
        )
        return bytes(rows.scalar_one())


async def apply_payloads(harness: BookingHarness, *payloads: bytes) -> None:
    """Applies events in one batch, as the consumer of the outbox does."""
    async with harness.database.transaction() as connection:
        mailed = [consumer.from_payload(payload) for payload in payloads]
        await consumer.apply(connection, mailed, harness.clock())


async def event_of(harness: BookingHarness, entry: Entry) -> Event:
    async with harness.database.reading() as connection:
        return await events.get(connection, event_id=entry.event_id)


async def change_offers(harness: BookingHarness, event: Event, *offers: OfferChange) -> None:
    await harness.commands.update(
        event_id=event.event_id, change=EventChange(offers=offers), etag=None
    )


async def apply_accounts(harness: BookingHarness, *changes: Contact | Erased) -> None:
    async with harness.database.transaction() as connection:
        await consumer.apply_accounts(connection, changes, harness.clock())


async def queued(harness: BookingHarness) -> Sequence[Any]:
    """Recipient, subject and text of the queued mails."""
    async with harness.database.reading() as connection:
        rows = await connection.execute(
            sa.select(mails.c.recipient, mails.c.subject, mails.c.text)
            .where(mails.c.recipient.is_not(None))
            .order_by(mails.c.subject)
        )
        return rows.all()


async def an_offer_to_mira(lists: WaitingListHarness) -> tuple[Entry, Contact]:
    event = await lists.process.an_event(an_offer(capacity=2), venue_name="Bandra Amphitheatre")
    sold = await lists.sell_out(event)
    entry = await lists.join(event, 2)
    for booking in sold:
        await lists.process.cancel(booking.booking_id)
    await lists.process.run_until_idle()
    await lists.turn(event)
    assert await lists.states(entry) == [State.OFFERED]
    return entry, Contact(entry.customer_id, "mira@example.org", "Mira Rao")


async def test_an_offer_is_mailed_once_with_its_link_and_its_end(harness: BookingHarness) -> None:
    lists = WaitingListHarness(harness)
    entry, mira = await an_offer_to_mira(lists)
    await apply_accounts(harness, mira)
    await apply_events(harness)
    await apply_events(harness)
    [(recipient, subject, text)] = await queued(harness)
    assert recipient == "mira@example.org"
    assert subject.startswith("Places for you until 1 Jun 2030,")
    for expected in (
        "Hello Mira Rao,",
        f"{CLAIM_URL}#entry={entry.entry_id}",
        "Bandra Amphitheatre",
        "2 × Floor: ₹3,000.00",
    ):
        assert expected in text


async def test_an_offer_waits_for_the_address_and_its_end_is_mailed(
    harness: BookingHarness,
) -> None:
    lists = WaitingListHarness(harness)
    entry, mira = await an_offer_to_mira(lists)
    await apply_events(harness)
    assert await queued(harness) == []
    await apply_accounts(harness, mira)
    assert [mail.recipient for mail in await queued(harness)] == ["mira@example.org"]
    harness.clock.advance(OFFER)
    async with harness.database.reading() as connection:
        waiting = await connection.scalar(
            sa.select(sa.func.count()).select_from(mails_without_address)
        )
    assert waiting == 0
    await waiting_list_offers.turn(lists.deps, event_id=entry.event_id)
    await apply_events(harness)
    ended, _ = await queued(harness)
    assert ended.subject.startswith("No longer on the waiting list: Monsoon Nights")
    assert "you did not claim the places in time" in ended.text


async def test_who_leaves_or_is_erased_gets_no_mail(harness: BookingHarness) -> None:
    lists = WaitingListHarness(harness)
    entry, mira = await an_offer_to_mira(lists)
    await apply_accounts(harness, mira)
    await lists.leave(entry)
    await apply_accounts(harness, Erased(mira.user_id))
    await apply_events(harness)
    assert await queued(harness) == []


async def test_an_offer_above_a_limit_that_was_lowered_is_mailed(harness: BookingHarness) -> None:
    lists = WaitingListHarness(harness)
    entry, mira = await an_offer_to_mira(lists)
    await apply_accounts(harness, mira)
    event = await event_of(harness, entry)
    await change_offers(
        harness, event, OfferChange(offer_id=event.offers[0].offer_id, max_per_booking=1)
    )
    await apply_events(harness)
    [mail] = await queued(harness)
    assert "2 × Floor: ₹3,000.00" in mail.text


async def test_offered_seats_have_the_price_of_their_offer_when_another_sells_them_too(
    harness: BookingHarness,
) -> None:
    lists = WaitingListHarness(harness)
    auditorium = await an_auditorium(harness)
    event = await harness.an_event(
        an_offer(name="Adult", pool=None, capacity=None, seat_type="REGULAR"),
        auditorium_id=auditorium.auditorium_id,
    )
    bookings = [
        await harness.place(event, items=[RequestedItem(None, 1, seat.seat_id)], checkout=None)
        for seat in auditorium.rows[0].seats
    ]
    entry = await lists.join(event, 2)
    for booking in bookings:
        await harness.cancel(booking.booking_id)
    await harness.run_until_idle()
    await lists.turn(event)
    child = OfferChange(name="Child", price=Money(40_000, "INR"), seat_type="REGULAR")
    await change_offers(harness, event, child)
    await apply_accounts(harness, Contact(entry.customer_id, "mira@example.org", "Mira Rao"))
    await apply_events(harness)
    [mail] = await queued(harness)
    assert "Row A, seat 1 – Adult: ₹1,500.00" in mail.text
    assert "Total: ₹3,000.00" in mail.text


async def test_an_offer_of_places_without_a_price_is_mailed_without_amounts(
    harness: BookingHarness, caplog: pytest.LogCaptureFixture
) -> None:
    lists = WaitingListHarness(harness)
    _, mira = await an_offer_to_mira(lists)
    await apply_accounts(harness, mira)
    message = waiting_list_event_pb2.WaitingListEvent.FromString(await offered_payload(harness))
    message.waiting_list_entry.items[0].offer_id = str(new_id())
    with caplog.at_level(logging.ERROR):
        await apply_payloads(harness, message.SerializeToString())
    [mail] = await queued(harness)
    assert CLAIM_URL in mail.text
    assert "Total" not in mail.text
    assert "₹" not in mail.text
    assert "names no prices" in caplog.text


@pytest.mark.parametrize("waits_for_address", [False, True])
async def test_events_whose_mail_cannot_be_written_keep_back_no_others(
    harness: BookingHarness, caplog: pytest.LogCaptureFixture, waits_for_address: bool
) -> None:
    lists = WaitingListHarness(harness)
    entry, mira = await an_offer_to_mira(lists)
    good = await offered_payload(harness)
    unknown = waiting_list_event_pb2.WaitingListEvent.FromString(good)
    unknown.event_key = str(new_id())
    unknown.waiting_list_entry.event_id = str(new_id())
    async with harness.database.reading() as connection:
        stored = await connection.scalars(
            sa.select(service_tables.outbox.c.payload).where(
                service_tables.outbox.c.event_type == "cancelled"
            )
        )
        of_booking = booking_event_pb2.BookingEvent.FromString(stored.all()[0])
    of_booking.event_key = str(new_id())
    of_booking.booking.booking_id = str(new_id())
    of_booking.booking.customer_id = str(entry.customer_id)
    payloads = unknown.SerializeToString(), of_booking.SerializeToString(), good
    with caplog.at_level(logging.ERROR):
        if not waits_for_address:
            await apply_accounts(harness, mira)
        await apply_payloads(harness, *payloads)
        if waits_for_address:
            await apply_accounts(harness, mira)
    [mail] = await queued(harness)
    assert mail.subject.startswith("Places for you until")
    dropped = [record for record in caplog.records if "could not be written" in record.message]
    assert {record.__dict__["event_key"] for record in dropped} == {
        unknown.event_key,
        of_booking.event_key,
    }


async def test_an_outage_while_a_mail_is_written_drops_nothing(
    harness: BookingHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    lists = WaitingListHarness(harness)
    _, mira = await an_offer_to_mira(lists)
    await apply_accounts(harness, mira)

    async def away(*_: object) -> None:
        raise DomainError(Reason.DEPENDENCY_UNAVAILABLE, "the database is unavailable")

    with monkeypatch.context() as patched:
        patched.setattr(pricing, "price_held", away)
        with pytest.raises(DomainError):
            await apply_events(harness)
    await apply_events(harness)
    assert len(await queued(harness)) == 1
