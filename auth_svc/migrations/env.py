"""Alembic's entry: migrates auth_svc's database."""

from auth_svc.tables import metadata
from mesh.db.migrations import run_migrations

run_migrations(metadata)
