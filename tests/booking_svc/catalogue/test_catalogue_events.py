"""Domain events of the catalogue, as webhooks send them."""

import json
from datetime import timedelta
from typing import Any
from uuid import UUID

import sqlalchemy as sa

from booking_svc.catalogue import sold_out
from booking_svc.catalogue.event_update import EventChange, OfferChange
from booking_svc.catalogue.events import Event, Status
from booking_svc.clients.ports import Availability, PoolChange, StockChange
from booking_svc.tables import outbox
from booking_svc.webhooks import payload
from mesh.money import Money
from testing.booking_harness import START, BookingHarness, a_new_event, an_offer

DAY = timedelta(days=1)


async def announced(harness: BookingHarness) -> list[tuple[str, dict[str, Any]]]:
    """The types and the data of the catalogue's domain events, in order."""
    async with harness.database.reading() as connection:
        rows = await connection.execute(
            sa.select(outbox.c.event_type, outbox.c.payload)
            .where(outbox.c.event_type.like("event.%"))
            .order_by(outbox.c.sequence)
        )
        messages = [payload.from_outbox(row.event_type, row.payload) for row in rows]
    bodies = [json.loads(message.body) for message in messages]
    assert [body["type"] for body in bodies] == [message.event_type for message in messages]
    return [(body["type"], body["data"]) for body in bodies]


def encode(event: Event, _: Availability) -> bytes:
    return event.event_id.bytes


async def create(harness: BookingHarness, **changes: Any) -> UUID:
    new = a_new_event(**changes)
    return UUID(bytes=await harness.commands.create(new=new, key=None, encode=encode))


async def change(harness: BookingHarness, event_id: UUID, **changes: Any) -> None:
    await harness.commands.update(event_id=event_id, change=EventChange(**changes), etag=None)


async def test_a_created_event_is_announced_with_its_stock(harness: BookingHarness) -> None:
    event_id = await create(harness)
    [(kind, data)] = await announced(harness)
    assert (kind, data["created"]) == ("event.created", {})
    event = data["event"]
    assert (event["eventId"], event["status"], event["available"]) == (str(event_id), "ON_SALE", 10)
    assert event["offers"][0]["price"] == {"currencyCode": "INR", "amountMinor": "150000"}


async def test_a_draft_is_announced_when_it_is_published(harness: BookingHarness) -> None:
    event_id = await create(harness, is_draft=True)
    await change(harness, event_id, name="Renamed")
    assert await announced(harness) == []
    await harness.commands.set_status(event_id=event_id, to=Status.UPCOMING)
    [(kind, data)] = await announced(harness)
    assert (kind, data["event"]["name"]) == ("event.created", "Renamed")


async def test_a_change_names_its_fields_and_a_move_both_schedules(
    harness: BookingHarness,
) -> None:
    event_id = await create(harness, venue_name="Regal")
    await change(harness, event_id, description="Another text")
    await change(harness, event_id, name="Monsoon Nights")
    assert len(await announced(harness)) == 1
    offer = OfferChange(name="Floor", price=Money(200_000, "INR"), capacity=12)
    await change(harness, event_id, name="Renamed", offers=(offer,))
    start = START + 40 * DAY
    await change(harness, event_id, start_time=start, end_time=start + DAY, venue_name="Hall")
    for status in (Status.PAUSED, Status.PAUSED, Status.ON_SALE):
        await harness.commands.set_status(event_id=event_id, to=status)
    _, renamed, moved, paused, resumed = await announced(harness)
    assert renamed[0] == moved[0] == paused[0] == resumed[0] == "event.changed"
    assert renamed[1]["changed"] == {"changedFields": ["name", "offers", "totalCapacity"]}
    assert (renamed[1]["event"]["available"], renamed[1]["event"]["name"]) == (12, "Renamed")
    assert moved[1]["changed"] == {
        "changedFields": ["endTime", "saleEndTime", "startTime", "venueName"],
        "before": {
            "startTime": "2030-07-01T12:00:00Z",
            "endTime": "2030-07-01T15:00:00Z",
            "venueName": "Regal",
        },
        "after": {
            "startTime": "2030-07-11T12:00:00Z",
            "endTime": "2030-07-12T12:00:00Z",
            "venueName": "Hall",
        },
    }
    assert paused[1]["changed"] == resumed[1]["changed"] == {"changedFields": ["status"]}
    assert (paused[1]["event"]["status"], resumed[1]["event"]["status"]) == ("PAUSED", "ON_SALE")


async def test_a_cancellation_is_announced_once_with_its_reason(harness: BookingHarness) -> None:
    event_id = await create(harness)
    for _ in range(2):
        await harness.commands.set_status(event_id=event_id, to=Status.CANCELLED, reason="Monsoon")
    _, (kind, data) = await announced(harness)
    assert (kind, data["cancelled"]) == ("event.cancelled", {"reason": "Monsoon"})
    assert data["event"]["status"] == "CANCELLED"


async def test_a_sold_out_event_is_announced_whenever_its_last_place_goes(
    harness: BookingHarness,
) -> None:
    event = await harness.an_event(an_offer(capacity=2))
    [pool_id] = {offer.pool_id for offer in event.offers}
    version = 0

    async def levels(*available: int) -> None:
        nonlocal version
        changes = []
        for left in available:
            version += 1
            pool = PoolChange(pool_id, 2, left, version, removed=False)
            changes.append(StockChange(event.event_id, (pool,), {}))
        async with harness.database.transaction() as connection:
            await sold_out.apply(connection, changes, harness.clock())

    await levels(1)
    assert await announced(harness) == []
    await levels(0)
    await levels(0)
    await levels(1, 0)
    [(kind, data)] = await announced(harness)
    assert (kind, data["soldOut"]) == ("event.sold_out", {})
    assert (data["event"]["status"], data["event"]["available"]) == ("SOLD_OUT", 0)
    await levels(1)
    await levels(0)
    assert len(await announced(harness)) == 2
    # A paused event is not sold out.
    await levels(1)
    await harness.commands.set_status(event_id=event.event_id, to=Status.PAUSED)
    await levels(0)
    assert [kind for kind, _ in await announced(harness)] == [
        "event.sold_out",
        "event.sold_out",
        "event.changed",
    ]
