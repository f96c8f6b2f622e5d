"""What events are to customers: marks and remaining limits, for many customers at once."""

import asyncio
from collections.abc import Mapping, Sequence
from functools import partial
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest

from booking_svc.catalogue import events, favourites, personal
from booking_svc.catalogue.availability import AvailabilityCache
from booking_svc.catalogue.events import Event
from booking_svc.catalogue.personal import Limits, Personal, PersonalReads
from booking_svc.catalogue.servicers.events import EventServicer
from booking_svc.clients.stock import StockClient
from boxoffice.catalogue.v1 import event_pb2, event_service_pb2
from mesh import coalescing
from mesh.db.pipeline import FORCE_INDEX_SCANS, run_together
from mesh.errors import DomainError, Reason
from mesh.ids import new_id
from mesh.rpc import call
from mesh.rpc.call import Caller
from mesh.rpc.policy import Access
from testing.booking_harness import BookingHarness, an_offer, stock_stub

ADULT, CHILD = new_id(), new_id()
# No test waits for it.
LONG = 60.0


class CountedStock(StockClient):
    """Counts the calls and the keys of each; `gate` is awaited before one is answered."""

    def __init__(self, harness: BookingHarness) -> None:
        super().__init__(stock_stub(harness.ledger, harness.clock))
        self.calls: list[int] = []
        self.gate: asyncio.Event | None = None
        self.error: Exception | None = None

    async def customer_totals(
        self, *, keys: Sequence[tuple[UUID, UUID]]
    ) -> Sequence[Mapping[UUID, int]]:
        self.calls.append(len(keys))
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        return await super().customer_totals(keys=keys)


def limits_of(event: Event) -> Limits:
    return Limits(
        event.event_id,
        {offer.offer_id: offer.per_customer_limit for offer in event.offers},
        event.per_customer_limit,
    )


async def mark(harness: BookingHarness, user_id: UUID, event: Event) -> None:
    async with harness.database.transaction() as connection:
        await favourites.add(
            connection, user_id=user_id, event_id=event.event_id, now=harness.clock()
        )


@pytest.mark.parametrize(
    ("per_customer_limit", "totals", "expected"),
    [
        (None, {}, (4, 2)),
        (None, {ADULT: 1}, (3, 2)),
        (None, {ADULT: 9, CHILD: 2}, (0, 0)),
        (3, {}, (3, 2)),
        (3, {ADULT: 2}, (1, 1)),
        (3, {ADULT: 1, CHILD: 2}, (0, 0)),
        (3, {ADULT: 4}, (0, 0)),
    ],
)
def test_limits_of_the_offer_and_of_the_event_both_count(
    per_customer_limit: int | None, totals: dict[UUID, int], expected: tuple[int, int]
) -> None:
    limits = Limits(new_id(), {ADULT: 4, CHILD: 2}, per_customer_limit)
    assert limits.remaining(totals) == dict(zip((ADULT, CHILD), expected, strict=True))


async def test_marks_and_limits_are_of_the_customer_who_asks(harness: BookingHarness) -> None:
    first = await harness.an_event(an_offer(per_customer_limit=6))
    second = await harness.an_event(an_offer(per_customer_limit=6), per_customer_limit=3)
    mira, ravi = new_id(), new_id()
    await harness.place(first, quantity=4, customer_id=mira)
    await harness.place(second, quantity=1, customer_id=ravi)
    await mark(harness, mira, second)
    reads = PersonalReads(harness.database, harness.stock, deadline_seconds=LONG)
    events = [limits_of(first), limits_of(second)]
    [offer], [limited] = first.offers, second.offers
    of_mira, of_ravi = await asyncio.gather(reads.read(mira, events), reads.read(ravi, events))
    assert of_mira == [
        Personal(False, {offer.offer_id: 2}),
        Personal(True, {limited.offer_id: 3}),
    ]
    assert of_ravi == [
        Personal(False, {offer.offer_id: 6}),
        Personal(False, {limited.offer_id: 2}),
    ]
    assert await reads.read(mira, []) == ()


async def test_concurrent_customers_share_a_call_of_stock_svc(harness: BookingHarness) -> None:
    """The first reading is under way while the others arrive."""
    event = await harness.an_event()
    stock = CountedStock(harness)
    stock.gate = asyncio.Event()
    reads = PersonalReads(harness.database, stock, deadline_seconds=LONG)
    customers = [new_id() for _ in range(40)]
    await mark(harness, customers[7], event)

    def begin(customer_id: UUID) -> asyncio.Task[Sequence[Personal]]:
        return asyncio.create_task(reads.read(customer_id, [limits_of(event)]))

    reading = [begin(customers[0])]
    async with asyncio.timeout(60):
        while not stock.calls:
            await asyncio.sleep(0)
    reading += map(begin, customers[1:])
    # All have submitted their requests.
    await asyncio.sleep(0)
    stock.gate.set()
    read = await asyncio.gather(*reading)
    assert stock.calls == [1, 39]
    marked = [shown.is_favourite for [shown] in read]
    assert marked == [number == 7 for number in range(40)]


async def test_a_large_batch_is_read_in_chunks(harness: BookingHarness) -> None:
    event = await harness.an_event()
    [offer] = event.offers
    known = limits_of(event)
    many = Limits(new_id(), {new_id(): 10 for _ in range(personal.MAX_KEYS - 1)}, None)
    stock = CountedStock(harness)
    reads = PersonalReads(harness.database, stock, deadline_seconds=LONG)
    customer_id = new_id()
    await harness.place(event, quantity=4, customer_id=customer_id)
    read = await reads.read(customer_id, [many, known, known, many])
    assert stock.calls == [2, 2]
    assert [shown.remaining for shown in read[1:3]] == [
        {offer.offer_id: known.offers[offer.offer_id] - 4}
    ] * 2
    assert read[0].remaining == many.offers


