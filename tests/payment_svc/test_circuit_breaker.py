"""The circuit breaker of a provider, its time limit and its concurrency limit."""

import asyncio
from contextlib import suppress

import pytest

from mesh.errors import DomainError, Reason
from payment_svc.circuit_breaker import CircuitBreaker
from payment_svc.providers.base import ProviderError, ProviderRefusedError

FAILURES_TO_OPEN = 8


class Provider:
    """A provider behind its circuit breaker. `calls` counts the calls that reached it."""

    def __init__(self, **limits: float) -> None:
        self.now = 100.0
        self.calls = 0
        self.failure: Exception | None = None
        self.breaker = CircuitBreaker("acme", time=lambda: self.now, **limits)  # type: ignore[arg-type]

    async def call(self, until: asyncio.Event | None = None, *, is_refusable: bool = False) -> None:
        async with self.breaker.calling(is_refusable=is_refusable):
            self.calls += 1
            if until is not None:
                await until.wait()
            if self.failure is not None:
                raise self.failure

    async def code(self) -> str:
        """The code of a call that fails."""
        with pytest.raises(DomainError) as error:
            await self.call()
        assert error.value.reason is Reason.PAYMENT_GATEWAY_ERROR
        assert error.value.metadata["provider"] == "acme"
        return str(error.value.metadata["code"])

    async def open_circuit(self) -> None:
        self.failure = ProviderError("acme", "http_500")
        for _ in range(FAILURES_TO_OPEN):
            assert await self.code() == "http_500"


async def test_after_eight_failures_in_a_row_calls_are_rejected_for_five_seconds() -> None:
    provider = Provider()
    await provider.open_circuit()
    provider.failure = None
    assert [await provider.code() for _ in range(20)] == ["circuit_open"] * 20
    assert provider.calls == FAILURES_TO_OPEN
    provider.now += 5
    await provider.call()
    await provider.call()
    assert provider.calls == FAILURES_TO_OPEN + 2


async def test_one_call_probes_and_its_failure_opens_the_breaker_again() -> None:
    provider = Provider()
    await provider.open_circuit()
    provider.now += 5
    answer = asyncio.Event()
    probe = asyncio.create_task(provider.call(answer))
    await asyncio.sleep(0)
    assert await provider.code() == "circuit_open"
    answer.set()
    with suppress(DomainError):
        await probe
    assert provider.calls == FAILURES_TO_OPEN + 1
    provider.now += 4.9
    assert await provider.code() == "circuit_open"
    provider.now += 0.2
    provider.failure = None
    await provider.call()


async def test_a_cancelled_probe_lets_another_call_probe() -> None:
    provider = Provider()
    await provider.open_circuit()
    provider.now += 5
    probe = asyncio.create_task(provider.call(asyncio.Event()))
    await asyncio.sleep(0)
    probe.cancel()
    with suppress(asyncio.CancelledError):
        await probe
    provider.failure = None
    await provider.call()


async def test_an_answer_resets_the_count_of_failures() -> None:
    provider = Provider()
    for answer in (None, ProviderRefusedError("acme", "card_declined")):
        for _ in range(FAILURES_TO_OPEN - 1):
            provider.failure = ProviderError("acme", "http_500")
            assert await provider.code() == "http_500"
        # A refusal is an answer, too.
        provider.failure = answer
        with suppress(DomainError):
            await provider.call()
    provider.failure = None
    await provider.call()


async def test_a_refusal_is_payment_failed_for_callers_that_can_act_on_it() -> None:
    provider = Provider()
    provider.failure = ProviderRefusedError("acme", "amount_too_small")
    with pytest.raises(DomainError) as refusal:
        await provider.call(is_refusable=True)
    assert refusal.value.reason is Reason.PAYMENT_FAILED
    assert await provider.code() == "amount_too_small"


async def test_a_call_that_hangs_times_out() -> None:
    provider = Provider(call_seconds=0.05)
    with pytest.raises(DomainError) as error:
        await provider.call(asyncio.Event())
    assert error.value.metadata["code"] == "timeout"


async def test_concurrent_calls_are_limited() -> None:
    provider = Provider(max_calls=3)
    answer = asyncio.Event()
    calls = [asyncio.create_task(provider.call(answer)) for _ in range(3)]
    await asyncio.sleep(0)
    # Fails after a second in the queue. It does not count as a failure of the provider.
    assert await provider.code() == "too_many_calls"
    assert provider.calls == 3
    answer.set()
    await asyncio.gather(*calls)
    await provider.call()
    assert provider.calls == 4
