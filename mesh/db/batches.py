"""Runs a batch of calls in one transaction and commits it.

A batch that fails is retried, then split in halves until the failing call is alone, so that
each call gets its own outcome. mesh/coalescing.py forms the batches.
"""

import asyncio
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import TypeVar

import sqlalchemy as sa
from sqlalchemy.ext.asyncio import AsyncConnection

from mesh.clock import Clock
from mesh.db.database import Database
from mesh.errors import DomainError, Reason
from mesh.outages import cause_of, from_database

_ATTEMPTS = 2
_MAX_PAUSE_SECONDS = 0.02

_T = TypeVar("_T")
_R = TypeVar("_R")
Work = Callable[[AsyncConnection, Sequence[_T], datetime], Awaitable[list[_R | DomainError]]]
"""Handles all calls of a batch in one transaction and returns their outcomes, in order."""

_log = logging.getLogger(__name__)


class RacedError(Exception):
    """A concurrent transaction changed rows that this one had read before it locked them: retry."""

    def refusal(self) -> DomainError:
        """The error for the client when retrying did not help."""
        return DomainError(
            Reason.OVERLOADED,
            "too many concurrent changes to the requested stock",
            retry_after_seconds=1,
        )


async def commit_each(
    database: Database, calls: Sequence[_T], work: Work[_T, _R], *, clock: Clock
) -> list[_R | DomainError]:
    """Returns each call's outcome, in order; a bug or a database error becomes a DomainError.

    `work` must be idempotent: it runs again when the connection broke during the commit.
    """
    failure: Exception = RuntimeError("never tried")
    for attempt in range(_ATTEMPTS):
        if attempt:
            # Random, so that two batches that deadlocked do not collide again.
            await asyncio.sleep(random.random() * _MAX_PAUSE_SECONDS)
        try:
            async with database.transaction() as connection:
                return await work(connection, calls, clock())
        except (sa.exc.SQLAlchemyError, RacedError, RuntimeError) as error:
            failure = error
    if len(calls) == 1:
        return [_refusal(failure)]
    _log.warning(
        "a batch failed and is split",
        extra={"calls": len(calls), "error": type(failure).__name__},
    )
    middle = len(calls) // 2
    return [
        *await commit_each(database, calls[:middle], work, clock=clock),
        *await commit_each(database, calls[middle:], work, clock=clock),
    ]


def _refusal(failure: Exception) -> DomainError:
    if isinstance(failure, RacedError):
        return failure.refusal()
    if isinstance(failure, sa.exc.SQLAlchemyError):
        known = from_database(failure)
        if known is not None:
            _log.warning("the database refused a call", extra={"cause": cause_of(failure)})
            return known
    _log.error("a call of a batch failed because of a bug", exc_info=failure)
    return DomainError(Reason.INTERNAL, "internal error")
