"""Lists of events: filters, order, search, and pages while events are added."""

import asyncio
import random
from datetime import timedelta
from typing import Any

import pytest

from booking_svc.catalogue import event_listing, event_status, search
from booking_svc.catalogue.event_listing import Filters, Page, Totals
from booking_svc.catalogue.events import Event, Status
from booking_svc.catalogue.personal import PersonalReads
from booking_svc.catalogue.servicers.events import EventServicer
from booking_svc.catalogue.tables import events as events_table
from boxoffice.catalogue.v1 import event_pb2, event_service_pb2
from mesh.errors import DomainError, Reason
from mesh.ids import new_id
from mesh.rpc import call
from mesh.rpc.call import Caller
from mesh.rpc.policy import Access
from testing.booking_harness import START, BookingHarness

DAY = timedelta(days=1)


async def a_page(
    harness: BookingHarness,
    *,
    size: int = 100,
    token: str = "",
    totals: Totals | None = None,
    shows_drafts: bool = False,
    **filters: Any,
) -> Page:
    async with harness.database.reading() as connection:
        return await event_listing.list_page(
            connection,
            filters=Filters(**filters),
            page_size=size,
            page_token=token,
            totals=totals or Totals(),
            now=harness.clock(),
            shows_drafts=shows_drafts,
        )


async def names(harness: BookingHarness, **filters: Any) -> list[str]:
    page = await a_page(harness, **filters)
    assert page.total_size == len(page.events)
    return [listed.event.name for listed in page.events]


async def dated(harness: BookingHarness, name: str, days: int, **changes: Any) -> Event:
    start = START + days * DAY
    return await harness.an_event(
        name=name, start_time=start, end_time=start + timedelta(hours=2), **changes
    )


async def test_events_are_sorted_by_start_and_those_without_one_come_last(
    harness: BookingHarness,
) -> None:
    await dated(harness, "second", 20)
    await harness.an_event(name="goods", start_time=None, end_time=None)
    await dated(harness, "first", 10)
    assert await names(harness) == ["first", "second", "goods"]


async def test_each_filter_and_all_of_them(harness: BookingHarness) -> None:
    production = new_id()
    await dated(harness, "early", 5, production_id=production)
    await dated(harness, "late", 15, production_id=production)
    await dated(harness, "other", 15)
    await harness.an_event(name="goods", start_time=None, end_time=None, production_id=production)
    assert await names(harness, production_id=production) == ["early", "late", "goods"]
    at = START + 15 * DAY
    assert await names(harness, starts_after=at) == ["late", "other"]
    assert await names(harness, starts_before=at) == ["early"]
    assert await names(harness, starts_after=at, starts_before=at + DAY, query="oth") == ["other"]
    assert await names(harness, status=Status.ON_SALE, production_id=production) == [
        "early",
        "late",
        "goods",
    ]
    assert await names(harness, status=Status.PAUSED) == []
    assert await names(harness, venue_id=new_id()) == []


async def test_drafts_are_listed_only_with_their_status_as_filter(harness: BookingHarness) -> None:
    await harness.an_event(name="draft", is_draft=True)
    await harness.an_event(name="public")
    assert await names(harness) == ["public"]
    assert await names(harness, status=Status.DRAFT) == []
    page = await a_page(harness, status=Status.DRAFT, shows_drafts=True)
    assert [listed.event.name for listed in page.events] == ["draft"]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("事変", ["東京事変ライブ"]),
        ("東京事変ライブ", ["東京事変ライブ"]),
        ("京事変ラ", ["東京事変ライブ"]),
        ("ラ イブ", ["東京事変ライブ"]),
        ("ブ", ["東京事変ライブ"]),
        ("事京", []),
        ("東京事変ブ", []),
        ("ใหญ่", ["คอนเสิร์ตใหญ่ AKB48劇場"]),
        ("劇場", ["คอนเสิร์ตใหญ่ AKB48劇場"]),
        ("akb48劇", ["คอนเสิร์ตใหญ่ AKB48劇場"]),
        ("北京", ["北京国家大剧院"]),
        ("大剧院", ["北京国家大剧院"]),
        ("AC/DC", ["AC/DC"]),
        ("P!nk", ["P!nk"]),
        ("cafe", ["Café Tacvba"]),
        ("Café", ["Café Tacvba"]),
    ],
)
async def test_events_are_found_inside_words_of_scripts_without_spaces(
    harness: BookingHarness, query: str, expected: list[str]
) -> None:
    for name in (
        "東京事変ライブ",
        "คอนเสิร์ตใหญ่ AKB48劇場",
        "北京国家大剧院",
        "AC/DC",
        "P!nk",
        "Café Tacvba",
    ):
        await harness.an_event(name=name)
    assert await names(harness, query=query) == expected


