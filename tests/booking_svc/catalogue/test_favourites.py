"""Favourites of erased accounts."""

from booking_svc.catalogue import favourites
from booking_svc.clients.ports import Erased
from booking_svc.notifications import consumer
from mesh.ids import new_id
from testing.booking_harness import BookingHarness


async def test_an_erased_account_loses_its_favourites(harness: BookingHarness) -> None:
    event = await harness.an_event()
    erased, other = new_id(), new_id()
    async with harness.database.transaction() as connection:
        for user_id in (erased, other):
            await favourites.add(
                connection, user_id=user_id, event_id=event.event_id, now=harness.clock()
            )
        await consumer.apply_accounts(connection, [Erased(erased)], harness.clock())
        pages = [
            await favourites.list_page(connection, user_id=user_id, page_size=9, page_token="")
            for user_id in (erased, other)
        ]
    assert [page.total_size for page in pages] == [0, 1]
