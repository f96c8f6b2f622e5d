"""A REST client that retries with the same idempotency key and with backoff.

Interpreting the answers is the caller's part.
"""

import asyncio
import itertools
import json
import random
import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import httpx

Json = dict[str, Any]

DEADLINE_SECONDS = 60.0
CONNECTIONS = 64

_FIRST_BACKOFF_SECONDS = 0.1
_LAST_BACKOFF_SECONDS = 3.0
# Longer than the longest deadline of a call.
_TIMEOUT = httpx.Timeout(30.0, connect=5.0, pool=None)
_RETRIED_STATUSES = frozenset({429, 503, 504})
_RETRIED_REASONS = frozenset({"IDEMPOTENCY_IN_PROGRESS"})
_NO_REASON = "WITHOUT_REASON"
_QUOTED = 160
_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_RETRY_DELAY = re.compile(r"(\d+(?:\.\d+)?)s")


_Idle = asyncio.LifoQueue[httpx.AsyncClient]


class RefusedError(Exception):
    """The API refused the call. `reason` is the API's, e.g. `SOLD_OUT`.

    `is_first` is False when an earlier attempt got no answer and may have had an effect.
    """

    def __init__(
        self, reason: str, message: str, metadata: Mapping[str, str], *, is_first: bool
    ) -> None:
        super().__init__(f"{reason}: {message}")
        self.reason = reason
        self.metadata = metadata
        self.is_first = is_first


