"""Takes what bookings owe to the other services, until it is done.

Every step may be taken twice: the calls are idempotent and the outcome is tested under
the booking's lock. What each one does is settling.py's.
"""

import asyncio
import logging
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta

from booking_svc.bookings import saga_steps
from booking_svc.bookings.exchange import Exchanges
from booking_svc.bookings.saga_steps import Step, StepKind
from booking_svc.bookings.step_handlers import StepHandlers
from booking_svc.clients.ports import Payments, Stock
from mesh.clock import Clock
from mesh.db.database import Database
from mesh.deadlines import deadline_in
from mesh.errors import DomainError
from mesh.observability import request_context

_log = logging.getLogger(__name__)

# Fewer than the pool has connections: calls of customers need some too.
_AT_ONCE = 8
# The lease is longer than a try, so that no step is taken twice at a time; a process that
# dies keeps its steps for as long.
_TRY_SECONDS = 8.0
_LEASE = timedelta(seconds=10)
_IDLE_SECONDS = 1.0
_FIRST_BACKOFF_SECONDS = 0.5
_LAST_BACKOFF_SECONDS = 60.0


class Steps:
    """Takes due steps, several bookings at a time."""

    def __init__(
        self, *, database: Database, stock: Stock, payments: Payments, clock: Clock
    ) -> None:
        self._database = database
        self._clock = clock
        self._wake = asyncio.Event()
        settling = StepHandlers(
            database=database,
            stock=stock,
            payments=payments,
            clock=clock,
            on_steps_enqueued=self.wake,
        )
        self._take = {
            StepKind.CONFIRM: settling.confirm,
            StepKind.RELEASE: settling.release,
            StepKind.VOID: settling.void,
            StepKind.REFUND: settling.refund,
            StepKind.EXCHANGE: Exchanges(database=database, stock=stock, clock=clock).take,
        }

    def wake(self) -> None:
        """Steps were written down: take them now."""
        self._wake.set()

    async def run(self) -> None:
        """Takes steps as they fall due, some at a time. Runs until cancelled.

        A step that hangs, because its service is away, holds up no other booking's.
        """
        running: set[asyncio.Task[None]] = set()
        is_more = False

        def finished(task: asyncio.Task[None]) -> None:
            running.discard(task)
            if is_more and len(running) <= _AT_ONCE // 2:
                self.wake()
            if not task.cancelled() and (error := task.exception()) is not None:
                # Not even its failure could be recorded: it is due again when its lease is over.
                _log.error("a step of a booking was lost sight of", exc_info=error)

        try:
            while True:
                self._wake.clear()
                if free := _AT_ONCE - len(running):
                    claimed = await self.claim(limit=free)
                    is_more = len(claimed) == free
                    for step in claimed:
                        task = asyncio.create_task(self.attempt(step))
                        running.add(task)
                        task.add_done_callback(finished)
                with suppress(TimeoutError):
                    async with asyncio.timeout(_IDLE_SECONDS):
                        await self._wake.wait()
        finally:
            for task in running:
                task.cancel()
            await asyncio.gather(*running, return_exceptions=True)

    async def claim(self, *, limit: int) -> Sequence[Step]:
        """Leases due steps to this process, so that two do not take them at the same time."""
        async with self._database.single() as connection:
            return await saga_steps.lease(connection, now=self._clock(), limit=limit, lease=_LEASE)

    async def attempt(self, step: Step) -> None:
        """Takes a claimed step; a failure makes it due again after a pause."""
        with request_context.resuming(
            f"step {step.kind}", step.origin, booking_id=str(step.booking_id)
        ):
            await self._attempt(step)

    async def _attempt(self, step: Step) -> None:
        try:
            with deadline_in(_TRY_SECONDS):
                async with asyncio.timeout(_TRY_SECONDS):
                    await self._take[step.kind](step)
            _log.info(
                "step",
                extra={
                    "booking_id": str(step.booking_id),
                    "step": step.kind,
                    "attempts": step.attempts,
                },
            )
        except Exception as error:  # noqa: BLE001 - the top of a background loop; it is tried again
            delay = min(_FIRST_BACKOFF_SECONDS * 2 ** (step.attempts - 1), _LAST_BACKOFF_SECONDS)
            expected = isinstance(error, DomainError)
            _log.log(
                logging.WARNING if expected else logging.ERROR,
                "a step of a booking failed, is tried again",
                exc_info=None if expected else error,
                extra={
                    "booking_id": str(step.booking_id),
                    "step": step.kind,
                    "attempts": step.attempts,
                    "error": repr(error) if expected else type(error).__name__,
                },
            )
            async with self._database.transaction() as connection:
                await saga_steps.postpone(
                    connection,
                    step,
                    until=self._clock() + timedelta(seconds=delay),
                    error=type(error).__name__,
                )
