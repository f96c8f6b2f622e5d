"""Coalescing: while batches are in flight new requests queue, and the next batch takes them.

At low load a batch has one request and nothing waits; under a rush the batches grow by
themselves, and a batch waits, shortly, for a moment in which nobody comes. Each caller has its own outcome. A caller that leaves takes nothing from the
others; one whose time is over before it was sent is not sent.
"""

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from mesh import tasks
from mesh.deadlines import deadline_in, remaining_seconds
from mesh.errors import DomainError, Reason
from mesh.observability import metrics, request_context
from mesh.rpc import call

RequestT = TypeVar("RequestT")
ResultT = TypeVar("ResultT")

_SIZE = metrics.histogram(
    "batch_size", "Requests that a batch took.", "batches", buckets=metrics.SIZES
)
_REFUSED = metrics.counter("batch_refused", "Requests that found the queue full.", "batches")

# grpc.aio takes one call of a method from the network in every few turns of the event loop: those
# that came at the same moment come one by one, and the next may be on its way for so many.
_TURNS = 32
# A loop that has much else to do takes its time for them.
_GATHER_SECONDS = 0.05
# So many requests in so short a time are a rush. Without one nobody can be expected to come.
_RUSH = 4
_RUSH_SECONDS = 0.4

# When a full queue makes sense to be tried again.
_RETRY_SECONDS = 1.0


@dataclass(slots=True, eq=False)
class _Waiting(Generic[RequestT, ResultT]):
    """`until` is the event loop's time after which nobody wants the answer."""

    request: RequestT
    outcome: asyncio.Future[ResultT]
    until: float | None
    origin: str


class Coalescer(Generic[RequestT, ResultT]):
    """Sends what queues up as batches of at most `max_batch`, `max_in_flight` at once.

    `send` returns each request's outcome in order, an exception for one that was refused;
    what it raises is every caller's outcome. It gets `seconds`, and runs on when its callers
    leave. More than `max_queued` waiting requests are OVERLOADED at once.
    """

    def __init__(
        self,
        name: str,
        send: Callable[[Sequence[RequestT]], Awaitable[Sequence[ResultT | Exception]]],
        *,
        max_batch: int,
        max_in_flight: int,
        max_queued: int,
        seconds: float,
        rush_seconds: float = _RUSH_SECONDS,
        gather_seconds: float = _GATHER_SECONDS,
    ) -> None:
        self._name = name
        self._send = send
        self._max_batch = max_batch
        self._max_in_flight = max_in_flight
        self._max_queued = max_queued
        self._seconds = seconds
        self._queue: deque[_Waiting[RequestT, ResultT]] = deque()
        self._rush_seconds = rush_seconds
        self._gather_seconds = gather_seconds
        self._arrivals: deque[float] = deque(maxlen=_RUSH)
        self._arrived = 0
        self._is_gathering = False
        self._senders: set[asyncio.Task[None]] = set()

    async def submit(self, request: RequestT) -> ResultT:
        """The outcome of a request. Raises what it was refused with, or OVERLOADED."""
        if len(self._queue) >= self._max_queued:
            self._forget_abandoned()
        if len(self._queue) >= self._max_queued:
            _REFUSED.labels(self._name).inc()
            raise DomainError(
                Reason.OVERLOADED, "too many calls at once", retry_after_seconds=_RETRY_SECONDS
            )
        loop = asyncio.get_running_loop()
        remaining = remaining_seconds()
        waiting = _Waiting[RequestT, ResultT](
            request,
            loop.create_future(),
            None if remaining is None else loop.time() + remaining,
            request_context.origin(),
        )
        self._queue.append(waiting)
        self._arrivals.append(loop.time())
        self._arrived += 1
        self._begin_sender()
        return await waiting.outcome

    def _begin_sender(self) -> None:
        if self._is_gathering or len(self._senders) >= self._max_in_flight:
            return
        # A batch is nobody's call: it must not inherit one caller's deadline, and goes on
        # when they leave.
        sender = tasks.begin(self._send_queued(), context=contextvars.Context())
        self._senders.add(sender)

    async def _send_queued(self) -> None:
        """Sends batch after batch until nothing waits, or another sender gathers the next."""
        sender = asyncio.current_task()
        assert sender is not None  # noqa: S101 - a coroutine always runs in a task
        try:
            while self._queue and not self._is_gathering:
                await self._gather()
                if batch := self._take():
                    if self._queue:
                        self._begin_sender()
                    _SIZE.labels(self._name).observe(len(batch))
                    await self._answer(batch)
        finally:
            # Here, not in a callback: that comes a moment later, and what is queued by then
            # would take this for a sender that still looks.
            self._senders.discard(sender)

    async def _gather(self) -> None:
        """In a rush waits while more come, unless this process serves nobody who could be next."""
        began = asyncio.get_running_loop().time()
        if len(self._arrivals) < _RUSH or self._arrivals[0] < began - self._rush_seconds:
            return
        self._is_gathering = True
        try:
            while len(self._queue) < min(self._max_batch, call.running()):
                if not await self._another_comes(before=began + self._gather_seconds):
                    return
        finally:
            self._is_gathering = False

    async def _another_comes(self, *, before: float) -> bool:
        arrived, loop = self._arrived, asyncio.get_running_loop()
        for _ in range(_TURNS):
            await asyncio.sleep(0)
            if loop.time() > before:
                return False
        return self._arrived > arrived

    async def _answer(self, batch: Sequence[_Waiting[RequestT, ResultT]]) -> None:
        outcomes: Sequence[ResultT | Exception]
        try:
            origins = (waiting.origin for waiting in batch)
            with (
                deadline_in(self._seconds),
                request_context.resuming(f"batch {self._name}", *origins),
            ):
                async with asyncio.timeout(self._seconds):
                    outcomes = await self._send([waiting.request for waiting in batch])
            if len(outcomes) != len(batch):
                raise RuntimeError(f"{len(outcomes)} outcomes of {len(batch)} requests")
        except TimeoutError:
            late = DomainError(Reason.DEADLINE_EXCEEDED, "the batch took too long")
            outcomes = [late] * len(batch)
        except Exception as error:  # noqa: BLE001 - whatever it is, the callers must get it
            outcomes = [error] * len(batch)
        for waiting, outcome in zip(batch, outcomes, strict=True):
            if waiting.outcome.done():
                continue
            if isinstance(outcome, Exception):
                waiting.outcome.set_exception(outcome)
            else:
                waiting.outcome.set_result(outcome)

    def _take(self) -> list[_Waiting[RequestT, ResultT]]:
        """The next batch, without those that nobody waits for any more."""
        batch: list[_Waiting[RequestT, ResultT]] = []
        now = asyncio.get_running_loop().time()
        while self._queue and len(batch) < self._max_batch:
            waiting = self._queue.popleft()
            if waiting.outcome.done():
                continue
            if waiting.until is not None and waiting.until <= now:
                waiting.outcome.set_exception(
                    DomainError(Reason.DEADLINE_EXCEEDED, "no time was left to send the request")
                )
                continue
            batch.append(waiting)
        return batch

    def _forget_abandoned(self) -> None:
        self._queue = deque(waiting for waiting in self._queue if not waiting.outcome.done())
