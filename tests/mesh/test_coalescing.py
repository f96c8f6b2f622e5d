"""Batches in a burst, single requests otherwise, and an outcome for each caller."""

import asyncio
from collections.abc import Sequence

import pytest

from mesh import tasks
from mesh.coalescing import Coalescer
from mesh.deadlines import deadline_in, remaining_seconds
from mesh.errors import DomainError, Reason
from mesh.observability import request_context
from mesh.rpc import call

FOREVER = 10**9
"""More seconds than a test can take: a batch that gathers would never be sent."""


class Sent:
    """Records batches; each one waits for `go`."""

    def __init__(self, *, open_at_once: bool = False) -> None:
        self.batches: list[list[int]] = []
        self.go = asyncio.Event()
        self.deadlines: list[float | None] = []
        if open_at_once:
            self.go.set()

    async def __call__(self, requests: Sequence[int]) -> list[str | Exception]:
        self.batches.append(list(requests))
        self.deadlines.append(remaining_seconds())
        await self.go.wait()
        return [
            DomainError(Reason.SOLD_OUT, "thirteen") if request == 13 else f"got {request}"
            for request in requests
        ]

    async def count(self, batches: int) -> None:
        async with asyncio.timeout(60):
            while len(self.batches) < batches:
                await asyncio.sleep(0)


def coalescer(
    sent: Sent, *, max_batch: int = 4, max_in_flight: int = 1, max_queued: int = 100,
    seconds: float = 60, gather_seconds: float = FOREVER, gather_pause_seconds: float = FOREVER,
    stalled_seconds: float = FOREVER,
) -> Coalescer[int, str]:  # fmt: skip
    return Coalescer(
        "test", sent, max_batch=max_batch, max_in_flight=max_in_flight,
        max_queued=max_queued, seconds=seconds,
        # On a slow machine requests must still count as one burst.
        burst_seconds=FOREVER, gather_seconds=gather_seconds, gather_pause_seconds=gather_pause_seconds,
        stalled_seconds=stalled_seconds,
    )  # fmt: skip


async def a_burst(together: Coalescer[int, str]) -> None:
    """Enough requests, one after the other, that the next ones belong to a burst."""
    for _ in range(4):
        await together.submit(0)


async def let_start() -> None:
    """Lets new tasks run up to their first wait."""
    await asyncio.sleep(0)


async def test_a_single_request_does_not_wait() -> None:
    sent = Sent(open_at_once=True)
    together = coalescer(sent)
    assert [await together.submit(n) for n in range(3)] == ["got 0", "got 1", "got 2"]
    assert sent.batches == [[0], [1], [2]]


async def test_requests_that_arrive_during_a_batch_are_the_next_batch() -> None:
    sent = Sent()
    together = coalescer(sent)
    first = asyncio.create_task(together.submit(0))
    await sent.count(1)
    others = [asyncio.create_task(together.submit(n)) for n in range(1, 7)]
    await let_start()
    sent.go.set()
    assert await asyncio.gather(first, *others) == [f"got {n}" for n in range(7)]
    assert sent.batches == [[0], [1, 2, 3, 4], [5, 6]]


async def test_in_a_burst_a_batch_waits_for_requests_that_arrive_one_by_one() -> None:
    """As grpc.aio accepts calls."""
    sent = Sent(open_at_once=True)
    together = coalescer(sent, max_batch=6, max_in_flight=2)
    await a_burst(together)
    sent.batches.clear()
    calls = []

    async def serve(number: int) -> str:
        with call.counted():
            if number < 5:
                calls.append(asyncio.create_task(serve(number + 1)))
            return await together.submit(number)

    async with asyncio.timeout(60):
        with call.counted():  # A call that does not submit a request.
            assert await serve(0) == "got 0"
            assert await asyncio.gather(*calls) == [f"got {n}" for n in range(1, 6)]
    assert sent.batches == [list(range(6))]


async def test_in_a_burst_a_batch_is_sent_when_no_more_requests_arrive() -> None:
    sent = Sent(open_at_once=True)
    together = coalescer(sent, max_batch=100, gather_pause_seconds=0.001)
    await a_burst(together)
    async with asyncio.timeout(60):
        with call.counted(), call.counted():
            assert await together.submit(1) == "got 1"


