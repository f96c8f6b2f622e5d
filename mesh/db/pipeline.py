"""Several statements in one round trip, on the connection of a running transaction.

Only for paths whose cost is mostly round trips. Other statements go through SQLAlchemy
(mesh/db/database.py).
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import psycopg
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.db import database_metrics


@dataclass(frozen=True, slots=True)
class Statement:
    """SQL with psycopg's `%s` parameters; it is prepared once per connection."""

    sql: str
    parameters: Sequence[object] = ()


FORCE_INDEX_SCANS = Statement("""
SELECT set_config('enable_seqscan', 'off', true),
       set_config('enable_hashjoin', 'off', true),
       set_config('enable_mergejoin', 'off', true)
""")
"""Run before look-ups by key; it holds for the rest of the transaction.

Otherwise a cached plan that was made while the tables were small keeps using sequential scans.
"""


@dataclass(frozen=True, slots=True)
class Result:
    """The rows that a statement returned, and the number of rows that it returned or changed."""

    rows: list[tuple[Any, ...]]
    count: int


def columns(rows: Iterable[Sequence[object]], width: int) -> list[list[object]]:
    """Transposes rows to one list per column, for `unnest`."""
    listed = list(rows)
    return [[row[n] for row in listed] for n in range(width)]


async def run_together(
    connection: AsyncConnection, statements: Sequence[Statement]
) -> list[Result]:
    """Sends all statements at once; they run in order in the caller's transaction.

    The first error stops the rest and is raised as SQLAlchemy's DBAPIError.
    """
    raw = await connection.get_raw_connection()
    driver = cast(psycopg.AsyncConnection[tuple[Any, ...]], raw.driver_connection)
    cursors = []
    try:
        with database_metrics.pipeline(len(statements)):
            async with driver.pipeline():
                for statement in statements:
                    cursor = driver.cursor()
                    await cursor.execute(statement.sql, statement.parameters, prepare=True)
                    cursors.append(cursor)
        return [
            Result([] if cursor.description is None else await cursor.fetchall(), cursor.rowcount)
            for cursor in cursors
        ]
    except psycopg.Error as error:
        raise _as_sqlalchemy(connection, error, is_broken=driver.broken) from error


def _as_sqlalchemy(
    connection: AsyncConnection, error: psycopg.Error, *, is_broken: bool
) -> BaseException:
    return sa.exc.DBAPIError.instance(
        None,
        None,
        error,
        psycopg.Error,
        connection_invalidated=is_broken,
        dialect=connection.dialect,
    )
