"""Coalescing: requests that arrive while batches are in flight are queued for the next batch.

At low load a batch has one request and waits for nothing. In a burst it waits for the end of the
batch before it, and up to 50 ms for further requests. Each caller gets its own outcome.
"""

import asyncio
import contextvars
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar

from mesh import tasks
from mesh.deadlines import deadline_in, remaining_seconds
from mesh.errors import DomainError, Reason
from mesh.observability import metrics, request_context
from mesh.rpc import call

RequestT = TypeVar("RequestT")
ResultT = TypeVar("ResultT")

_SIZE = metrics.histogram("batch_size", "Requests in one batch.", "batches", buckets=metrics.SIZES)
_REFUSED = metrics.counter(
    "batch_refused", "Requests refused because the queue was full.", "batches"
)

# grpc.aio accepts a few calls in several turns of the event loop, so calls that arrived at the same
# time are seen one after the other. No new request in this time ends the wait.
_GATHER_PAUSE_SECONDS = 0.002
# Upper bound for the wait.
_GATHER_SECONDS = 0.05
# A batch that takes longer, e.g. because it waits for a lock, holds up the next one no longer.
_STALLED_SECONDS = 0.25
# This many requests in this time are a burst. Only in a burst a batch waits.
_BURST_REQUESTS = 4
_BURST_SECONDS = 0.4

# Retry delay of a caller that found the queue full.
_RETRY_SECONDS = 1.0


@dataclass(slots=True, eq=False)
class _Waiting(Generic[RequestT, ResultT]):
    """A queued request. `until` is the event loop's time at which its caller's deadline passes."""

    request: RequestT
    outcome: asyncio.Future[ResultT]
    until: float | None
    origin: str


