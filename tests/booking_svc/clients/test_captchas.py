"""The captcha provider over real HTTP: without a verdict nobody joins, within a bounded time."""

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from urllib.parse import parse_qs

import pytest

from booking_svc.clients.captchas import SiteVerify
from mesh.errors import DomainError, Reason

SECRET = "a secret of tests"


@dataclass
class Provider:
    """Answers each call with `reply`; afterwards with a byte now and then if `never_ends`."""

    reply: bytes
    never_ends: bool = False
    url: str = ""
    forms: list[dict[str, list[str]]] = field(default_factory=list)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            [length] = [
                int(line.split(b":")[1])
                for line in head.split(b"\r\n")
                if line.lower().startswith(b"content-length:")
            ]
            self.forms.append(parse_qs((await reader.readexactly(length)).decode()))
            writer.write(self.reply)
            await writer.drain()
            while self.never_ends:
                await asyncio.sleep(0.05)
                writer.write(b" ")
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def providing(
    reply: bytes, *, never_ends: bool = False, seconds: float = 60.0
) -> AsyncIterator[tuple[Provider, SiteVerify]]:
    provider = Provider(reply, never_ends)
    server = await asyncio.start_server(provider.serve, "127.0.0.1", 0)
    provider.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/siteverify"
    try:
        async with SiteVerify.open(url=provider.url, secret=SECRET, seconds=seconds) as captchas:
            yield provider, captchas
    finally:
        server.close()


def http(body: object, status: str = "200 OK") -> bytes:
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(content)}\r\n\r\n".encode() + content


async def is_solved(captchas: SiteVerify, address: str = "192.0.2.7") -> bool:
    async with asyncio.timeout(120):
        return await captchas.is_solved(token="of the widget", address=address)


@pytest.mark.parametrize(
    ("verdict", "expected"),
    [
        ({"success": True}, True),
        ({"success": False}, False),
        ({"success": False, "error-codes": ["invalid-input-response"]}, False),
        ({"success": False, "error-codes": ["timeout-or-duplicate"]}, False),
        ({"success": False, "error-codes": "unknown"}, False),
    ],
)
async def test_the_providers_verdict(verdict: object, expected: bool) -> None:
    async with providing(http(verdict)) as (provider, captchas):
        assert await is_solved(captchas) is expected
        assert provider.forms == [
            {"secret": [SECRET], "response": ["of the widget"], "remoteip": ["192.0.2.7"]}
        ]


@pytest.mark.parametrize("address", ["", "2001:db8::/64"])
async def test_what_is_no_address_is_not_sent(address: str) -> None:
    async with providing(http({"success": True})) as (provider, captchas):
        await is_solved(captchas, address)
        assert "remoteip" not in provider.forms[0]


@pytest.mark.parametrize(
    "reply",
    [
        # Ours is the fault, not the visitor's.
        http({"success": False, "error-codes": ["invalid-input-secret"]}),
        http({"success": False, "error-codes": ["missing-input-secret"]}),
        http({"success": False, "error-codes": ["sitekey-secret-mismatch"]}),
        http({"success": False, "error-codes": ["internal-error"]}),
        http({"success": True}, "500 Internal Server Error"),
        http({"success": True}, "503 Service Unavailable"),
        http({"success": True}, "403 Forbidden"),
        http({"success": True}, "302 Found"),
        http(b""),
        http(b"<html>"),
        http(b"\xff\xfe\xff"),
        http([]),
        http({}),
        http({"success": "true"}),
        http({"success": 1}),
        b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n{",
        b"not HTTP",
        b"",
    ],
)
async def test_without_a_verdict_nobody_joins(reply: bytes) -> None:
    async with providing(reply) as (_, captchas):
        with pytest.raises(DomainError) as refusal:
            await is_solved(captchas)
        assert refusal.value.reason is Reason.DEPENDENCY_UNAVAILABLE
        assert SECRET not in str(refusal.value)


async def test_a_provider_that_never_ends_its_answer_is_given_up() -> None:
    reply = b"HTTP/1.1 200 OK\r\ncontent-length: 1000000\r\n\r\n"
    async with providing(reply, never_ends=True, seconds=1.0) as (_, captchas):
        with pytest.raises(DomainError) as refusal:
            await is_solved(captchas)
        assert refusal.value.reason is Reason.DEPENDENCY_UNAVAILABLE


async def test_a_provider_that_does_not_listen() -> None:
    async with providing(b"") as (provider, _):
        url = provider.url
    async with SiteVerify.open(url=url, secret=SECRET) as captchas:
        with pytest.raises(DomainError) as refusal:
            await is_solved(captchas)
    assert refusal.value.reason is Reason.DEPENDENCY_UNAVAILABLE
