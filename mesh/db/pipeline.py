"""Statements in one round trip, on a connection of SQLAlchemy's pool and in its transaction.

Only for the paths that every sale takes: a statement costs a third of what it costs through
SQLAlchemy. Other statements go through SQLAlchemy (mesh/db/database.py).
"""

from collections import namedtuple
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, cast
from uuid import UUID

import psycopg
import sqlalchemy as sa
from psycopg.pq import PipelineStatus
from sqlalchemy.dialects.postgresql.psycopg import PGDialect_psycopg
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.db import database_metrics

_DIALECT = PGDialect_psycopg()  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True)
class Statement:
    """SQL with psycopg's `%s` or `%(name)s` parameters; it is prepared once per connection."""

    sql: str
    parameters: Sequence[object] | Mapping[str, object] = ()


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


def columns(rows: Iterable[Sequence[object]], width: int) -> list[str]:
    """Transposes rows to one array per column, for `unnest`."""
    transposed = list(zip(*rows, strict=True)) or [()] * width
    if len(transposed) != width:
        raise ValueError(f"rows of {len(transposed)} values for {width} columns")
    return [array(column) for column in transposed]


def array(values: Iterable[object]) -> str:
    """An array as PostgreSQL reads it. The statement gives its type: `%s::uuid[]`.

    psycopg's own conversion of lists takes several times as long.
    """
    return "{" + ",".join([_element(value) for value in values]) + "}"


def _element(value: object) -> str:
    convert = _ELEMENTS.get(type(value))
    if convert is not None:
        return convert(value)
    if isinstance(value, str):
        return _quoted(str(value))
    raise TypeError(f"no array element: {type(value).__name__}")


def _quoted(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


_ELEMENTS: dict[type, Callable[[Any], str]] = {
    type(None): lambda _: "NULL",
    UUID: lambda value: value.hex,
    str: _quoted,
    int: str,
    bool: lambda value: "t" if value else "f",
    datetime: datetime.isoformat,
    bytes: lambda value: f'"\\\\x{value.hex()}"',
}


class Query:
    """A statement of SQLAlchemy that returns rows, compiled once, to run as a Statement.

    Values and rows are psycopg's: types that only SQLAlchemy converts are not supported.
    """

    def __init__(self, statement: sa.Select[Any] | sa.UpdateBase) -> None:
        compiled = statement.compile(dialect=_DIALECT)
        self._sql = str(compiled)
        self._parameters = dict(compiled.params)
        names: Any = statement.exported_columns.keys()
        row: Any = namedtuple("Row", names)  # type: ignore[misc]
        self._row = row

    def statement(self, **parameters: object) -> Statement:
        """The query with values for its bind parameters."""
        return Statement(self._sql, {**self._parameters, **parameters})

    def rows(self, result: Result) -> list[Any]:
        """The rows of its result; columns are attributes."""
        return [self._row._make(row) for row in result.rows]


def as_one(statements: Sequence[Statement]) -> Statement:
    """One statement for several that change rows. Its one row has the number of rows of each.

    They share a snapshot and run in any order: none may change what another one reads or changes.
    """
    parts = [f"part_{n} AS ({part.sql} RETURNING 1)" for n, part in enumerate(statements)]
    counts = [f"(SELECT count(*) FROM part_{n})" for n in range(len(statements))]
    return Statement(
        f"WITH {', '.join(parts)} SELECT {', '.join(counts)}",
        [parameter for part in statements for parameter in part.parameters],
    )


async def run_together(
    connection: AsyncConnection, statements: Sequence[Statement], *, commits: bool = False
) -> list[Result]:
    """Sends all statements at once; they run in order in the caller's transaction.

    With `commits` the COMMIT is sent with them: the caller's own commit then needs no round trip.
    The first error stops the rest, the COMMIT too, and is raised as SQLAlchemy's DBAPIError.
    """
    raw = await connection.get_raw_connection()
    driver = cast(psycopg.AsyncConnection[tuple[Any, ...]], raw.driver_connection)
    cursors = []
    try:
        if len(statements) == 1 and not commits:
            # A pipeline of one statement costs twice as much as the statement.
            [statement] = statements
            with database_metrics.pipeline(1):
                cursor = driver.cursor()
                await cursor.execute(statement.sql, statement.parameters, prepare=True)
                return [await _result(cursor)]
        with database_metrics.pipeline(len(statements)):
            async with driver.pipeline():
                for statement in statements:
                    cursor = driver.cursor()
                    await cursor.execute(statement.sql, statement.parameters, prepare=True)
                    cursors.append(cursor)
                if commits:
                    await driver.commit()
        return [await _result(cursor) for cursor in cursors]
    except psycopg.Error as error:
        raise _as_sqlalchemy(connection, error, is_broken=driver.broken) from error
    finally:
        if driver.pgconn.pipeline_status != PipelineStatus.OFF:
            # Cancelled while psycopg entered the pipeline, where it sometimes yields to the loop,
            # and never left it: the next caller would get no results.
            await connection.invalidate()


async def _result(cursor: psycopg.AsyncCursor[tuple[Any, ...]]) -> Result:
    return Result([] if cursor.description is None else await cursor.fetchall(), cursor.rowcount)


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
