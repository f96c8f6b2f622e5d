"""Alembic's entry: booking_svc's tables."""

from booking_svc.tables import metadata
from mesh.database import run_migrations

run_migrations(metadata)
