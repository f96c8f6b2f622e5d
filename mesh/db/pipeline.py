"""Several statements in one round trip, on the connection of a running transaction.

For the few paths where the way to the server and back is most of the cost. Everything else
goes through SQLAlchemy (mesh/db/database.py).
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
    """SQL as psycopg takes it, `%s` for each parameter; it is prepared once per connection."""

    sql: str
    parameters: Sequence[object] = ()


FORCE_INDEX_SCANS = Statement("""
SELECT set_config('enable_seqscan', 'off', true),
       set_config('enable_hashjoin', 'off', true),
       set_config('enable_mergejoin', 'off', true)
""")
"""Before statements that look rows up by their keys, for the rest of the transaction.

A plan that was made while the tables were small, and is kept, would go on reading them from end
to end.
"""


@dataclass(frozen=True, slots=True)
class Result:
    """What a statement returned, and how many rows it has changed or found."""

    rows: list[tuple[Any, ...]]
    count: int


def columns(rows: Iterable[Sequence[object]], width: int) -> list[list[object]]:
    """Rows as one list for each of `width` columns, as `unnest` takes them."""
    listed = list(rows)
    return [[row[n] for row in listed] for n in range(width)]


async def run_together(
    connection: AsyncConnection, statements: Sequence[Statement]
) -> list[Result]:
    """Sends all statements at once; they run one after the other, in the caller's transaction.

    Each sees what those before it did. The first that fails stops the rest; its error is
    raised as SQLAlchemy would raise it.
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
