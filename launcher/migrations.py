"""Migrates the services' databases, before the services start or while the previous version's
services run."""

from pathlib import Path

from launcher.errors import LaunchError
from launcher.postgres_server import PostgresServer
from launcher.provided import PREFIX, Provided, database
from mesh.db.migrations import migrate
from mesh.settings import SERVICES


def url(home: Path, provided: Provided, service: str) -> str:
    """SQLAlchemy URL of a service's database: the configured one, else the embedded one."""
    return provided.database_url(service) or PostgresServer(home).url(database(service))


def run(home: Path, provided: Provided) -> None:
    """Migrates all databases. Raises LaunchError for the first that fails."""
    # One after the other, because Alembic keeps its state in module globals.
    for service in SERVICES:
        try:
            migrate(service, url(home, provided, service))
        except Exception as error:
            raise LaunchError(
                f"The database of {service} cannot be migrated: {error}",
                f"Check {PREFIX}{database(service).upper()}_DATABASE_URL and the server."
                if provided.database_url(service)
                else f"Check that a mesh with embedded databases is running in {home}.",
            ) from error