async def test_events_of_an_older_version_are_found_by_whole_words_and_their_beginnings(
    harness: BookingHarness,
) -> None:
    event = await harness.an_event(name="東京事変ライブ")
    async with harness.database.transaction() as connection:
        await connection.execute(
            events_table.update()
            .where(events_table.c.event_id == event.event_id)
            .values(search=search.vector(["東京事変ライブ"]))
        )
    for query, expected in (("東京事変ライブ", 1), ("東京", 1), ("事変", 0)):
        assert len(await names(harness, query=query)) == expected


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("monsoon", ["Monsoon Nights"]),
        ("NIGHTS monsoon", ["Monsoon Nights"]),
        ("mons", ["Monsoon Nights"]),
        ("monsson", ["Monsoon Nights"]),
        ("monsoon nigths", ["Monsoon Nights"]),
        ("beyonce", ["Beyoncé in Concert"]),
        ("beyocne", ["Beyoncé in Concert"]),
        ("stadium", ["Beyoncé in Concert"]),
        ("मुंबई", ["मुंबई की शाम"]),
        ("monsoon concert", []),
        ("xylophone", []),
        ("&|!():*'", []),
        ("n", ["Monsoon Nights"]),
    ],
)
async def test_events_are_found_by_words_prefixes_and_misspelt_words(
    harness: BookingHarness, query: str, expected: list[str]
) -> None:
    await harness.an_event(name="Monsoon Nights")
    await harness.an_event(name="Beyoncé in Concert", venue_name="Wankhede Stadium")
    await harness.an_event(name="मुंबई की शाम")
    assert await names(harness, query=query) == expected


async def test_pages_neither_repeat_nor_miss_events_while_others_are_added(
    harness: BookingHarness,
) -> None:
    """Events are added before, within and after the pages that are read."""
    rng = random.Random(7)
    existing = {
        (await dated(harness, "existing", rng.randrange(1, 50))).event_id for _ in range(20)
    } | {(await harness.an_event(start_time=None, end_time=None)).event_id for _ in range(5)}
    shown: list[Any] = []
    token = ""
    while True:
        page, *_ = await asyncio.gather(
            a_page(harness, size=3, token=token),
            dated(harness, "added", rng.randrange(1, 50)),
            harness.an_event(start_time=None, end_time=None),
        )
        shown += [listed.event.event_id for listed in page.events]
        token = page.next_page_token
        if not token:
            break
    assert len(shown) == len(set(shown))
    assert existing <= set(shown)


async def test_a_page_token_is_refused_with_other_filters(harness: BookingHarness) -> None:
    for _ in range(3):
        await harness.an_event()
    token = (await a_page(harness, size=1)).next_page_token
    assert (await a_page(harness, size=1, token=token)).events
    with pytest.raises(DomainError) as refusal:
        await a_page(harness, size=1, token=token, status=Status.ON_SALE)
    assert refusal.value.reason is Reason.VALIDATION_FAILED


