"""Recognises errors that are no bugs: another process or the database is away, busy or restarts."""

import grpc
import psycopg
import sqlalchemy.exc

from mesh.errors import DomainError, Reason

# SQLSTATEs of a busy database: statement timeout and lock timeout.
_BUSY_SQLSTATES = frozenset({"57014", "55P03"})
# Serialization failure and deadlock: the transaction was rolled back and may be retried.
_ROLLED_BACK_SQLSTATES = frozenset({"40001", "40P01"})

REASONS = frozenset({Reason.DEPENDENCY_UNAVAILABLE, Reason.DEADLINE_EXCEEDED, Reason.OVERLOADED})
"""What calls fail with while another process of the mesh is away or busy."""

# A server that stops, or that closes a connection at its maximum age.
_ENDED = frozenset({grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED})


class InterruptedLoopError(Exception):
    """A turn of a background loop ended early for a reason that is none to report."""


class OutageError(Exception):
    """Something that the work needs is away or busy."""


def is_planned(error: Exception) -> bool:
    """Whether a background loop only has to start again: its stream ended, or it was replaced."""
    if isinstance(error, grpc.aio.AioRpcError):
        return error.code() in _ENDED
    return isinstance(error, InterruptedLoopError)


def is_outage(error: BaseException) -> bool:
    """Whether something that the work needs is away or busy."""
    if isinstance(error, DomainError):
        return error.reason in REASONS
    if isinstance(error, sqlalchemy.exc.SQLAlchemyError):
        return from_database(error) is not None
    if isinstance(error, grpc.aio.AioRpcError):
        return error.code() in _ENDED or error.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    # ConnectionError and TimeoutError among them; psycopg's own of connections without a pool.
    return isinstance(error, OSError | OutageError | psycopg.OperationalError)


def from_database(error: sqlalchemy.exc.SQLAlchemyError) -> DomainError | None:
    """The DomainError for a busy or unavailable database; None for other errors, which are bugs."""
    if isinstance(error, sqlalchemy.exc.TimeoutError):
        return DomainError(Reason.OVERLOADED, "too many concurrent calls", retry_after_seconds=1)
    if not isinstance(error, sqlalchemy.exc.DBAPIError):
        return None
    sqlstate = getattr(error.orig, "sqlstate", None)
    if sqlstate in _BUSY_SQLSTATES:
        return DomainError(Reason.OVERLOADED, "the database is busy", retry_after_seconds=1)
    if (
        sqlstate in _ROLLED_BACK_SQLSTATES
        or error.connection_invalidated
        or isinstance(error, sqlalchemy.exc.OperationalError | sqlalchemy.exc.InterfaceError)
    ):
        return DomainError(
            Reason.DEPENDENCY_UNAVAILABLE, "the database is unavailable", retry_after_seconds=1
        )
    return None


def cause_of(error: sqlalchemy.exc.SQLAlchemyError) -> str:
    """PostgreSQL's message for the log. Use it only for errors of `from_database`: the messages of
    others quote values."""
    original = getattr(error, "orig", None)
    diagnostics = getattr(original, "diag", None)
    parts = (
        getattr(original, "sqlstate", None),
        getattr(diagnostics, "message_primary", None),
        getattr(diagnostics, "context", None),
    )
    return ": ".join(part for part in parts if part) or type(original or error).__name__