class Coalescer(Generic[RequestT, ResultT]):
    """Sends queued requests in batches of at most `max_batch`, `max_in_flight` batches at once.

    `send` returns one outcome per request, in order: a result, or an exception for a refused
    request. An exception that it raises is the outcome of all. It has `seconds` and goes on
    when callers cancel. With `max_queued` requests waiting, the next is refused as OVERLOADED.
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
        burst_seconds: float = _BURST_SECONDS,
        stalled_seconds: float = _STALLED_SECONDS,
        gather_seconds: float = _GATHER_SECONDS,
        gather_pause_seconds: float = _GATHER_PAUSE_SECONDS,
    ) -> None:
        self._name = name
        self._send = send
        self._max_batch = max_batch
        self._max_in_flight = max_in_flight
        self._max_queued = max_queued
        self._seconds = seconds
        self._queue: deque[_Waiting[RequestT, ResultT]] = deque()
        self._burst_seconds = burst_seconds
        self._stalled_seconds = stalled_seconds
        self._gather_seconds = gather_seconds
        self._gather_pause_seconds = gather_pause_seconds
        self._arrivals: deque[float] = deque(maxlen=_BURST_REQUESTS)
        self._arrived = 0
        self._in_flight = 0
        self._is_gathering = False
        # Set when the batch that gathers need not wait any longer.
        self._is_complete = asyncio.Event()
        self._senders: set[asyncio.Task[None]] = set()

    async def submit(self, request: RequestT) -> ResultT:
        """Returns the request's result. Raises its refusal, OVERLOADED or DEADLINE_EXCEEDED."""
        if len(self._queue) >= self._max_queued:
            self._drop_cancelled()
        if len(self._queue) >= self._max_queued:
            _REFUSED.labels(self._name).inc()
            raise DomainError(
                Reason.OVERLOADED, "too many concurrent calls", retry_after_seconds=_RETRY_SECONDS
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
        if self._has_all():
            self._is_complete.set()
        self._start_sender()
        return await waiting.outcome

    def _start_sender(self) -> None:
        if self._is_gathering or len(self._senders) >= self._max_in_flight:
            return
        # In an empty context: a batch must not inherit one caller's deadline or request id.
        sender = tasks.begin(self._send_queued(), context=contextvars.Context())
        self._senders.add(sender)

    async def _send_queued(self) -> None:
        """Sends batches until the queue is empty or another sender gathers the next batch."""
        sender = asyncio.current_task()
        assert sender is not None  # noqa: S101 - a coroutine always runs in a task
        try:
            while self._queue and not self._is_gathering:
                await self._gather()
                if batch := self._take():
                    if self._queue:
                        self._start_sender()
                    _SIZE.labels(self._name).observe(len(batch))
                    self._in_flight += 1
                    try:
                        await self._send_batch(batch)
                    finally:
                        self._in_flight -= 1
                        self._is_complete.set()
        finally:
            # Not in a done callback, which runs a turn later: a request that is queued in
            # between would count on a sender that has already ended.
            self._senders.discard(sender)

    async def _gather(self) -> None:
        """In a burst, waits for the batch before, then while running calls submit requests."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        if len(self._arrivals) < _BURST_REQUESTS or self._arrivals[0] < began - self._burst_seconds:
            return
        self._is_gathering = True
        try:
            stalled = began + self._stalled_seconds
            while self._in_flight and len(self._queue) < self._max_batch and loop.time() < stalled:
                await self._wait(until=stalled)
            before = loop.time() + self._gather_seconds
            while not self._has_all() and await self._another_arrives(before=before):
                pass
        finally:
            self._is_gathering = False

    def _has_all(self) -> bool:
        """Whether the batch is full or every running call has submitted its request."""
        return len(self._queue) >= min(self._max_batch, call.running())

    async def _another_arrives(self, *, before: float) -> bool:
        """Waits a pause, with a timer: the event loop and the other processes have work to do."""
        arrived, loop = self._arrived, asyncio.get_running_loop()
        await self._wait(until=min(before, loop.time() + self._gather_pause_seconds))
        return self._arrived > arrived and loop.time() < before

    async def _wait(self, *, until: float) -> None:
        self._is_complete.clear()
        with suppress(TimeoutError):
            async with asyncio.timeout_at(until):
                await self._is_complete.wait()

    async def _send_batch(self, batch: Sequence[_Waiting[RequestT, ResultT]]) -> None:
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
            late = DomainError(
                Reason.DEADLINE_EXCEEDED, f"the batch did not finish within {self._seconds:g} s"
            )
            outcomes = [late] * len(batch)
        except Exception as error:  # noqa: BLE001 - the callers raise it
            outcomes = [error] * len(batch)
        for waiting, outcome in zip(batch, outcomes, strict=True):
            if waiting.outcome.done():
                continue
            if isinstance(outcome, Exception):
                waiting.outcome.set_exception(outcome)
            else:
                waiting.outcome.set_result(outcome)

    def _take(self) -> list[_Waiting[RequestT, ResultT]]:
        """The next batch, without requests that were cancelled or whose deadline has passed."""
        batch: list[_Waiting[RequestT, ResultT]] = []
        now = asyncio.get_running_loop().time()
        while self._queue and len(batch) < self._max_batch:
            waiting = self._queue.popleft()
            if waiting.outcome.done():
                continue
            if waiting.until is not None and waiting.until <= now:
                waiting.outcome.set_exception(
                    DomainError(
                        Reason.DEADLINE_EXCEEDED, "the deadline passed before the request was sent"
                    )
                )
                continue
            batch.append(waiting)
        return batch

    def _drop_cancelled(self) -> None:
        self._queue = deque(waiting for waiting in self._queue if not waiting.outcome.done())


# For `reads`. Longer than the wait for a connection and the time limit of a statement.
_READ_SECONDS = 4.0


def reads(
    name: str, read: Callable[[Sequence[RequestT]], Awaitable[Sequence[ResultT | Exception]]]
) -> Coalescer[RequestT, ResultT]:
    """A Coalescer for reads by key: calls that arrive during a read share the next one."""
    return Coalescer(
        name,
        read,
        max_batch=64,
        max_in_flight=2,
        max_queued=1000,
        seconds=_READ_SECONDS,
        # No call waits for others to arrive.
        gather_seconds=0,
    )
