"""The circuit breaker of calls to a provider, with their time limit and concurrency limit.

A provider that hangs or fails does not delay calls that do not need it.
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
    """Limits the calls to one provider.

    After _FAILURES_TO_OPEN failures in a row it rejects all calls for _OPEN_SECONDS, then lets
    one call at a time pass. The first success closes it.
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
        """Around one call. Raises PAYMENT_GATEWAY_ERROR when it fails or is not allowed now.

        With `is_refusable` the provider's rejection is PAYMENT_FAILED: the caller can act on it.
        """
        is_probe = self._admit()
        try:
            await self._take_slot()
            try:
                async with asyncio.timeout(seconds or self._call_seconds):
                    yield
            finally:
                self._slots.release()
        except ProviderRefusedError as error:
            # A rejection is an answer: the provider works.
            self._failures = 0
            if not is_refusable:
                raise self._error("rejected the request", error.code) from error
            raise DomainError(
                Reason.PAYMENT_FAILED,
                "the payment provider rejected the payment",
                provider=self._provider,
                code=error.code,
            ) from error
        except (ProviderError, TimeoutError) as error:
            self._count_failure()
            code = error.code if isinstance(error, ProviderError) else "timeout"
            raise self._error("failed or did not answer", code) from error
        else:
            self._failures = 0
        finally:
            if is_probe:
                self._is_probing = False

    def _admit(self) -> bool:
        """Whether this call probes an open breaker. Raises when calls are not allowed now."""
        if self._failures < _FAILURES_TO_OPEN:
            return False
        if self._time() < self._open_until or self._is_probing:
            raise self._error("is not called after repeated failures", "circuit_open")
        self._is_probing = True
        return True

    async def _take_slot(self) -> None:
        try:
            async with asyncio.timeout(_QUEUE_SECONDS):
                await self._slots.acquire()
        except TimeoutError:
            # Not a failure of the provider.
            raise self._error("has too many calls in progress", "too_many_calls") from None

    def _count_failure(self) -> None:
        self._failures += 1
        if self._failures >= _FAILURES_TO_OPEN:
            self._open_until = self._time() + _OPEN_SECONDS

    def _error(self, what: str, code: str) -> DomainError:
        return DomainError(
            Reason.PAYMENT_GATEWAY_ERROR,
            f"the payment provider {what}",
            retry_after_seconds=1,
            provider=self._provider,
            code=code,
        )
