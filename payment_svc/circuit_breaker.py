"""What stands between us and a provider: a time limit, a limit of calls at once, a breaker.

A provider that hangs or fails must not hold up what does not need it.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from mesh.errors import DomainError, Reason
from payment_svc.providers.base import CALL_SECONDS, ProviderError, ProviderRefusedError

_MAX_CALLS = 16
_QUEUE_SECONDS = 1.0
_FAILURES_TO_OPEN = 8
_OPEN_SECONDS = 5.0


class CircuitBreaker:
    """Bounds the calls to one provider.

    After several failures in a row it refuses at once, for some seconds; then one call
    at a time tries, and the first success lets all through again.
    """

    def __init__(
        self,
        provider: str,
        *,
        time: Callable[[], float],
        max_calls: int = _MAX_CALLS,
        call_seconds: float = CALL_SECONDS,
    ) -> None:
        self._provider = provider
        self._time = time
        self._call_seconds = call_seconds
        self._slots = asyncio.Semaphore(max_calls)
        self._failures = 0
        self._open_until = 0.0
        self._is_probing = False

    @asynccontextmanager
    async def calling(
        self, *, is_refusable: bool = False, seconds: float | None = None
    ) -> AsyncIterator[None]:
        """Around one call. Raises PAYMENT_GATEWAY_ERROR for the provider's trouble, and
        PAYMENT_FAILED for a refusal where the caller can do something about it."""
        probes = self._admit()
        try:
            await self._take_slot()
            try:
                async with asyncio.timeout(seconds or self._call_seconds):
                    yield
            finally:
                self._slots.release()
        except ProviderRefusedError as error:
            # It answered, so it is well.
            self._failures = 0
            if not is_refusable:
                raise self._trouble(error.code) from error
            raise DomainError(
                Reason.PAYMENT_FAILED,
                "the payment provider refuses this payment",
                provider=self._provider,
                code=error.code,
            ) from error
        except (ProviderError, TimeoutError) as error:
            self._fail()
            code = error.code if isinstance(error, ProviderError) else "timeout"
            raise self._trouble(code) from error
        else:
            self._failures = 0
        finally:
            if probes:
                self._is_probing = False

    def _admit(self) -> bool:
        """Whether this call tries for all others. Raises while the provider is left alone."""
        if self._failures < _FAILURES_TO_OPEN:
            return False
        if self._time() < self._open_until or self._is_probing:
            raise self._trouble("circuit_open")
        self._is_probing = True
        return True

    async def _take_slot(self) -> None:
        try:
            async with asyncio.timeout(_QUEUE_SECONDS):
                await self._slots.acquire()
        except TimeoutError:
            # Says nothing about the provider: only that we already wait for it enough.
            raise self._trouble("too_many_calls") from None

    def _fail(self) -> None:
        self._failures += 1
        if self._failures >= _FAILURES_TO_OPEN:
            self._open_until = self._time() + _OPEN_SECONDS

    def _trouble(self, code: str) -> DomainError:
        return DomainError(
            Reason.PAYMENT_GATEWAY_ERROR,
            "the payment provider did not do it; try again",
            retry_after_seconds=1,
            provider=self._provider,
            code=code,
        )
