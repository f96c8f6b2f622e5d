"""PostgreSQL: connections, migrations, batches, idempotent writes, the outbox, its consumers."""
