"""Several statements in one round trip: their arrays, and one statement for several."""

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from datetime import UTC, datetime
from uuid import UUID

import pytest
import sqlalchemy as sa

from mesh.db.database import Database
from mesh.db.pipeline import Statement, array, as_one, columns, run_together

OpenDatabase = Callable[[str], AbstractAsyncContextManager[Database]]


@pytest.mark.parametrize(
    ("type_name", "values"),
    [
        ("uuid", [UUID(int=5), None]),
        ("text", ["a", 'quote " and \\ and {,}', "", "NULL", "  ", "é\n\t", None]),
        ("int", [1, -2, None]),
        ("bool", [True, False, None]),
        ("timestamptz", [datetime(2031, 5, 17, 18, 0, 0, 123456, tzinfo=UTC), None]),
        ("bytea", [b"", bytes(range(256)), None]),
        ("text", []),
    ],
)
async def test_arrays_arrive_as_they_are(
    open_database: OpenDatabase, type_name: str, values: list[object]
) -> None:
    async with open_database("stock_svc") as database, database.transaction() as connection:
        [result] = await run_together(
            connection, [Statement(f"SELECT %s::{type_name}[]", [array(values)])]
        )
    assert result.rows == [(values,)]


def test_an_unknown_type_is_refused() -> None:
    with pytest.raises(TypeError):
        array([1.5])


def test_rows_are_transposed() -> None:
    assert columns([(1, "a"), (2, None)], 2) == ["{1,2}", '{"a",NULL}']
    assert columns([], 2) == ["{}", "{}"]
    with pytest.raises(ValueError, match="3 columns"):
        columns([(1, 2)], 3)


async def test_several_statements_as_one(open_database: OpenDatabase) -> None:
    async with open_database("stock_svc") as database:
        async with database.transaction() as connection:
            await connection.execute(sa.text("CREATE TABLE t (n int PRIMARY KEY)"))
            await connection.execute(sa.text("CREATE TABLE u (n int PRIMARY KEY)"))
        insert = "INSERT INTO {} SELECT * FROM unnest(%s::int[]) ON CONFLICT DO NOTHING"
        parts = [
            Statement(insert.format("t"), [array([1, 2, 2])]),
            Statement(insert.format("u"), [array([])]),
        ]
        async with database.transaction() as connection:
            [result] = await run_together(connection, [as_one(parts)])
        assert result.rows == [(2, 0)]


async def test_a_commit_that_is_sent_with_the_statements(open_database: OpenDatabase) -> None:
    """It commits all of them, or nothing if one fails."""
    async with open_database("stock_svc") as database:
        async with database.transaction() as connection:
            await connection.execute(sa.text("CREATE TABLE t (n int PRIMARY KEY)"))

        def inserting(*numbers: int) -> list[Statement]:
            return [Statement("INSERT INTO t VALUES (%s)", [number]) for number in numbers]

        async def count() -> int:
            async with database.reading() as connection:
                return int(await connection.scalar(sa.text("SELECT count(*) FROM t")) or 0)

        async with database.transaction() as connection:
            await run_together(connection, inserting(1, 2), commits=True)
            assert await count() == 2
        with pytest.raises(sa.exc.IntegrityError):
            async with database.transaction() as connection:
                await run_together(connection, inserting(3, 1, 4), commits=True)
        assert await count() == 2
        async with database.transaction() as connection:
            await run_together(connection, inserting(5))
        assert await count() == 3
