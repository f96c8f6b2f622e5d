"""Captchas by `siteverify`, the call that Turnstile, hCaptcha and reCAPTCHA have in common.

https://developers.cloudflare.com/turnstile/get-started/server-side-validation/
"""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import httpx

from mesh.errors import DomainError, Reason

_SECONDS = 2.0


class SiteVerify:
    """ports.Captchas."""

    def __init__(self, client: httpx.AsyncClient, *, url: str, secret: str) -> None:
        self._client = client
        self._url = url
        self._secret = secret

    @classmethod
    @asynccontextmanager
    async def open(cls, *, url: str, secret: str) -> AsyncIterator["SiteVerify"]:
        async with httpx.AsyncClient(timeout=_SECONDS) as client:
            yield cls(client, url=url, secret=secret)

    async def is_solved(self, *, token: str, address: str) -> bool:
        """Raises DEPENDENCY_UNAVAILABLE."""
        form = {"secret": self._secret, "response": token}
        # A /64 network stands for an IPv6 client; the providers take addresses only.
        if address and "/" not in address:
            form["remoteip"] = address
        try:
            answer = await self._client.post(self._url, data=form)
            answer.raise_for_status()
            verdict = answer.json()
        except (httpx.HTTPError, ValueError) as error:
            raise DomainError(
                Reason.DEPENDENCY_UNAVAILABLE,
                "the captcha provider is unavailable",
                retry_after_seconds=2,
            ) from error
        return isinstance(verdict, dict) and verdict.get("success") is True
