"""Opens databases for tests."""

from contextlib import AbstractAsyncContextManager

from mesh.db.database import Database

_POOL_SECONDS = 60


def open_patiently(url: str, *, pool_size: int = 12) -> AbstractAsyncContextManager[Database]:
    """A database whose callers wait up to a minute for a connection, for slow machines."""
    return Database.open(url, pool_size=pool_size, pool_seconds=_POOL_SECONDS)
