"""Lists of events: what they hold, in which order, and that no page is torn."""

import asyncio
import random
from datetime import timedelta
from typing import Any

import pytest

from booking_svc.catalogue import event_listing, event_status
from booking_svc.catalogue.event_listing import Filters, Page, Totals
from booking_svc.catalogue.events import Event, Status
from mesh.errors import DomainError, Reason
from mesh.ids import new_id
from testing.booking_harness import START, BookingHarness

DAY = timedelta(days=1)


async def a_page(
    harness: BookingHarness,
    *,
    size: int = 100,
    token: str = "",
    totals: Totals | None = None,
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
        )


async def names(harness: BookingHarness, **filters: Any) -> list[str]:
    page = await a_page(harness, **filters)
    assert page.total_size == len(page.events)
    return [each.event.name for each in page.events]


async def dated(harness: BookingHarness, name: str, days: int, **changes: Any) -> Event:
    start = START + days * DAY
    return await harness.an_event(
        name=name, start_time=start, end_time=start + timedelta(hours=2), **changes
    )


async def test_events_come_by_their_start_and_the_undated_last(harness: BookingHarness) -> None:
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


async def test_drafts_are_listed_only_when_asked_for(harness: BookingHarness) -> None:
    await harness.an_event(name="draft", is_draft=True)
    await harness.an_event(name="public")
    assert await names(harness) == ["public"]
    assert await names(harness, status=Status.DRAFT) == ["draft"]


@pytest.mark.parametrize(
    ("query", "found"),
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
async def test_events_are_found_by_words_their_beginnings_and_slips(
    harness: BookingHarness, query: str, found: list[str]
) -> None:
    await harness.an_event(name="Monsoon Nights")
    await harness.an_event(name="Beyoncé in Concert", venue_name="Wankhede Stadium")
    await harness.an_event(name="मुंबई की शाम")
    assert await names(harness, query=query) == found


async def test_paging_while_events_are_added_shows_none_twice_and_misses_none(
    harness: BookingHarness,
) -> None:
    """Events are added before, between and after the pages that are being read."""
    rng = random.Random(7)
    there = {(await dated(harness, "there", rng.randrange(1, 50))).event_id for _ in range(20)} | {
        (await harness.an_event(start_time=None, end_time=None)).event_id for _ in range(5)
    }
    shown: list[Any] = []
    token = ""
    while True:
        page, *_ = await asyncio.gather(
            a_page(harness, size=3, token=token),
            dated(harness, "added", rng.randrange(1, 50)),
            harness.an_event(start_time=None, end_time=None),
        )
        shown += [each.event.event_id for each in page.events]
        token = page.next_page_token
        if not token:
            break
    assert len(shown) == len(set(shown))
    assert there <= set(shown)


async def test_a_token_is_refused_with_other_filters(harness: BookingHarness) -> None:
    for _ in range(3):
        await harness.an_event()
    token = (await a_page(harness, size=1)).next_page_token
    assert (await a_page(harness, size=1, token=token)).events
    with pytest.raises(DomainError) as refusal:
        await a_page(harness, size=1, token=token, status=Status.ON_SALE)
    assert refusal.value.reason is Reason.VALIDATION_FAILED


@pytest.mark.parametrize("counted_exactly", [1_000, 3])
async def test_pages_of_a_text_with_a_filter(
    harness: BookingHarness, monkeypatch: pytest.MonkeyPatch, counted_exactly: int
) -> None:
    """Few and many finds are looked up in two ways, which show the same."""
    monkeypatch.setattr(event_listing, "COUNTED_EXACTLY", counted_exactly)
    wanted = [(await dated(harness, f"Gala {n}", n)).event_id for n in range(1, 6)]
    await dated(harness, "Gala of before", 0)
    await dated(harness, "Derby", 3)
    shown: list[Any] = []
    token = ""
    for _ in range(3):
        page = await a_page(
            harness, size=2, token=token, query="gala", starts_after=START + timedelta(hours=1)
        )
        assert page.total_size == 5
        shown += [each.event.event_id for each in page.events]
        token = page.next_page_token
    assert (shown, token) == (wanted, "")


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


async def test_the_status_of_a_list_turns_with_the_clock(harness: BookingHarness) -> None:
    opens, closes = START + DAY, START + 2 * DAY
    event = await harness.an_event(
        sale_start_time=opens, sale_end_time=closes, start_time=None, end_time=None
    )

    async def turned() -> Status:
        async with harness.database.transaction() as connection:
            await event_status.apply_due_transitions(connection, now=harness.clock())
        [status] = [status for status in Status if (await a_page(harness, status=status)).events]
        assert status is event.status_at(harness.clock(), available=10)
        return status

    assert await turned() is Status.UPCOMING
    harness.clock.advance(DAY - timedelta(microseconds=1))
    assert await turned() is Status.UPCOMING
    harness.clock.advance(timedelta(microseconds=1))
    assert await turned() is Status.ON_SALE
    harness.clock.advance(DAY)
    assert await turned() is Status.ENDED
