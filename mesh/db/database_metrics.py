"""Metrics of a database: waits for the pool, statements, errors, connections."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import psycopg
import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import QueuePool

from mesh.observability import metrics, tracing

pool_wait = metrics.histogram("database_wait_seconds", "Time waited for a pooled connection.")

_KINDS = ("select", "insert", "update", "delete", "pipeline", "other")
_STATEMENTS = metrics.histogram(
    "database_statement_seconds", "Duration of statements, by kind.", "kind"
)
_BY_KIND = {kind: _STATEMENTS.labels(kind) for kind in _KINDS}
_FAILED = metrics.counter(
    "database_errors", "Failed statements, by class of the SQLSTATE.", "class"
)


def _connections(pool: QueuePool) -> Iterator[tuple[str, float]]:
    in_use = pool.checkedout()
    yield "in_use", in_use
    yield "free", pool.size() - in_use


_watch_pool = metrics.measured(
    "database_connections", "Connections of the pool, by state.", _connections, label="state"
)


def watch(engine: AsyncEngine) -> None:
    """Measures the statements of an engine and its pool."""
    sync = engine.sync_engine
    if isinstance(sync.pool, QueuePool):
        _watch_pool(sync.pool)
    sa.event.listen(sync, "before_cursor_execute", _before)
    sa.event.listen(sync, "after_cursor_execute", _after)
    sa.event.listen(sync, "handle_error", _failed)


@contextmanager
def pipeline(statements: int) -> Iterator[None]:
    """Measures a pipeline of statements as one; SQLAlchemy's events do not cover it."""
    span = tracing.statement("PIPELINE")
    began = time.perf_counter()
    try:
        yield
    except psycopg.Error as error:
        tracing.ended(span, type(error).__name__)
        _count_failure(error)
        raise
    finally:
        _BY_KIND["pipeline"].observe(time.perf_counter() - began)
        if span is not None:
            span.set_attribute("db.operation.batch.size", statements)
            span.end()


def _before(_connection: Any, _cursor: Any, sql: str, _values: Any, context: Any, _: bool) -> None:
    context.boxoffice_span = tracing.statement(sql[:6].upper())
    context.boxoffice_began = time.perf_counter()


def _after(_connection: Any, _cursor: Any, sql: str, _values: Any, context: Any, _: bool) -> None:
    kind = sql[:6].lower()
    _BY_KIND.get(kind, _BY_KIND["other"]).observe(time.perf_counter() - context.boxoffice_began)
    if context.boxoffice_span is not None:
        context.boxoffice_span.end()


def _failed(context: Any) -> None:
    span = getattr(context.execution_context, "boxoffice_span", None)
    if span is not None:
        tracing.ended(span, type(context.original_exception).__name__)
        span.end()
    _count_failure(context.original_exception)


def _count_failure(error: BaseException) -> None:
    # The class, "40" of 40001, keeps the number of label values small.
    state = getattr(error, "sqlstate", None) or ""
    _FAILED.labels(state[:2] or "connection").inc()
