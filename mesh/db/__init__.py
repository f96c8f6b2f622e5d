"""PostgreSQL: connections, batches, idempotent writes, the outbox and its consumers."""
