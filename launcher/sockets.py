"""The folder of the embedded servers' unix sockets.

A socket's path has at most 107 bytes, which a home deep in somebody's folders
exceeds, so the folder is in the temporary directory, named after the home.
"""

import hashlib
import os
import pwd
import tempfile
from contextlib import suppress
from pathlib import Path

from launcher.errors import LaunchError

ACCOUNT_FOR_ROOT = "pgserver"
"""The system user that PostgreSQL runs as when the launcher is root."""

# Short enough whatever TMPDIR says; `create` refuses a folder of somebody else.
_SHORTEST = Path("/tmp")  # noqa: S108

# sun_path of sockaddr_un has 108 bytes with the final NUL; PostgreSQL's lock file is longest.
_MAX_BYTES = 107 - len("/.s.PGSQL.5432.lock")


def folder(home: Path) -> Path:
    """Where the sockets of the mesh at `home` are; the same each time."""
    name = "boxoffice-" + hashlib.sha256(os.fsencode(home)).hexdigest()[:16]
    in_temp = Path(tempfile.gettempdir()) / name
    return in_temp if len(os.fsencode(in_temp)) <= _MAX_BYTES else _SHORTEST / name


def create(home: Path) -> Path:
    """Creates the folder for the owner of the servers alone.

    The servers trust who can reach their sockets, so nobody else may own it.
    """
    path = folder(home)
    path.mkdir(mode=0o700, exist_ok=True)
    if path.is_symlink() or path.lstat().st_uid not in _trusted():
        raise LaunchError(f"{path} belongs to another user.", "Remove it, or set TMPDIR.")
    path.chmod(0o700)
    return path


def _trusted() -> set[int]:
    trusted = {os.geteuid()}
    if os.geteuid() == 0:
        with suppress(KeyError):
            trusted.add(pwd.getpwnam(ACCOUNT_FOR_ROOT).pw_uid)
    return trusted
