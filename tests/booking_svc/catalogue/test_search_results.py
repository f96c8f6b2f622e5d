"""The search over events, productions and venues: what is found, its order, pages and plan."""

from dataclasses import astuple
from datetime import timedelta
from typing import Any

import pytest
import sqlalchemy as sa

from booking_svc.catalogue import productions, search, search_index, search_results, venues
from booking_svc.catalogue.events import Event, Status
from booking_svc.catalogue.productions import Production
from booking_svc.catalogue.search_results import EventResult, Page, ProductionResult, VenueResult
from booking_svc.catalogue.tables import events as events_table
from booking_svc.catalogue.venues import Venue
from mesh.errors import DomainError, Reason
from testing.booking_harness import START, BookingHarness

A_KEY = ("2", "Monsoon", "0197f000-0000-7000-8000-000000000001")
# Of small tables the planner would read all rows, or all of another index.
MANY_ROWS = """
INSERT INTO {table} ({columns}) SELECT {copied}
FROM {table}, generate_series(1, 3000) AS number, jsonb_populate_record(
    {table}, jsonb_build_object('{id}', gen_random_uuid(), 'number', number)
) AS copy
"""
TEXTS = ("title", "description", "poster_url", "age_rating", "language")


async def a_production(harness: BookingHarness, title: str, **values: Any) -> Production:
    given = {**dict.fromkeys(TEXTS, ""), "tags": [], "title": title, **values}
    async with harness.database.transaction() as connection:
        return await productions.create(connection, values=given, now=harness.clock())


async def a_venue(harness: BookingHarness, name: str, address: str = "") -> Venue:
    async with harness.database.transaction() as connection:
        return await venues.create_venue(
            connection, name=name, time_zone="UTC", address=address, now=harness.clock()
        )


async def set_status(harness: BookingHarness, event: Event, status: Status, **values: Any) -> None:
    async with harness.database.transaction() as connection:
        await connection.execute(
            events_table.update()
            .where(events_table.c.event_id == event.event_id)
            .values(current_status=status, **values)
        )


async def a_page(harness: BookingHarness, query: str, *, size: int = 100, token: str = "") -> Page:
    async with harness.database.reading() as connection:
        return await search_results.list_page(
            connection, query=query, page_size=size, page_token=token
        )


async def names(harness: BookingHarness, query: str) -> list[str]:
    page = await a_page(harness, query)
    assert page.total_size == len(page.results)
    return [astuple(result)[1] for result in page.results]


async def test_whole_words_of_names_come_before_beginnings_and_other_texts(
    harness: BookingHarness,
) -> None:
    await a_venue(harness, "Grand Hall", "Monsoon Street 1")
    await a_production(harness, "Rain", description="A monsoon of songs")
    await a_production(harness, "Dance", tags=["monsoons"])
    await harness.an_event(name="Spring", description="After the monsoon")
    await harness.an_event(name="Autumn", venue_name="Monsoon Arena")
    await a_production(harness, "Monsoonal")
    await a_venue(harness, "Club Monsoons")
    await harness.an_event(name="A Monsoon Wedding")
    await a_production(harness, "Monsoon")
    await a_venue(harness, "The MONSOON")
    assert await names(harness, "monsoon") == [
        "A Monsoon Wedding",
        "Monsoon",
        "The MONSOON",
        "Club Monsoons",
        "Monsoonal",
        "Autumn",
        "Dance",
        "Grand Hall",
        "Rain",
        "Spring",
    ]
    # Both words in the name come before one in the name and one in another text.
    await a_production(harness, "Hall of Fame", description="monsoon")
    await a_production(harness, "Monsoon Hall")
    assert await names(harness, "hall monsoon") == ["Monsoon Hall", "Grand Hall", "Hall of Fame"]


async def test_cancelled_and_past_events_come_last_in_their_group(harness: BookingHarness) -> None:
    for name, status in (("A", Status.CANCELLED), ("B", Status.ENDED), ("C", Status.SOLD_OUT)):
        await set_status(harness, await harness.an_event(name=f"Monsoon {name}"), status)
    await a_production(harness, "Monsoonal")
    assert await names(harness, "monsoon") == ["Monsoon C", "Monsoon A", "Monsoon B", "Monsoonal"]


async def test_what_the_public_may_not_see_is_not_found(harness: BookingHarness) -> None:
    draft = await harness.an_event(name="Monsoon draft", is_draft=True)
    deleted = await harness.an_event(name="Monsoon deleted")
    await set_status(harness, deleted, Status.ENDED, delete_time=START)
    production, venue = await a_production(harness, "Monsoon"), await a_venue(harness, "Monsoon")
    async with harness.database.transaction() as connection:
        await productions.delete(
            connection, production_id=production.production_id, now=harness.clock()
        )
        await venues.delete_venue(connection, venue_id=venue.venue_id, now=harness.clock())
    assert await names(harness, "monsoon") == []
    await set_status(harness, draft, Status.UPCOMING)
    assert await names(harness, "monsoon") == ["Monsoon draft"]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("monsson", ["Monsoon Nights"]),
        ("beyonce", ["Beyoncé in Concert"]),
        ("churchgaet", ["Wankhede Stadium"]),
        ("事変", ["東京事変ライブ", "事変の歌"]),
        ("変の", ["事変の歌"]),
        ("xylophone", []),
        ("monsoon xylophone", []),
        ("&|!():*'", []),
    ],
)
async def test_results_are_found_by_misspelt_words_and_inside_words_of_scripts_without_spaces(
    harness: BookingHarness, query: str, expected: list[str]
) -> None:
    await a_production(harness, "Monsoon Nights")
    await a_production(harness, "Beyoncé in Concert")
    await a_venue(harness, "Wankhede Stadium", "D Road, Churchgate")
    await harness.an_event(name="東京事変ライブ")
    await a_production(harness, "事変の歌")
    assert sorted(await names(harness, query)) == sorted(expected)


