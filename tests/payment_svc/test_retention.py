"""What is old is deleted, and nothing else; what comes again after that has no second effect."""

from datetime import timedelta

from mesh.ids import new_id
from payment_svc import housekeeping, inbound, tables
from payment_svc.webhooks import Outcome
from testing.payment_harness import Desk, a_key


async def keep_one_of_each(desk: Desk) -> None:
    """A webhook of the provider, one of another sender, and the record of a key."""
    payment = await desk.open_paid()
    await desk.request_refund(payment, key=a_key(str(new_id())))
    async with desk.database.transaction() as connection:
        await inbound.receive(
            connection,
            sender="crm",
            content_type="application/json",
            body=str(new_id()).encode(),
            now=desk.clock(),
        )


async def kept(desk: Desk) -> list[int]:
    return [
        await desk.count(table)
        for table in (tables.webhook_inbox, tables.inbound_webhooks, tables.idempotency_records)
    ]


async def test_each_is_kept_for_its_time(desk: Desk) -> None:
    await keep_one_of_each(desk)
    desk.clock.advance(timedelta(days=3, seconds=-1).total_seconds())
    await housekeeping.sweep(desk.database, desk.clock)
    assert await kept(desk) == [1, 1, 1]
    desk.clock.advance(2)
    await housekeeping.sweep(desk.database, desk.clock)
    assert await kept(desk) == [1, 1, 0]
    desk.clock.advance(timedelta(days=177, seconds=-2).total_seconds())
    await housekeeping.sweep(desk.database, desk.clock)
    assert await kept(desk) == [1, 1, 0]
    await keep_one_of_each(desk)
    desk.clock.advance(2)
    await housekeeping.sweep(desk.database, desk.clock)
    # The newer ones.
    assert await kept(desk) == [1, 1, 1]


async def test_a_forgotten_webhook_that_comes_again_changes_nothing(desk: Desk) -> None:
    payment = await desk.open_paid()
    desk.clock.advance(timedelta(days=181).total_seconds())
    await housekeeping.sweep(desk.database, desk.clock)
    assert await desk.count(tables.webhook_inbox) == 0
    before = await desk.find(payment)
    assert await desk.deliver() == [Outcome.UNCHANGED]
    assert await desk.find(payment) == before
    assert await desk.event_kinds() == ["captured"]