async def test_a_full_batch_is_sent_at_once_and_the_next_one_in_parallel() -> None:
    sent = Sent(open_at_once=True)
    together = coalescer(sent, max_batch=2, max_in_flight=2)
    await a_burst(together)
    sent.batches.clear()
    sent.go.clear()
    with call.counted(), call.counted(), call.counted(), call.counted(), call.counted():
        calls = [asyncio.create_task(together.submit(0))]
        await let_start()
        calls += [asyncio.create_task(together.submit(n)) for n in range(1, 4)]
        await sent.count(2)
        sent.go.set()
        await asyncio.gather(*calls)
    assert sent.batches == [[0, 1], [2, 3]]


async def test_without_a_burst_a_batch_waits_for_nothing() -> None:
    sent = Sent(open_at_once=True)
    together = coalescer(sent)
    async with asyncio.timeout(60):
        with call.counted(), call.counted():
            for number in range(3):
                await together.submit(number)
    assert sent.batches == [[0], [1], [2]]


async def test_in_a_burst_a_batch_waits_for_the_end_of_the_one_before() -> None:
    sent = Sent(open_at_once=True)
    together = coalescer(sent, max_in_flight=2)
    await a_burst(together)
    sent.batches.clear()
    sent.go.clear()
    with call.counted():
        calls = [asyncio.create_task(together.submit(n)) for n in range(2)]
        await sent.count(1)
        calls.append(asyncio.create_task(together.submit(2)))
        await let_start()
        await let_start()
        calls.append(asyncio.create_task(together.submit(3)))
        await let_start()
        sent.go.set()
        assert await asyncio.gather(*calls) == [f"got {n}" for n in range(4)]
    assert sent.batches == [[0, 1], [2, 3]]


async def test_a_batch_that_stalls_does_not_hold_up_the_next_one() -> None:
    sent = Sent(open_at_once=True)
    together = coalescer(sent, max_in_flight=2, stalled_seconds=0.001)
    await a_burst(together)
    sent.batches.clear()
    sent.go.clear()
    with call.counted():
        first = asyncio.create_task(together.submit(0))
        await sent.count(1)
        second = asyncio.create_task(together.submit(1))
        await sent.count(2)
        sent.go.set()
        assert [await first, await second] == ["got 0", "got 1"]
    assert sent.batches == [[0], [1]]


async def test_a_batch_gathers_for_a_limited_time() -> None:
    sent = Sent(open_at_once=True)
    together = coalescer(sent, max_batch=100, gather_seconds=0)
    await a_burst(together)
    async with asyncio.timeout(60):
        with call.counted(), call.counted():
            assert await together.submit(1) == "got 1"


async def test_a_batch_does_not_wait_when_no_other_call_is_served() -> None:
    sent = Sent(open_at_once=True)
    together = coalescer(sent)
    await a_burst(together)
    sent.batches.clear()
    async with asyncio.timeout(60):
        with call.counted():
            assert await together.submit(0) == "got 0"
    assert sent.batches == [[0]]


async def test_several_batches_are_in_flight_up_to_the_limit() -> None:
    sent = Sent()
    together = coalescer(sent, max_in_flight=2)
    calls = []
    for n in range(2):
        calls.append(asyncio.create_task(together.submit(n)))
        await sent.count(n + 1)
    calls += [asyncio.create_task(together.submit(n)) for n in range(2, 5)]
    await let_start()
    assert len(sent.batches) == 2
    sent.go.set()
    assert await asyncio.gather(*calls) == [f"got {n}" for n in range(5)]
    assert sorted(n for batch in sent.batches for n in batch) == list(range(5))


async def test_a_refusal_concerns_only_its_caller() -> None:
    sent = Sent()
    together = coalescer(sent)
    calls = [asyncio.create_task(together.submit(n)) for n in (0, 12, 13, 14)]
    sent.go.set()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [str(outcome) for outcome in outcomes] == ["got 0", "got 12", "thirteen", "got 14"]


