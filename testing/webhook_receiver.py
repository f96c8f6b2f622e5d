"""An external system that receives webhooks over real HTTP and verifies their signatures."""

import asyncio
import base64
import hashlib
import hmac
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Received:
    headers: dict[str, str]
    body: bytes

    @property
    def content(self) -> Any:
        return json.loads(self.body)

    def is_signed_by(self, secret: str) -> bool:
        """Whether the signature is valid. Implemented from the specification, not from our code."""
        key = base64.b64decode(secret.removeprefix("whsec_"))
        signed = f"{self.headers['webhook-id']}.{self.headers['webhook-timestamp']}.".encode()
        expected = base64.b64encode(hmac.new(key, signed + self.body, hashlib.sha256).digest())
        signatures = [part.split(",", 1) for part in self.headers["webhook-signature"].split(" ")]
        return any(
            version == "v1" and hmac.compare_digest(value.encode(), expected)
            for version, value in signatures
        )


@dataclass
class Receiver:
    """Sends `answers` in turn, then 204; None closes the connection."""

    port: int = 0
    received: list[Received] = field(default_factory=list)
    answers: list[str | None] = field(default_factory=list)
    connections: int = 0
    _answers: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self._answers.set()

    def hang(self) -> None:
        """Accepts connections and requests and answers nothing."""
        self._answers.clear()

    def close_connections(self) -> None:
        """Ends the connections that hang, without an answer."""
        self._answers.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hooks?of=boxoffice"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            if not self._answers.is_set():
                await self._answers.wait()
                return
            head = (await reader.readuntil(b"\r\n\r\n")).decode()
            lines = head.split("\r\n")
            headers = {
                name.lower(): value.strip()
                for name, _, value in (line.partition(":") for line in lines[1:] if line)
            }
            headers[":request"] = lines[0]
            body = await reader.readexactly(int(headers["content-length"]))
            self.received.append(Received(headers, body))
            answer = self.answers.pop(0) if self.answers else "204 No Content"
            if answer is not None:
                writer.write(f"HTTP/1.1 {answer}\r\ncontent-length: 0\r\n\r\n".encode())
                await writer.drain()
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.close()


@asynccontextmanager
async def receiver() -> AsyncIterator[Receiver]:
    instance = Receiver()
    server = await asyncio.start_server(instance.serve, "127.0.0.1", 0)
    instance.port = server.sockets[0].getsockname()[1]
    try:
        yield instance
    finally:
        server.close()