@pytest.mark.parametrize("counted_exactly", [1_000, 3])
async def test_pages_of_a_query_with_a_filter(
    harness: BookingHarness, monkeypatch: pytest.MonkeyPatch, counted_exactly: int
) -> None:
    """Few and many matches are queried in two ways with the same result."""
    monkeypatch.setattr(event_listing, "COUNTED_EXACTLY", counted_exactly)
    expected = [(await dated(harness, f"Gala {n}", n)).event_id for n in range(1, 6)]
    await dated(harness, "Gala of before", 0)
    await dated(harness, "Derby", 3)
    shown: list[Any] = []
    token = ""
    for _ in range(3):
        page = await a_page(
            harness, size=2, token=token, query="gala", starts_after=START + timedelta(hours=1)
        )
        assert page.total_size == 5
        shown += [listed.event.event_id for listed in page.events]
        token = page.next_page_token
    assert (shown, token) == (expected, "")


async def test_a_large_total_is_counted_once_in_ten_seconds(
    harness: BookingHarness, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_listing, "COUNTED_EXACTLY", 2)
    for _ in range(3):
        await harness.an_event()
    totals = Totals()
    assert (await a_page(harness, totals=totals)).total_size == 3
    await harness.an_event()
    assert (await a_page(harness, totals=totals)).total_size == 3
    harness.clock.advance(event_listing.TOTAL_LIFETIME)
    assert (await a_page(harness, totals=totals)).total_size == 4


async def test_the_listed_status_follows_the_clock(harness: BookingHarness) -> None:
    opens, closes = START + DAY, START + 2 * DAY
    event = await harness.an_event(
        sale_start_time=opens, sale_end_time=closes, start_time=None, end_time=None
    )

    async def status_after_transitions() -> Status:
        async with harness.database.transaction() as connection:
            await event_status.apply_due_transitions(connection, now=harness.clock())
        [status] = [status for status in Status if (await a_page(harness, status=status)).events]
        assert status is event.status_at(harness.clock(), available=10)
        return status

    assert await status_after_transitions() is Status.UPCOMING
    harness.clock.advance(DAY - timedelta(microseconds=1))
    assert await status_after_transitions() is Status.UPCOMING
    harness.clock.advance(timedelta(microseconds=1))
    assert await status_after_transitions() is Status.ON_SALE
    harness.clock.advance(DAY)
    assert await status_after_transitions() is Status.ENDED


async def test_equal_requests_share_a_reading_and_only_staff_gets_drafts(
    harness: BookingHarness,
) -> None:
    draft = await harness.an_event(is_draft=True)
    not_needed: Any = None
    reads = PersonalReads(harness.database, harness.stock)
    servicer = EventServicer(
        database=harness.database,
        commands=not_needed,
        availability=not_needed,
        streams=not_needed,
        orders=not_needed,
        cache=not_needed,
        personal_reads=reads,
        cancellation_progress=not_needed,
        clock=harness.clock,
    )

    async def listed(role: Access, **fields: Any) -> Any:
        call.identify(Caller("gateway", new_id(), role))
        request = event_service_pb2.ListEventsRequest(status=event_pb2.Event.DRAFT, **fields)
        return await servicer.ListEvents(request, None)

    def is_listed(answer: Any) -> bool:
        if isinstance(answer, bytes):
            answer = event_service_pb2.ListEventsResponse.FromString(answer)
        listed_events = answer.events
        return [event.event_id for event in listed_events] == [str(draft.event_id)]

    # The first one is being read while the others arrive.
    _, staff, customer, again, other = await asyncio.gather(
        listed(Access.STAFF),
        listed(Access.STAFF),
        listed(Access.CUSTOMER),
        listed(Access.ADMIN),
        listed(Access.STAFF, page_size=1),
    )
    assert [is_listed(answer) for answer in (staff, customer, again, other)] == [
        True,
        False,
        True,
        True,
    ]
    assert again is staff
    assert other is not staff
    with pytest.raises(DomainError) as refusal:
        await listed(Access.STAFF, page_token="x")
    assert refusal.value.reason is Reason.VALIDATION_FAILED
