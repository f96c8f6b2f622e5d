"""A restore brings back the data and secrets of a backup; a damaged backup changes nothing."""

import tarfile
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import psycopg
import pytest

from launcher import backup, generated_secrets, sockets
from launcher.errors import LaunchError
from launcher.postgres_server import ROLE, PostgresServer
from launcher.supervisor import Supervisor, wait_healthy


@pytest.fixture
def home() -> Iterator[Path]:
    # Not pytest's tmp_path, which PostgreSQL's user cannot access when tests run as root.
    with tempfile.TemporaryDirectory(prefix="boxoffice-", ignore_cleanup_errors=True) as folder:
        yield Path(folder)


@asynccontextmanager
async def running(home: Path) -> AsyncIterator[psycopg.AsyncConnection]:
    server = PostgresServer(home)
    server.initialise()
    supervisor = Supervisor(home)
    try:
        await wait_healthy(supervisor.start([server.program()]), 60)
        await server.provision(("stock", "booking"))
        async with await psycopg.AsyncConnection.connect(
            host=str(sockets.folder(home)), user=ROLE, dbname="stock", autocommit=True
        ) as connection:
            yield connection
    finally:
        await supervisor.stop()


async def sold(connection: psycopg.AsyncConnection) -> list[int]:
    rows = await connection.execute("SELECT seat FROM sold ORDER BY seat")
    return [row[0] for row in await rows.fetchall()]


async def test_a_backup_is_restored_with_its_secrets(home: Path) -> None:
    known = generated_secrets.load(home)
    async with running(home) as connection:
        await connection.execute("CREATE TABLE sold (seat integer PRIMARY KEY)")
        await connection.execute("INSERT INTO sold VALUES (1), (2)")
        file = backup.create(home)
        assert file.stat().st_mode & 0o077 == 0
        await connection.execute("DELETE FROM sold")
        with pytest.raises(LaunchError, match="already running"):
            # A running mesh holds its home. Here only the server runs, which a restore stops.
            _restore_while_held(home, file)
    (home / "secrets.json").write_text("{}")
    previous = backup.restore(home, file)
    assert previous is not None
    assert (previous / "postgres").exists()
    assert generated_secrets.load(home) == known
    async with running(home) as connection:
        assert await sold(connection) == [1, 2]


def _restore_while_held(home: Path, file: Path) -> None:
    from launcher import leftovers

    with leftovers.hold(home):
        backup.restore(home, file)


async def test_a_damaged_backup_is_detected_and_changes_nothing(home: Path) -> None:
    async with running(home) as connection:
        await connection.execute("CREATE TABLE sold (seat integer PRIMARY KEY)")
        await connection.execute("INSERT INTO sold VALUES (7)")
        file = backup.create(home)
    broken = file.with_name("broken.tar.gz")
    broken.write_bytes(file.read_bytes()[: file.stat().st_size // 2])
    with pytest.raises(LaunchError, match="incomplete or damaged"):
        backup.restore(home, broken)
    with tarfile.open(file) as archive, tempfile.TemporaryDirectory() as folder:
        archive.extractall(folder, filter="tar")
        data = Path(folder) / "postgres"
        version = data / "PG_VERSION"
        version.write_text(version.read_text().replace("18", "17"))
        with pytest.raises(LaunchError, match="PG_VERSION"):
            backup._verify(data)
    async with running(home) as connection:
        assert await sold(connection) == [7]


def test_without_a_running_server_there_is_no_backup(home: Path) -> None:
    with pytest.raises(LaunchError, match="pg_basebackup"):
        backup.create(home)
    assert not list((home / "backups").glob("*.tar.gz*"))
