"""Work that runs to its end even when its call is cancelled, and background loops.

grpc.aio cancels a handler when its client disconnects or its deadline passes. Steps that
change stock or money run in tasks with their own deadline; shutdown waits for them.
"""

import asyncio
import contextvars
import logging
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from mesh.deadlines import deadline_in
from mesh.observability import metrics
from mesh.outages import is_outage, is_planned

_T = TypeVar("_T")
_log = logging.getLogger(__name__)
_running: set[asyncio.Task[Any]] = set()

_TURNS = metrics.counter("loop_turns", "Completed turns of background loops.", "loop")
_FAILURES = metrics.counter("loop_failures", "Failed turns of background loops.", "loop")
_LAST_TURN = metrics.gauge(
    "loop_last_turn_timestamp_seconds",
    "Time of a loop's last completed turn, or of its start.",
    "loop",
)


async def shielded(work: Coroutine[Any, Any, _T], *, seconds: float) -> _T:
    """Runs `work` for at most `seconds`, even when the awaiting call is cancelled."""
    return await asyncio.shield(begin(_bounded(work, seconds)))


def begin(
    work: Coroutine[Any, Any, _T], *, context: contextvars.Context | None = None
) -> asyncio.Task[_T]:
    """Starts a task that no call owns. `drain` waits for it at shutdown."""
    task = asyncio.create_task(work, context=context)
    _running.add(task)
    task.add_done_callback(_finished)
    return task


async def drain(seconds: float) -> None:
    """Waits up to `seconds` for all tasks of `begin` and `shielded`, then cancels the rest."""
    if not _running:
        return
    _, late = await asyncio.wait(_running, timeout=seconds)
    for task in late:
        # Logged only: a process that exits now is not scraped again, so no metric would show it.
        _log.error("shielded work was cut off at shutdown", extra={"task": task.get_name()})
        task.cancel()


async def forever(
    name: str, turn: Callable[[], Awaitable[None]], *, retry_seconds: float = 1.0
) -> None:
    """Repeats `turn` until cancelled. Logs a failure and waits `retry_seconds` after it.

    A stream that ends, e.g. at its connection's maximum age, is not counted as a failure.
    """
    turns, failures, last_turn = (
        _TURNS.labels(name),
        _FAILURES.labels(name),
        _LAST_TURN.labels(name),
    )
    last_turn.set_to_current_time()
    while True:
        try:
            await turn()
            turns.inc()
            last_turn.set_to_current_time()
        except Exception as error:  # noqa: BLE001 - the top of a background loop
            if not is_planned(error):
                failures.inc()
            _log_end_of_turn(name, error)
            await asyncio.sleep(retry_seconds)


def _log_end_of_turn(name: str, error: Exception) -> None:
    """Bugs are errors. An outage is a warning: alerts and health tell what is away."""
    extra = {"loop": name, "error": type(error).__name__}
    if is_planned(error):
        _log.info("a background loop starts again", extra=extra)
    elif is_outage(error):
        _log.warning("a background loop could not do its work", extra=extra)
    else:
        _log.exception("background loop failed", extra={"loop": name})


async def _bounded(work: Coroutine[Any, Any, _T], seconds: float) -> _T:
    with deadline_in(seconds):
        async with asyncio.timeout(seconds):
            return await work


def _finished(task: asyncio.Task[Any]) -> None:
    _running.discard(task)
    # The awaiting call may be cancelled. asyncio warns about an exception that nobody retrieved.
    if not task.cancelled() and (error := task.exception()) is not None:
        _log.debug("shielded work failed", exc_info=error)
