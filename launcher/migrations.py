"""Brings the services' databases to this version's schema, before the services start or while
those of the version before run."""

from pathlib import Path

from launcher.errors import LaunchError
from launcher.postgres_server import PostgresServer
from launcher.provided import PREFIX, Provided, database
from mesh.db.database import migrate
from mesh.settings import SERVICES


def url(home: Path, provided: Provided, service: str) -> str:
    """SQLAlchemy URL of a service's database: the one that is set, or the embedded one's."""
    return provided.database_url(service) or PostgresServer(home).url(database(service))


def run(home: Path, provided: Provided) -> None:
    """Migrates them all. Raises LaunchError for one that cannot be."""
    # One after the other: Alembic keeps its state in module globals.
    for service in SERVICES:
        try:
            migrate(service, url(home, provided, service))
        except Exception as error:
            raise LaunchError(
                f"The database of {service} cannot be migrated: {error}",
                f"Is {PREFIX}{database(service).upper()}_DATABASE_URL right, and the server up?"
                if provided.database_url(service)
                else f"Does a mesh with embedded databases run in {home}?",
            ) from error