async def test_results_are_shown_in_short_form(harness: BookingHarness) -> None:
    production = await a_production(
        harness, "Monsoon", duration_minutes=90, poster_url="https://cdn.example/p", language="hi"
    )
    event = await harness.an_event(name="Monsoon", production_id=production.production_id)
    venue = await a_venue(harness, "Monsoon", "Here")
    page = await a_page(harness, "monsoon")
    assert set(page.results) == {
        EventResult(
            event.event_id,
            "Monsoon",
            production.production_id,
            None,
            "Asia/Kolkata",
            START + timedelta(days=30),
            START + timedelta(days=30, hours=3),
            Status.ON_SALE,
        ),
        ProductionResult(
            production.production_id, "Monsoon", 90, "https://cdn.example/p", "", "hi"
        ),
        VenueResult(venue.venue_id, "Monsoon", "UTC", "Here"),
    }


async def test_a_change_is_found_by_its_new_words(harness: BookingHarness) -> None:
    production, venue = await a_production(harness, "Spring"), await a_venue(harness, "Old Hall")
    async with harness.database.transaction() as connection:
        await productions.update(
            connection,
            production_id=production.production_id,
            values={"title": "Autumn"},
            now=harness.clock(),
        )
        await venues.update_venue(
            connection, venue_id=venue.venue_id, values={"name": "Arena"}, now=harness.clock()
        )
    for query, expected in (("autumn", 1), ("arena", 1), ("spring", 0), ("hall", 0)):
        assert len(await names(harness, query)) == expected, query


async def test_pages_have_every_result_once_in_order(harness: BookingHarness) -> None:
    """Equal names and ranks, of all kinds."""
    for _ in range(3):
        await harness.an_event(name="Monsoon")
        await a_production(harness, "Monsoon")
        await a_venue(harness, "Monsoon")
        await a_venue(harness, "Hall", "Monsoon")
    everything = await a_page(harness, "monsoon")
    assert (len(everything.results), everything.next_page_token) == (12, "")
    results: list[Any] = []
    token = ""
    while True:
        page = await a_page(harness, "monsoon", size=5, token=token)
        assert page.total_size == 12
        results += page.results
        token = page.next_page_token
        if not token:
            break
    assert results == list(everything.results)


async def test_a_page_after_the_last_result_is_empty_with_the_total(
    harness: BookingHarness,
) -> None:
    await a_venue(harness, "Monsoon A")
    last = await a_venue(harness, "Monsoon B")
    page = await a_page(harness, "monsoon", size=1)
    async with harness.database.transaction() as connection:
        await venues.delete_venue(connection, venue_id=last.venue_id, now=harness.clock())
    rest = await a_page(harness, "monsoon", size=1, token=page.next_page_token)
    assert rest == Page((), "", 1)


async def test_a_page_token_is_refused_with_another_query(harness: BookingHarness) -> None:
    for name in ("Monsoon A", "Monsoon B"):
        await a_venue(harness, name)
    token = (await a_page(harness, "monsoon", size=1)).next_page_token
    with pytest.raises(DomainError) as refused:
        await a_page(harness, "mons", size=1, token=token)
    assert refused.value.reason is Reason.VALIDATION_FAILED


async def test_rows_of_an_older_version_are_indexed(harness: BookingHarness) -> None:
    await harness.an_event(name="Monsoon", description="winter")
    await a_production(harness, "Monsoonal", description="winter")
    await a_venue(harness, "Monsoons", "winter")
    before = [await names(harness, query) for query in ("monsoon", "winter")]
    async with harness.database.transaction() as connection:
        for table in search_index.IDS:
            values: dict[str, Any] = {"name_search": None}
            if table is not events_table:
                values["search"] = None
            await connection.execute(table.update().values(values))
    assert await names(harness, "monsoon") == ["Monsoon"]
    assert await search_index.index_missing(harness.database) == 3
    assert [await names(harness, query) for query in ("monsoon", "winter")] == before
    assert await search_index.index_missing(harness.database) == 0


async def test_the_statement_can_use_the_index_of_each_table(harness: BookingHarness) -> None:
    await harness.an_event(name="Winter")
    await a_production(harness, "Winter")
    await a_venue(harness, "Winter")
    async with harness.database.transaction() as connection:
        for table, column in search_index.IDS.items():
            columns = [defined.name for defined in table.columns if defined.computed is None]
            many_rows = MANY_ROWS.format(
                table=table.name,
                id=column.name,
                columns=", ".join(columns),
                copied=", ".join(f"copy.{name}" for name in columns),
            )
            await connection.execute(sa.text(many_rows))
            await connection.execute(sa.text(f"ANALYZE {table.name}"))
        for kind in ("seqscan", "indexscan", "indexonlyscan"):
            await connection.execute(sa.text(f"SET LOCAL enable_{kind} = off"))
        statement = search_results.statement(search.Patterns("'monsoon'", "'monsoon':*"), A_KEY, 21)
        text = statement.compile(
            dialect=connection.dialect, compile_kwargs={"render_postcompile": True}
        )
        plan: Any = await connection.exec_driver_sql(f"EXPLAIN {text}", text.params)
        lines = "\n".join(row[0] for row in plan)
    for table in search_index.IDS:
        assert f"Bitmap Index Scan on {table.name}_search_idx" in lines, lines
        # The columns of results are read for the page only.
        assert f"Bitmap Index Scan on {table.name}_pkey" in lines, lines
