"""The folder of the embedded servers' Unix sockets.

A socket's path is limited to 107 bytes, which a state folder may exceed. So the sockets are in the
temporary directory, in a folder named after a hash of the state folder's path.
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

# Used if TMPDIR is too long; `create` refuses a folder of another user.
_SHORTEST = Path("/tmp")  # noqa: S108

# sun_path has 108 bytes including the final NUL; PostgreSQL's lock file has the longest name.
_MAX_BYTES = 107 - len("/.s.PGSQL.5432.lock")


def folder(home: Path) -> Path:
    """The socket folder of the mesh at `home`, always the same."""
    name = "boxoffice-" + hashlib.sha256(os.fsencode(home)).hexdigest()[:16]
    in_temp = Path(tempfile.gettempdir()) / name
    return in_temp if len(os.fsencode(in_temp)) <= _MAX_BYTES else _SHORTEST / name


def create(home: Path) -> Path:
    """Creates the folder with access only for the servers' owner.

    The servers accept all clients that can reach their sockets. Raises LaunchError if the folder
    belongs to another user.
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