async def test_an_error_of_a_batch_is_raised_to_all_its_callers() -> None:
    async def broken(requests: Sequence[int]) -> list[str | Exception]:
        raise DomainError(Reason.DEPENDENCY_UNAVAILABLE, f"away for {len(requests)}")

    async def too_few(requests: Sequence[int]) -> list[str | Exception]:
        return []

    for send, kind in ((broken, DomainError), (too_few, RuntimeError)):
        together = Coalescer[int, str](
            "test", send, max_batch=4, max_in_flight=1, max_queued=9, seconds=60
        )
        calls = [together.submit(n) for n in range(3)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [kind] * 3


async def test_a_full_queue_refuses_at_once() -> None:
    sent = Sent()
    together = coalescer(sent, max_queued=2)
    calls = [asyncio.create_task(together.submit(0))]
    await sent.count(1)
    calls += [asyncio.create_task(together.submit(n)) for n in (1, 2)]
    await let_start()
    with pytest.raises(DomainError) as refused:
        await together.submit(3)
    assert refused.value.reason is Reason.OVERLOADED
    assert refused.value.retry_after_seconds == 1
    # A cancelled request frees its place.
    calls[2].cancel()
    await let_start()
    calls.append(asyncio.create_task(together.submit(4)))
    await let_start()
    sent.go.set()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [str(outcome) for outcome in outcomes] == ["got 0", "got 1", "", "got 4"]
    assert sent.batches == [[0], [1, 4]]


async def test_a_cancelled_caller_does_not_affect_the_others() -> None:
    sent = Sent()
    together = coalescer(sent)
    calls = [asyncio.create_task(together.submit(n)) for n in range(3)]
    await sent.count(1)
    assert sent.batches == [[0, 1, 2]]
    calls[0].cancel()
    with pytest.raises(asyncio.CancelledError):
        await calls[0]
    sent.go.set()
    assert await asyncio.gather(*calls[1:]) == ["got 1", "got 2"]


async def test_a_request_whose_deadline_has_passed_is_not_sent() -> None:
    sent = Sent()
    together = coalescer(sent)
    first = asyncio.create_task(together.submit(0))
    await sent.count(1)

    async def late() -> str:
        with deadline_in(0):
            return await together.submit(1)

    calls = [asyncio.create_task(late()), asyncio.create_task(together.submit(2))]
    await let_start()
    sent.go.set()
    assert await first == "got 0"
    with pytest.raises(DomainError) as refused:
        await calls[0]
    assert refused.value.reason is Reason.DEADLINE_EXCEEDED
    assert await calls[1] == "got 2"
    assert sent.batches == [[0], [2]]


async def test_a_batch_has_its_own_deadline_and_not_its_first_callers() -> None:
    sent = Sent(open_at_once=True)
    together = coalescer(sent, seconds=300)
    with deadline_in(60):
        await together.submit(0)
    [deadline] = sent.deadlines
    assert deadline is not None
    assert 60 < deadline <= 300


async def test_a_batch_that_takes_too_long_is_ended() -> None:
    sent = Sent()
    together = coalescer(sent, seconds=0.01)
    with pytest.raises(DomainError) as refused:
        await together.submit(0)
    assert refused.value.reason is Reason.DEADLINE_EXCEEDED
    sent.go.set()
    assert await together.submit(1) == "got 1"


async def test_shutdown_waits_for_the_batch() -> None:
    sent = Sent()
    together = coalescer(sent)
    waiting = asyncio.create_task(together.submit(0))
    await sent.count(1)
    draining = asyncio.create_task(tasks.drain(60))
    await let_start()
    assert not draining.done()
    sent.go.set()
    await draining
    assert await waiting == "got 0"


async def test_a_batch_has_the_request_ids_of_its_callers() -> None:
    ids: list[str] = []

    async def send(requests: Sequence[int]) -> list[str | Exception]:
        ids.append(request_context.request_id())
        await asyncio.sleep(0)
        return [str(request) for request in requests]

    together = Coalescer("test", send, max_batch=100, max_in_flight=1, max_queued=100, seconds=60)

    async def submit(number: int) -> None:
        call.begin(request_id=f"request-{number:028d}", idempotency_key=None)
        await together.submit(number)

    await asyncio.create_task(submit(0))
    assert ids == [f"request-{0:028d}"]
    await asyncio.gather(*(asyncio.create_task(submit(number)) for number in range(60)))
    # As many as fit into the header.
    assert ids[1].split(",") == [f"request-{number:028d}" for number in range(27)]
    assert len(ids[1]) <= request_context.MAX_REQUEST_ID_LENGTH
