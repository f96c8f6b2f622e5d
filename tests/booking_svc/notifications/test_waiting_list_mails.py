"""Mails about waiting lists, from the entry's event to the queue of mails."""

from collections.abc import Sequence
from typing import Any

import sqlalchemy as sa

from booking_svc import tables as service_tables
from booking_svc.clients.ports import Contact, Erased
from booking_svc.notifications import consumer
from booking_svc.notifications.tables import mails, mails_without_address
from booking_svc.queueing import waiting_list_offers
from booking_svc.queueing.waiting_list_entries import Entry, State
from testing.booking_harness import BookingHarness, an_offer
from testing.waiting_list_harness import CLAIM_URL, OFFER, WaitingListHarness


async def apply_events(harness: BookingHarness) -> None:
    """Applies all events of waiting lists, as the consumer of the outbox does."""
    outbox = service_tables.outbox.c
    async with harness.database.transaction() as connection:
        payloads = await connection.scalars(
            sa.select(outbox.payload)
            .where(outbox.event_type.startswith("waiting_list."))
            .order_by(outbox.sequence)
        )
        events = [consumer.from_payload(payload) for payload in payloads]
        await consumer.apply(connection, events, harness.clock())


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
