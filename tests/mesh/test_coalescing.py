"""Batches under a rush, single requests without one, and an outcome for each caller."""

import asyncio
from collections.abc import Sequence

import pytest

from mesh import tasks
from mesh.coalescing import Coalescer
from mesh.deadlines import deadline_in, remaining_seconds
from mesh.errors import DomainError, Reason
from mesh.observability import request_context
from mesh.rpc import call


class Sent:
    """Batches as they were sent; each waits for `go`."""

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
    seconds: float = 5,
) -> Coalescer[int, str]:  # fmt: skip
    return Coalescer(
        "test", sent, max_batch=max_batch, max_in_flight=max_in_flight,
        max_queued=max_queued, seconds=seconds,
        # However slow the machine is that the tests run on.
        burst_seconds=3600, gather_seconds=3600,
    )  # fmt: skip


async def in_a_rush(together: Coalescer[int, str]) -> None:
    """Some have come just now, and are gone again."""
    for _ in range(4):
        await together.submit(0)


async def test_a_single_request_does_not_wait() -> None:
    sent = Sent(open_at_once=True)
    together = coalescer(sent)
    assert [await together.submit(n) for n in range(3)] == ["got 0", "got 1", "got 2"]
    assert sent.batches == [[0], [1], [2]]


async def test_what_queues_during_a_batch_is_the_next() -> None:
    sent = Sent()
    together = coalescer(sent)
    first = asyncio.create_task(together.submit(0))
    await sent.count(1)
    others = [asyncio.create_task(together.submit(n)) for n in range(1, 7)]
    await asyncio.sleep(0)
    sent.go.set()
    assert await asyncio.gather(first, *others) == [f"got {n}" for n in range(7)]
    assert sent.batches == [[0], [1, 2, 3, 4], [5, 6]]


async def test_a_batch_waits_for_those_who_come_one_by_one() -> None:
    """As grpc.aio takes calls from the network, one in every few turns of the event loop."""
    sent = Sent(open_at_once=True)
    together = coalescer(sent, max_batch=10, max_in_flight=2)
    await in_a_rush(together)
    sent.batches.clear()
    calls = []

    async def serve(number: int) -> str:
        with call.counted():
            return await together.submit(number)

    with call.counted():  # Somebody else, who is busy with other things.
        for number in range(6):
            calls.append(asyncio.create_task(serve(number)))
            for _ in range(3):
                await asyncio.sleep(0)
        assert await asyncio.gather(*calls) == [f"got {n}" for n in range(6)]
    assert sent.batches == [list(range(6))]


async def test_a_full_batch_waits_for_nobody_and_the_next_goes_out_beside_it() -> None:
    sent = Sent(open_at_once=True)
    together = coalescer(sent, max_batch=2, max_in_flight=2)
    await in_a_rush(together)
    sent.batches.clear()
    sent.go.clear()
    with call.counted(), call.counted(), call.counted(), call.counted(), call.counted():
        calls = [asyncio.create_task(together.submit(0))]
        for _ in range(3):
            await asyncio.sleep(0)
        calls += [asyncio.create_task(together.submit(n)) for n in range(1, 4)]
        await sent.count(2)
        sent.go.set()
        await asyncio.gather(*calls)
    assert sent.batches == [[0, 1], [2, 3]]


async def test_without_a_rush_nobody_waits() -> None:
    sent = Sent(open_at_once=True)
    together = coalescer(sent)
    with call.counted(), call.counted():
        for number in range(3):
            waiting = asyncio.create_task(together.submit(number))
            for _ in range(4):
                await asyncio.sleep(0)
            assert waiting.done()
    assert sent.batches == [[0], [1], [2]]


async def test_a_batch_waits_for_so_long_at_most() -> None:
    sent = Sent(open_at_once=True)
    together = Coalescer[int, str](
        "test", sent, max_batch=100, max_in_flight=1, max_queued=100, seconds=5,
        burst_seconds=3600, gather_seconds=0,
    )  # fmt: skip
    await in_a_rush(together)
    with call.counted(), call.counted():
        waiting = asyncio.create_task(together.submit(1))
        for _ in range(6):
            await asyncio.sleep(0)
        assert waiting.done()


async def test_who_is_the_only_one_served_waits_for_nobody() -> None:
    sent = Sent(open_at_once=True)
    together = coalescer(sent)
    await in_a_rush(together)
    sent.batches.clear()
    sent.go.clear()
    with call.counted():
        waiting = asyncio.create_task(together.submit(0))
        for _ in range(4):
            await asyncio.sleep(0)
        assert sent.batches == [[0]]
    sent.go.set()
    assert await waiting == "got 0"