class UnansweredError(Exception):
    """The call neither succeeded nor was refused in time. It may have had its effect."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """One attempt of a call. Times are in seconds of the monotonic clock.

    `status` is 0 without an answer; `reason` is the API's, or what happened instead of an answer.
    """

    number: int
    method: str
    path: str
    key: str
    url: str
    began: float
    ended: float
    status: int
    reason: str


@dataclass
class Tally:
    """Counts of all calls of the client.

    `retries` counts by cause. `seconds` lists the duration of each success by label. `oddities`
    counts errors without a reason, which violate the contract, by call and text.
    """

    calls: int = 0
    retries: Counter[str] = field(default_factory=Counter)
    oddities: Counter[str] = field(default_factory=Counter)
    seconds: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))


class Api:
    """The mesh's REST API. Use it as an async context manager.

    All customers share `connections` kept-alive connections per URL; a call waits for a free one.
    With several URLs, of gateways, a retry goes to the next one. `on_attempt` is called with every
    attempt.
    """

    def __init__(
        self,
        *urls: str,
        connections: int = CONNECTIONS,
        transport: httpx.AsyncBaseTransport | None = None,
        randomness: random.Random | None = None,
        on_attempt: Callable[[Attempt], None] = lambda _: None,
    ) -> None:
        self.tally = Tally()
        self._random = randomness or random.Random()
        self._on_attempt = on_attempt
        self._attempts = itertools.count(1)
        self._transport = transport
        self._tls = httpx.create_ssl_context()
        # One client per connection: httpx's own pool scans all connections for each call. Last in,
        # first out: opens no more connections than concurrent calls need.
        self._free: list[_Idle] = []
        for url in urls:
            self._free.append(asyncio.LifoQueue())
            for _ in range(connections):
                self._free[-1].put_nowait(self._client(url))

    def _client(self, url: str | httpx.URL) -> httpx.AsyncClient:
        return httpx.AsyncClient(
            base_url=url,
            timeout=_TIMEOUT,
            limits=httpx.Limits(max_connections=1, max_keepalive_connections=1),
            transport=self._transport,
            verify=self._tls,
            # No proxy from the environment: the mesh runs on this machine.
            trust_env=False,
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        for free in self._free:
            while not free.empty():
                await free.get_nowait().aclose()

    async def call(
        self,
        method: str,
        path: str,
        *,
        body: Json | None = None,
        token: str | None = None,
        key: str | None = None,
        params: Mapping[str, str] | None = None,
        label: str = "",
        address: str = "",
        deadline_seconds: float = DEADLINE_SECONDS,
    ) -> Json:
        """The answer to a call that is idempotent, by its method or by its key.

        Retries after a retryable error or without an answer. With a `label`, the tally records the
        duration of the successful attempt. `address` is the client's, for a gateway that trusts this
        machine as a proxy.
        Raises RefusedError; UnansweredError at the deadline and for an answer such as 500.
        """
        headers = {}
        if token is not None:
            headers["Authorization"] = f"Bearer {token}"
        if key is not None:
            headers["Idempotency-Key"] = key
        if address:
            headers["X-Forwarded-For"] = address
        content = None if body is None else json.dumps(body).encode()
        if content is not None:
            headers["Content-Type"] = "application/json"
        request = _Request(method, path, content, headers, params)
        gateway = self._random.randrange(len(self._free))
        deadline = time.monotonic() + deadline_seconds
        attempts = 0
        while True:
            answer, cause, wait = await self._try(
                request,
                self._free[(gateway + attempts) % len(self._free)],
                label,
                is_first=attempts == 0,
            )
            if answer is not None:
                return answer
            self.tally.retries[cause] += 1
            backoff = min(_FIRST_BACKOFF_SECONDS * 2**attempts, _LAST_BACKOFF_SECONDS)
            # Jitter on top of the server's delay, so that retries are spread.
            delay = wait + self._random.uniform(0.5, 1) * backoff
            if time.monotonic() + delay > deadline:
                raise UnansweredError(f"{method} {path}: {cause} for {deadline_seconds:g} s")
            await asyncio.sleep(delay)
            attempts += 1

    async def _try(
        self,
        request: "_Request",
        free: "_Idle",
        label: str,
        *,
        is_first: bool,
    ) -> tuple[Json | None, str, float]:
        """One attempt: the answer, or the cause of a retry and its minimum delay in seconds."""
        try:
            response, taken = await self._send(request, free)
        except httpx.TimeoutException:
            return None, "no answer in time", 0.0
        except httpx.TransportError:
            return None, "connection lost", 0.0
        status = response.status_code
        answer = _json(response)
        if status < 300:
            if not answer and status != httpx.codes.NO_CONTENT:
                raise UnansweredError(f"{request.method} {request.path}: {status} without JSON")
            if label:
                self.tally.seconds[label].append(taken)
            return answer, "", 0.0
        reason, metadata = _error_info(answer)
        if reason == _NO_REASON:
            text = " ".join(response.text.split())[:_QUOTED]
            path = _ID.sub("…", request.path)
            self.tally.oddities[f"{request.method} {path}: {status} {text!r}"] += 1
        if status in _RETRIED_STATUSES or reason in _RETRIED_REASONS:
            return None, f"{status} {reason}", _retry_after(response, answer)
        if status >= 500:
            raise UnansweredError(f"{request.method} {request.path}: {status} {reason}")
        message = str(answer.get("message", ""))
        raise RefusedError(reason, message, metadata, is_first=is_first)

    async def _send(self, request: "_Request", free: "_Idle") -> tuple[httpx.Response, float]:
        """The response and its duration in seconds, after waiting for a free connection."""
        client = await free.get()
        built = client.build_request(
            request.method,
            request.path,
            content=request.content,
            headers=request.headers,
            params=request.params,
        )
        start, status, reason = time.monotonic(), 0, "left"
        try:
            self.tally.calls += 1
            response = await client.send(built)
            status, reason = response.status_code, ""
            if status >= 300:
                reason, _ = _error_info(_json(response))
            return response, time.monotonic() - start
        except httpx.HTTPError as error:
            reason = type(error).__name__
            raise
        except asyncio.CancelledError:
            # The pool of a client may count the connection of a cancelled call for ever.
            abandoned, client = client, self._client(client.base_url)
            await abandoned.aclose()
            raise
        finally:
            free.put_nowait(client)
            self._on_attempt(
                Attempt(
                    next(self._attempts),
                    request.method,
                    request.path,
                    request.headers.get("Idempotency-Key", ""),
                    str(client.base_url),
                    start,
                    time.monotonic(),
                    status,
                    reason,
                )
            )


@dataclass(frozen=True, slots=True)
class _Request:
    method: str
    path: str
    content: bytes | None
    headers: Mapping[str, str]
    params: Mapping[str, str] | None


def _json(response: httpx.Response) -> Json:
    """The body; {} for anything but a JSON object, so that it counts as an error without reason."""
    if not response.content:
        return {}
    try:
        body = response.json()
    except (json.JSONDecodeError, UnicodeDecodeError):
        return {}
    return body if isinstance(body, dict) else {}


def _error_info(answer: Json) -> tuple[str, Mapping[str, str]]:
    """Reason and metadata of the google.rpc.ErrorInfo in an error's details."""
    for detail in answer.get("details", ()):
        if str(detail.get("@type", "")).endswith("/google.rpc.ErrorInfo"):
            return str(detail.get("reason", "")), detail.get("metadata", {})
    return _NO_REASON, {}


def _retry_after(response: httpx.Response, answer: Json) -> float:
    """The server's retry delay in seconds, from the header or google.rpc.RetryInfo."""
    header = response.headers.get("retry-after", "")
    if header.isdigit():
        return float(header)
    for detail in answer.get("details", ()):
        if match := _RETRY_DELAY.fullmatch(str(detail.get("retryDelay", ""))):
            return float(match[1])
    return 0.0
