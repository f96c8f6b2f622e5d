from mesh.db.migrations import run_migrations
from stock_svc.tables import metadata

run_migrations(metadata)
