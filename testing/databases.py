"""Databases as tests open them."""

from contextlib import AbstractAsyncContextManager

from mesh.db.database import Database

_PATIENCE_SECONDS = 60


def open_patiently(url: str, *, pool_size: int = 12) -> AbstractAsyncContextManager[Database]:
    """A database whose callers wait for a connection, however slow the machine is."""
    return Database.open(url, pool_size=pool_size, pool_seconds=_PATIENCE_SECONDS)
