"""Run by Alembic."""

from mesh.db.migrations import run_migrations
from payment_svc.tables import metadata

run_migrations(metadata)
