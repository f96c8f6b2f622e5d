"""Runs the saga steps of bookings. What each step does is in step_handlers.py.

A step may run twice: its calls are idempotent, and its outcome is tested under the
booking's lock.
"""

import asyncio
import logging
from collections.abc import Sequence
from datetime import timedelta
from functools import partial

from booking_svc.bookings import saga_steps
from booking_svc.bookings.dependencies import Dependencies
from booking_svc.bookings.saga_steps import Step
from booking_svc.bookings.step_handlers import HANDLERS
from mesh.db.jobs import Wakeup, Workers, run_forever
from mesh.deadlines import deadline_in
from mesh.errors import DomainError
from mesh.observability import request_context

_log = logging.getLogger(__name__)

# Together fewer than the pool has connections: calls of customers need some too. Those that a
# customer waits for wait for no others, of which an event's cancellation enqueues very many.
_URGENT_AT_ONCE = 5
_OTHERS_AT_ONCE = 6
_ATTEMPT_SECONDS = 8.0
# Longer than an attempt.
_LEASE = timedelta(seconds=10)
_IDLE_SECONDS = 1.0


class Steps:
    """Runs due steps, several at a time. `wake` rings when steps were enqueued."""

    def __init__(self, deps: Dependencies, wake: Wakeup) -> None:
        self._deps = deps
        self._wake = wake

    async def run(self) -> None:
        """Runs steps as they fall due, some at a time. Runs until cancelled."""
        async with (
            Workers(self._wake, size=_URGENT_AT_ONCE) as urgent,
            Workers(self._wake, size=_OTHERS_AT_ONCE) as others,
        ):

            async def turn() -> bool:
                for workers, is_urgent in ((urgent, True), (others, False)):
                    await workers.fill(partial(self._claim, is_urgent), self.attempt)
                # The end of a step starts the next turn.
                return False

            await run_forever("steps", turn, wake=self._wake, idle_seconds=_IDLE_SECONDS)

    async def claim(self, *, limit: int) -> Sequence[Step]:
        """Leases due steps to this process."""
        return await self._claim(None, limit)

    async def _claim(self, is_urgent: bool | None, limit: int) -> Sequence[Step]:
        async with self._deps.database.single() as connection:
            return await saga_steps.lease(
                connection,
                now=self._deps.clock(),
                limit=limit,
                lease=_LEASE,
                is_urgent=is_urgent,
            )

    async def attempt(self, step: Step) -> None:
        """Runs a leased step. A failure makes it due again after a pause."""
        with request_context.resuming(
            f"step {step.kind}", step.origin, booking_id=str(step.booking_id)
        ):
            await self._attempt(step)

    async def _attempt(self, step: Step) -> None:
        try:
            with deadline_in(_ATTEMPT_SECONDS):
                async with asyncio.timeout(_ATTEMPT_SECONDS):
                    await HANDLERS[step.kind](self._deps, step)
            _log.info(
                "step",
                extra={
                    "booking_id": str(step.booking_id),
                    "step": step.kind,
                    "attempts": step.attempts,
                },
            )
        except Exception as error:  # noqa: BLE001 - the top of one step, which is retried
            expected = isinstance(error, DomainError)
            _log.log(
                logging.WARNING if expected else logging.ERROR,
                "a step of a booking failed, retried later",
                exc_info=None if expected else error,
                extra={
                    "booking_id": str(step.booking_id),
                    "step": step.kind,
                    "attempts": step.attempts,
                    "error": repr(error) if expected else type(error).__name__,
                },
            )
            async with self._deps.database.transaction() as connection:
                await saga_steps.retry(
                    connection, step, now=self._deps.clock(), error=type(error).__name__
                )
