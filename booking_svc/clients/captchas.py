"""Captchas by `siteverify`, the call that Turnstile, hCaptcha and reCAPTCHA have in common.

https://developers.cloudflare.com/turnstile/get-started/server-side-validation/
"""

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx

from mesh.errors import DomainError, Reason
from mesh.observability import metrics

_log = logging.getLogger(__name__)

# For the whole call, also if the answer comes byte by byte. Part of the 5 s of JoinQueue.
_SECONDS = 2.0
# Error codes that are no verdict about the visitor: our secret, or the provider's own failure.
_NO_VERDICT = frozenset(
    {
        "missing-input-secret",
        "invalid-input-secret",
        "sitekey-secret-mismatch",
        "bad-request",
        "internal-error",
    }
)

_FAILURES = metrics.counter(
    "queue_captcha_failures",
    "Calls of the captcha provider without a verdict; the visitors could not join.",
    "cause",
)


class SiteVerify:
    """ports.Captchas."""

    def __init__(
        self, client: httpx.AsyncClient, *, url: str, secret: str, seconds: float = _SECONDS
    ) -> None:
        self._client = client
        self._url = url
        self._secret = secret
        self._seconds = seconds

    @classmethod
    @asynccontextmanager
    async def open(
        cls, *, url: str, secret: str, seconds: float = _SECONDS
    ) -> AsyncIterator["SiteVerify"]:
        async with httpx.AsyncClient(timeout=seconds) as client:
            yield cls(client, url=url, secret=secret, seconds=seconds)

    async def is_solved(self, *, token: str, address: str) -> bool:
        """Raises DEPENDENCY_UNAVAILABLE without a verdict: nobody joins unchecked."""
        form = {"secret": self._secret, "response": token}
        # A /64 network stands for an IPv6 client; the providers take addresses only.
        if address and "/" not in address:
            form["remoteip"] = address
        try:
            async with asyncio.timeout(self._seconds):
                answer = await self._client.post(self._url, data=form)
            answer.raise_for_status()
            verdict = answer.json()
        except (TimeoutError, httpx.TimeoutException) as error:
            raise _unavailable("TIMEOUT") from error
        except httpx.HTTPStatusError as error:
            raise _unavailable(f"HTTP_{error.response.status_code // 100}XX") from error
        except httpx.HTTPError as error:
            raise _unavailable("CONNECTION") from error
        except ValueError as error:
            raise _unavailable("MALFORMED") from error
        return _is_success(verdict)


def _is_success(verdict: object) -> bool:
    if not isinstance(verdict, dict) or not isinstance(verdict.get("success"), bool):
        raise _unavailable("MALFORMED")
    if verdict["success"]:
        return True
    codes = verdict.get("error-codes")
    no_verdict = sorted(
        _NO_VERDICT.intersection(map(str, codes if isinstance(codes, list) else []))
    )
    if no_verdict:
        if "internal-error" not in no_verdict:
            _log.error(
                "the captcha provider refuses our call: check BOXOFFICE_CAPTCHA_SECRET",
                extra={"error_codes": no_verdict},
            )
        raise _unavailable("REFUSED")
    return False


def _unavailable(cause: str) -> DomainError:
    _FAILURES.labels(cause).inc()
    return DomainError(
        Reason.DEPENDENCY_UNAVAILABLE,
        "the captcha could not be checked, because its provider gave no verdict: try again",
        retry_after_seconds=2,
    )
