"""Batches of calls, each batch in a transaction of its own: the edge that commits them.

A batch that meets a database error is tried again, then split in halves, until what fails
fails alone: each call gets a true answer. Which calls make a batch is coalescing.py's.
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
from mesh.rpc.errors import cause_of, from_database

_ATTEMPTS = 2
_MAX_PAUSE_SECONDS = 0.02

_T = TypeVar("_T")
_R = TypeVar("_R")
Work = Callable[[AsyncConnection, Sequence[_T], datetime], Awaitable[list[_R | DomainError]]]
"""What is done for all calls of a batch in one transaction. Returns each call's outcome, in order."""

_log = logging.getLogger(__name__)


class RacedError(Exception):
    """Another transaction has changed what this one was decided on: begin again."""

    def refusal(self) -> DomainError:
        """What a call is told when beginning again did not help."""
        return DomainError(
            Reason.OVERLOADED, "what the request needs keeps changing", retry_after_seconds=1
        )


async def commit_each(
    database: Database, calls: Sequence[_T], work: Work[_T, _R], *, clock: Clock
) -> list[_R | DomainError]:
    """The outcome of each call; what failed by a bug or by the database is an outcome too.

    `work` may run again after a commit whose answer was lost: a call must find what it has
    done.
    """
    failure: Exception = RuntimeError("never tried")
    for attempt in range(_ATTEMPTS):
        if attempt:
            # Else two batches that have met would meet again.
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
    _log.error("a call of a batch failed by a bug", exc_info=failure)
    return DomainError(Reason.INTERNAL, "internal error")