async def test_several_batches_at_once_up_to_a_number() -> None:
    sent = Sent()
    together = coalescer(sent, max_in_flight=2)
    calls = []
    for n in range(2):
        calls.append(asyncio.create_task(together.submit(n)))
        await sent.count(n + 1)
    calls += [asyncio.create_task(together.submit(n)) for n in range(2, 5)]
    await asyncio.sleep(0)
    assert len(sent.batches) == 2
    sent.go.set()
    assert await asyncio.gather(*calls) == [f"got {n}" for n in range(5)]
    assert sorted(n for batch in sent.batches for n in batch) == list(range(5))


async def test_one_refusal_is_one_callers() -> None:
    sent = Sent()
    together = coalescer(sent)
    calls = [asyncio.create_task(together.submit(n)) for n in (0, 12, 13, 14)]
    sent.go.set()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [str(each) for each in outcomes] == ["got 0", "got 12", "thirteen", "got 14"]


async def test_what_breaks_a_batch_reaches_each_of_its_callers() -> None:
    async def broken(requests: Sequence[int]) -> list[str | Exception]:
        raise DomainError(Reason.DEPENDENCY_UNAVAILABLE, f"away for {len(requests)}")

    async def too_few(requests: Sequence[int]) -> list[str | Exception]:
        return []

    for send, kind in ((broken, DomainError), (too_few, RuntimeError)):
        together = Coalescer[int, str](
            "test", send, max_batch=4, max_in_flight=1, max_queued=9, seconds=1
        )
        calls = [together.submit(n) for n in range(3)]
        outcomes = await asyncio.gather(*calls, return_exceptions=True)
        assert [type(each) for each in outcomes] == [kind] * 3


async def test_a_full_queue_refuses_at_once() -> None:
    sent = Sent()
    together = coalescer(sent, max_queued=2)
    calls = [asyncio.create_task(together.submit(0))]
    await sent.count(1)
    calls += [asyncio.create_task(together.submit(n)) for n in (1, 2)]
    await asyncio.sleep(0)
    with pytest.raises(DomainError) as refused:
        await together.submit(3)
    assert refused.value.reason is Reason.OVERLOADED
    assert refused.value.retry_after_seconds == 1
    # Who has left makes room.
    calls[2].cancel()
    await asyncio.sleep(0)
    calls.append(asyncio.create_task(together.submit(4)))
    await asyncio.sleep(0)
    sent.go.set()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert [str(outcome) for outcome in outcomes] == ["got 0", "got 1", "", "got 4"]
    assert sent.batches == [[0], [1, 4]]


async def test_who_leaves_takes_nothing_from_the_others() -> None:
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


async def test_whose_time_is_over_is_not_sent() -> None:
    sent = Sent()
    together = coalescer(sent)
    first = asyncio.create_task(together.submit(0))
    await sent.count(1)

    async def hasty() -> str:
        with deadline_in(0):
            return await together.submit(1)

    calls = [asyncio.create_task(hasty()), asyncio.create_task(together.submit(2))]
    await asyncio.sleep(0)
    sent.go.set()
    assert await first == "got 0"
    with pytest.raises(DomainError) as refused:
        await calls[0]
    assert refused.value.reason is Reason.DEADLINE_EXCEEDED
    assert await calls[1] == "got 2"
    assert sent.batches == [[0], [2]]


async def test_a_batch_has_a_deadline_of_its_own_and_not_its_first_callers() -> None:
    sent = Sent(open_at_once=True)
    together = coalescer(sent, seconds=3)
    with deadline_in(0.5):
        await together.submit(0)
    [deadline] = sent.deadlines
    assert deadline is not None
    assert 2 < deadline <= 3


async def test_a_batch_that_takes_too_long_ends() -> None:
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
    draining = asyncio.create_task(tasks.drain(5))
    await asyncio.sleep(0)
    assert not draining.done()
    sent.go.set()
    await draining
    assert await waiting == "got 0"


async def test_a_batch_is_sent_in_the_name_of_its_callers() -> None:
    ids: list[str] = []

    async def send(requests: Sequence[int]) -> list[str | Exception]:
        ids.append(request_context.request_id())
        await asyncio.sleep(0)
        return [str(request) for request in requests]

    together = Coalescer("test", send, max_batch=100, max_in_flight=1, max_queued=100, seconds=5)

    async def submit(number: int) -> None:
        call.begin(request_id=f"request-{number:028d}", idempotency_key=None)
        await together.submit(number)

    await asyncio.create_task(submit(0))
    assert ids == [f"request-{0:028d}"]
    await asyncio.gather(*(asyncio.create_task(submit(number)) for number in range(60)))
    # As many as a header has room for.
    assert ids[1].split(",") == [f"request-{number:028d}" for number in range(27)]
    assert len(ids[1]) <= request_context.MAX_REQUEST_ID_LENGTH