async def test_without_stock_svc_marks_are_still_known(harness: BookingHarness) -> None:
    event, customer_id = await harness.an_event(), new_id()
    await mark(harness, customer_id, event)
    stock = CountedStock(harness)
    stock.error = DomainError(Reason.DEPENDENCY_UNAVAILABLE, "stock_svc is away")
    reads = PersonalReads(harness.database, stock, deadline_seconds=LONG)
    assert await reads.read(customer_id, [limits_of(event)]) == [Personal(True, None)]


async def test_a_frozen_stock_svc_does_not_hold_up_the_reader(
    harness: BookingHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The batch itself would end only much later.
    monkeypatch.setattr(coalescing, "_READ_SECONDS", 1000.0)
    event = await harness.an_event()
    stock = CountedStock(harness)
    stock.gate = asyncio.Event()
    reads = PersonalReads(harness.database, stock, deadline_seconds=0.1)
    [read] = await reads.read(new_id(), [limits_of(event)])
    assert read.remaining is None


async def test_a_reading_that_fails_by_a_bug_is_not_hidden(harness: BookingHarness) -> None:
    stock = CountedStock(harness)
    stock.error = RuntimeError("a bug")
    reads = PersonalReads(harness.database, stock, deadline_seconds=LONG)
    with pytest.raises(RuntimeError, match="a bug"):
        await reads.read(new_id(), [limits_of(await harness.an_event())])


async def test_marks_are_looked_up_by_key(harness: BookingHarness) -> None:
    sql = favourites.MARKED
    for number in range(sql.count("%s")):
        sql = sql.replace("%s", f"${number + 1}", 1)
    async with harness.database.transaction() as connection:
        await run_together(connection, [FORCE_INDEX_SCANS])
        await connection.exec_driver_sql("SET LOCAL plan_cache_mode = force_generic_plan")
        await connection.exec_driver_sql(f"PREPARE marked (int[], uuid[], uuid[]) AS {sql}")
        plan: Any = await connection.exec_driver_sql("EXPLAIN EXECUTE marked ('{}', '{}', '{}')")
        lines = "\n".join(row[0] for row in plan)
        await connection.exec_driver_sql("DEALLOCATE marked")
    assert "favourites_pkey" in lines, lines
    assert "user_id = requested.user_id" in lines, lines
    assert "event_id = requested.event_id" in lines, lines


async def test_only_answers_for_customers_are_read_and_made_for_the_caller_alone(
    harness: BookingHarness,
) -> None:
    event = await harness.an_event()
    [offer] = event.offers
    customer_id = new_id()
    await harness.place(event, quantity=3, customer_id=customer_id)
    not_needed: Any = None
    cache: Any = SimpleNamespace(get=partial(_from_database, harness))
    reads = PersonalReads(harness.database, harness.stock, deadline_seconds=60)
    readings: list[UUID] = []
    read = reads.read

    async def counted(customer_id: UUID, events: Sequence[Limits]) -> Sequence[Personal]:
        readings.append(customer_id)
        return await read(customer_id, events)

    reads.read = counted  # type: ignore[method-assign]
    servicer = EventServicer(
        database=harness.database,
        commands=not_needed,
        availability=AvailabilityCache(stock=harness.stock, read_event=cache.get),
        orders=not_needed,
        streams=not_needed,
        cache=cache,
        personal_reads=reads,
        cancellation_progress=not_needed,
        clock=harness.clock,
    )

    async def shown(caller: Caller) -> list[tuple[bool | None, int | None]]:
        """Of GetEvent, of ListEvents, and of ListEvents with a query."""
        call.identify(caller)
        request = event_service_pb2.GetEventRequest(event_id=str(event.event_id))
        answer = await servicer.GetEvent(request, None)
        if isinstance(answer, bytes):
            answer = event_pb2.Event.FromString(answer)
        messages = [answer]
        for query in ("", "monsoon"):
            listing = event_service_pb2.ListEventsRequest(query=query)
            answer = await servicer.ListEvents(listing, None)
            if isinstance(answer, bytes):
                answer = event_service_pb2.ListEventsResponse.FromString(answer)
            messages += answer.events
        return [
            (
                message.is_favourite if message.HasField("is_favourite") else None,
                message.offers[0].remaining_for_you
                if message.offers[0].HasField("remaining_for_you")
                else None,
            )
            for message in messages
        ]

    others = (
        Caller("gateway"),
        *(Caller("gateway", new_id(), role) for role in (Access.STAFF, Access.ADMIN)),
    )
    for _ in range(2):
        for caller in others:
            assert await shown(caller) == [(None, None)] * 3
    assert readings == []
    limit = offer.per_customer_limit
    for user_id, left in ((customer_id, limit - 3), (new_id(), limit)):
        assert await shown(Caller("gateway", user_id, Access.CUSTOMER)) == [(False, left)] * 3
    for caller in others:
        assert await shown(caller) == [(None, None)] * 3
    assert len(readings) == 6


async def _from_database(harness: BookingHarness, event_id: UUID) -> Event:
    async with harness.database.reading() as connection:
        return await events.get(connection, event_id=event_id)
