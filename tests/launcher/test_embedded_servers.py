"""The embedded PostgreSQL and Redis as real processes."""

import asyncio
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import psutil
import psycopg
import pytest
import redis.asyncio

from launcher import sockets
from launcher.errors import LaunchError
from launcher.postgres_server import PostgresServer
from launcher.redis_server import RedisServer
from launcher.supervisor import Process, State, Supervisor, wait_healthy
from testing.waiting import until


@pytest.fixture(scope="module")
def home() -> Iterator[Path]:
    """A home with an initialised server, with a path longer than a socket's may be.

    Not pytest's tmp_path, which PostgreSQL's user cannot access when tests run as root.
    """
    with tempfile.TemporaryDirectory() as folder:
        home = Path(folder) / ("deep" * 25)
        home.mkdir()
        PostgresServer(home).initialise()
        yield home
    sockets.folder(home).rmdir()


@pytest.fixture
async def postgres(home: Path) -> AsyncIterator[Process]:
    supervisor = Supervisor(home)
    [process] = supervisor.start([PostgresServer(home).program()])
    try:
        await wait_healthy([process], 60)
        yield process
    finally:
        await supervisor.stop()


async def connect(home: Path, database: str) -> psycopg.AsyncConnection:
    url = PostgresServer(home).url(database).replace("+psycopg", "")
    return await psycopg.AsyncConnection.connect(url, autocommit=True)


async def test_each_service_gets_a_database_of_the_services_role(
    home: Path, postgres: Process
) -> None:
    server = PostgresServer(home)
    for _ in range(2):
        await server.provision(("auth", "stock"))
    async with await connect(home, "stock") as connection:
        settings = await connection.execute(
            "SELECT current_user, current_setting('statement_timeout'), current_setting('lock_timeout'),"
            " current_setting('transaction_timeout'), current_setting('fsync'),"
            " current_setting('idle_in_transaction_session_timeout'),"
            " current_setting('max_connections'), current_setting('listen_addresses')"
        )
        assert await settings.fetchone() == (
            "boxoffice", "2s", "500ms", "8s", "on", "5s", "200", "",
        )  # fmt: skip
        # Migrations change it too.
        await connection.execute("SET statement_timeout = 0")
        await connection.execute("CREATE TABLE IF NOT EXISTS seats (seat text)")


async def test_data_survives_a_kill_and_the_server_restarts(home: Path, postgres: Process) -> None:
    await PostgresServer(home).provision(("booking",))
    async with await connect(home, "booking") as connection:
        await connection.execute("CREATE TABLE kept AS SELECT generate_series(1, 1000) AS n")
        assert postgres.pid is not None
        # It may have restarted before.
        restarts = postgres.restarts
        # Killed while a connection is open, whose backend lives slightly longer than the server.
        os.kill(postgres.pid, signal.SIGKILL)
        await until(lambda: postgres.restarts > restarts)
        await until(lambda: postgres.state is State.HEALTHY)
    async with await connect(home, "booking") as connection:
        count = await connection.execute("SELECT count(*) FROM kept")
        assert await count.fetchone() == (1000,)


async def test_a_server_that_a_killed_launcher_left_running_is_replaced(home: Path) -> None:
    program = PostgresServer(home).program()
    assert program.prepare is not None
    program.prepare()
    orphan = await asyncio.create_subprocess_exec(
        *program.command,
        user=program.user,
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    await until(lambda: (home / "postgres" / "postmaster.pid").exists())
    supervisor = Supervisor(home)
    [process] = supervisor.start([program])
    try:
        await wait_healthy([process], 60)
        assert process.pid != orphan.pid
        await orphan.wait()
    finally:
        await supervisor.stop()


async def test_a_lock_file_with_a_reused_pid_does_not_block_the_start(home: Path) -> None:
    account = PostgresServer(home).program().user
    stranger = await asyncio.create_subprocess_exec("sleep", "600", user=account)
    lock = home / "postgres" / "postmaster.pid"
    lock.write_text(f"{stranger.pid}\n{home / 'postgres'}\n0\n5432\n\n\n0 0\nready\n")
    supervisor = Supervisor(home)
    [process] = supervisor.start([PostgresServer(home).program()])
    try:
        await wait_healthy([process], 60)
        assert stranger.returncode is None
        assert process.restarts == 0
    finally:
        await supervisor.stop()
        stranger.kill()
        await stranger.wait()


def test_an_interrupted_initialisation_is_repeated() -> None:
    with tempfile.TemporaryDirectory() as folder:
        half = Path(folder) / "postgres.new"
        half.mkdir()
        (half / "PG_VERSION").write_text("18\n")
        PostgresServer(Path(folder)).initialise()
        assert not half.exists()
        assert (Path(folder) / "postgres" / "global" / "pg_control").exists()


async def test_redis_serves_from_memory_on_its_socket_only(tmp_path: Path) -> None:
    server = RedisServer(tmp_path)
    supervisor = Supervisor(tmp_path)
    [process] = supervisor.start([server.program()])
    try:
        await wait_healthy([process], 60)
        async with redis.asyncio.from_url(server.url) as client:
            await client.set("key", "value")
            assert await client.config_get("maxmemory-policy") == {
                "maxmemory-policy": "allkeys-lru"
            }
            assert await client.config_get("save") == {"save": ""}
        assert process.pid is not None
        assert psutil.Process(process.pid).net_connections(kind="inet") == []
    finally:
        await supervisor.stop()
        sockets.folder(tmp_path).rmdir()


def test_a_socket_folder_of_another_user_is_refused(tmp_path: Path) -> None:
    folder = sockets.folder(tmp_path)
    folder.symlink_to(tmp_path)
    try:
        with pytest.raises(LaunchError, match="belongs to another user"):
            sockets.create(tmp_path)
    finally:
        folder.unlink()


def test_the_socket_folder_is_short_and_unique_per_home(home: Path, tmp_path: Path) -> None:
    folder = sockets.folder(home)
    assert folder == sockets.folder(home)
    assert folder != sockets.folder(tmp_path)
    assert len(os.fsencode(folder / ".s.PGSQL.5432.lock")) <= 107
