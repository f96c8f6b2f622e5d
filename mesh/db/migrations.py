"""Migrations of the services' databases, by Alembic.

Not in database.py: Alembic is a tenth of what a service imports, and a running service needs none of it.
"""

import importlib
import time
from pathlib import Path

import alembic.command
import alembic.config
import sqlalchemy as sa
from alembic import context as migration
from psycopg.errors import DeadlockDetected, LockNotAvailable

# Advisory lock: processes that migrate one database at the same time run one after the other.
_MIGRATION_LOCK = 0x626F786F  # "boxo"
# Statements on a table queue behind a migration that waits for the table's lock. It must time out
# before they do (lock_timeout of their roles: 500 ms), then retries.
_MIGRATION_LOCK_TIMEOUT = "200ms"
_MIGRATION_PAUSE_SECONDS = 0.5
_MIGRATION_SECONDS = 600.0


def migrate(service: str, url: str, revision: str = "head") -> None:
    """Migrates the database of `service` to the newest revision, or to `revision`.

    Safe to run concurrently and while the service runs: a migration that does not get a table's
    lock within 200 ms is retried, for ten minutes. Each migration commits by itself.
    """
    config = alembic_config(service, url)
    deadline = time.monotonic() + _MIGRATION_SECONDS
    while True:
        try:
            alembic.command.upgrade(config, revision)
        except sa.exc.OperationalError as error:
            is_lock = isinstance(error.orig, (LockNotAvailable, DeadlockDetected))
            if not is_lock or time.monotonic() > deadline:
                raise
            time.sleep(_MIGRATION_PAUSE_SECONDS)
        else:
            return


def alembic_config(service: str, url: str) -> alembic.config.Config:
    """Alembic's configuration for a service's migrations/ folder."""
    package = importlib.import_module(service)
    config = alembic.config.Config()
    config.set_main_option(
        "script_location", str(Path(str(package.__file__)).parent / "migrations")
    )
    config.set_main_option("path_separator", "os")
    config.attributes["url"] = url
    return config


def run_migrations(metadata: sa.MetaData) -> None:
    """Runs the migrations; called by every service's migrations/env.py."""
    engine = sa.create_engine(migration.config.attributes["url"], poolclass=sa.NullPool)
    with engine.connect() as connection:
        # The service's role has short timeouts, which a migration may exceed.
        connection.execute(sa.text("SET statement_timeout = 0"))
        connection.execute(sa.text("SET transaction_timeout = 0"))
        connection.execute(sa.text("SET lock_timeout = 0"))
        connection.execute(sa.text("SELECT pg_advisory_lock(:key)"), {"key": _MIGRATION_LOCK})
        connection.execute(sa.text(f"SET lock_timeout = '{_MIGRATION_LOCK_TIMEOUT}'"))
        connection.commit()
        migration.configure(
            connection=connection, target_metadata=metadata, transaction_per_migration=True
        )
        with migration.begin_transaction():
            migration.run_migrations()
        connection.commit()
    engine.dispose()
