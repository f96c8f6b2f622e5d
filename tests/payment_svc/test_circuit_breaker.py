"""The breaker and the limit of calls around a provider: what they let through, and when."""

import asyncio
from contextlib import suppress

import pytest

from mesh.errors import DomainError, Reason
from payment_svc.circuit_breaker import CircuitBreaker
from payment_svc.providers.base import ProviderError, ProviderRefusedError

FAILURES_TO_OPEN = 8


class Provider:
    """A provider that answers, refuses or fails, behind its guard; `calls` reached it."""

    def __init__(self, **limits: float) -> None:
        self.now = 100.0
        self.calls = 0
        self.trouble: Exception | None = None
        self.guard = CircuitBreaker("acme", time=lambda: self.now, **limits)  # type: ignore[arg-type]

    async def call(self, until: asyncio.Event | None = None, *, is_refusable: bool = False) -> None:
        async with self.guard.calling(is_refusable=is_refusable):
            self.calls += 1
            if until is not None:
                await until.wait()
            if self.trouble is not None:
                raise self.trouble

    async def code(self) -> str:
        """What a call that does not go well says is wrong."""
        with pytest.raises(DomainError) as trouble:
            await self.call()
        assert trouble.value.reason is Reason.PAYMENT_GATEWAY_ERROR
        assert trouble.value.metadata["provider"] == "acme"
        return str(trouble.value.metadata["code"])

    async def open_circuit(self) -> None:
        self.trouble = ProviderError("acme", "http_500")
        for _ in range(FAILURES_TO_OPEN):
            assert await self.code() == "http_500"


async def test_after_eight_failures_in_a_row_it_is_left_alone() -> None:
    provider = Provider()
    await provider.open_circuit()
    provider.trouble = None
    assert [await provider.code() for _ in range(20)] == ["circuit_open"] * 20
    assert provider.calls == FAILURES_TO_OPEN
    provider.now += 5
    await provider.call()
    await provider.call()
    assert provider.calls == FAILURES_TO_OPEN + 2


async def test_one_call_tries_for_all_and_its_failure_closes_the_way_again() -> None:
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
    provider.trouble = None
    await provider.call()


async def test_a_call_that_was_given_up_lets_another_try() -> None:
    provider = Provider()
    await provider.open_circuit()
    provider.now += 5
    probe = asyncio.create_task(provider.call(asyncio.Event()))
    await asyncio.sleep(0)
    probe.cancel()
    with suppress(asyncio.CancelledError):
        await probe
    provider.trouble = None
    await provider.call()


async def test_an_answer_in_between_begins_the_count_again() -> None:
    provider = Provider()
    for answer in (None, ProviderRefusedError("acme", "card_declined")):
        for _ in range(FAILURES_TO_OPEN - 1):
            provider.trouble = ProviderError("acme", "http_500")
            assert await provider.code() == "http_500"
        # A refusal is an answer too.
        provider.trouble = answer
        with suppress(DomainError):
            await provider.call()
    provider.trouble = None
    await provider.call()


async def test_a_refusal_is_the_callers_where_it_can_act() -> None:
    provider = Provider()
    provider.trouble = ProviderRefusedError("acme", "amount_too_small")
    with pytest.raises(DomainError) as refusal:
        await provider.call(is_refusable=True)
    assert refusal.value.reason is Reason.PAYMENT_FAILED
    assert await provider.code() == "amount_too_small"


async def test_a_call_that_hangs_is_cut() -> None:
    provider = Provider(call_seconds=0.05)
    with pytest.raises(DomainError) as trouble:
        await provider.call(asyncio.Event())
    assert trouble.value.metadata["code"] == "timeout"


async def test_no_more_calls_at_once_than_the_limit() -> None:
    provider = Provider(max_calls=3)
    answer = asyncio.Event()
    calls = [asyncio.create_task(provider.call(answer)) for _ in range(3)]
    await asyncio.sleep(0)
    # Waits a second for its turn, then says so; that is no failure of the provider.
    assert await provider.code() == "too_many_calls"
    assert provider.calls == 3
    answer.set()
    await asyncio.gather(*calls)
    await provider.call()
    assert provider.calls == 4
