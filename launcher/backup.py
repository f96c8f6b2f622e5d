"""Backup and restore of the embedded databases, with the keys and secrets of the state folder.

pg_basebackup copies the whole running server, so all four databases have the same point in time: a
booking in one of them refers to a reservation in another.
"""

import hashlib
import json
import os
import pwd
import subprocess
import tarfile
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from launcher import leftovers, sockets
from launcher.errors import LaunchError
from launcher.postgres_server import SUPERUSER, binary

# In the backup besides the databases; without the pepper in secrets.json no password is valid.
_KEPT = ("keys", "secrets.json", "certificates")
_DATABASES = "postgres"
_SECONDS = 3600


def create(home: Path, target: Path | None = None) -> Path:
    """Backs up the mesh that runs in `home` and returns the file, readable only by its owner.

    Raises LaunchError when the embedded PostgreSQL does not run.
    """
    time = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    file = target or home / "backups" / f"boxoffice-{time}.tar.gz"
    file.parent.mkdir(parents=True, exist_ok=True)
    fresh = file.with_name(file.name + ".new")
    with tempfile.TemporaryDirectory(dir=file.parent, prefix=".backup-") as folder:
        copy = Path(folder) / _DATABASES
        _run(
            "pg_basebackup",
            *("--host", str(sockets.folder(home)), "--username", SUPERUSER),
            *("--pgdata", str(copy), "--wal-method", "stream", "--checkpoint", "fast"),
            "--manifest-checksums=SHA256",
            remedy=f"Is a mesh with embedded databases running in {home}?",
        )
        _verify(copy)
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as output:
            with tarfile.open(fileobj=output, mode="w:gz", compresslevel=1) as archive:
                archive.add(copy, _DATABASES)
                for name in _KEPT:
                    if (home / name).exists():
                        archive.add(home / name, name)
            output.flush()
            os.fsync(output.fileno())
    # Renamed when complete, so that a partial backup never has the final name.
    fresh.replace(file)
    return file


def restore(home: Path, file: Path) -> Path | None:
    """Replaces the data in `home` with a backup. No mesh may run there.

    Moves the previous data to a folder in `home` and returns that folder; None if there was no
    data. Raises LaunchError for an invalid backup, before it moves anything.
    """
    if not file.is_file():
        raise LaunchError(f"The backup {file} does not exist.")
    with leftovers.hold(home):
        leftovers.stop_all(home, 20)
        with tempfile.TemporaryDirectory(dir=home, prefix=".restore-") as folder:
            unpacked = Path(folder)
            _unpack(file, unpacked)
            _verify(unpacked / _DATABASES)
            _set_owner(unpacked / _DATABASES)
            previous = _move_previous(home)
            for name in (_DATABASES, *_KEPT):
                if (unpacked / name).exists():
                    (unpacked / name).rename(home / name)
    return previous


def _unpack(file: Path, folder: Path) -> None:
    try:
        with tarfile.open(file) as archive:
            archive.extractall(folder, filter="tar")
    except (tarfile.TarError, OSError, EOFError) as error:
        raise LaunchError(f"{file} is incomplete or damaged: {error}") from error
    if not (folder / _DATABASES / "PG_VERSION").exists():
        raise LaunchError(f"{file} is not a backup of a mesh.")


def _verify(data: Path) -> None:
    """Compares all files with the checksums in PostgreSQL's backup manifest. Raises LaunchError.

    It replaces pg_verifybackup, which does not work in the wheel's PostgreSQL.
    """
    try:
        for entry in json.loads((data / "backup_manifest").read_text())["Files"]:
            with (data / entry["Path"]).open("rb") as file:
                checksum = hashlib.file_digest(file, "sha256").hexdigest()
            if checksum != entry["Checksum"]:
                raise LaunchError(
                    f"The backup is damaged: the checksum of {entry['Path']} does not match."
                )
    except (OSError, ValueError, KeyError) as error:
        raise LaunchError(f"The backup is incomplete: {error}") from error


def _set_owner(data: Path) -> None:
    """Makes the files accessible only to the user that PostgreSQL runs as."""
    data.chmod(0o700)
    if os.geteuid() == 0:
        account = pwd.getpwnam(sockets.ACCOUNT_FOR_ROOT)
        for path in (data, *data.rglob("*")):
            os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)


def _move_previous(home: Path) -> Path | None:
    present = [name for name in (_DATABASES, *_KEPT) if (home / name).exists()]
    if not present:
        return None
    folder = home / f"before-restore-{datetime.now(UTC).strftime('%Y%m%dT%H%M%S%fZ')}"
    folder.mkdir(mode=0o700)
    for name in present:
        (home / name).rename(folder / name)
    return folder


def _run(tool: str, *arguments: str, remedy: str = "") -> None:
    completed = subprocess.run(
        [str(binary().with_name(tool)), *arguments],
        capture_output=True,
        text=True,
        check=False,
        timeout=_SECONDS,
    )
    if completed.returncode != 0:
        raise LaunchError(f"{tool}: {(completed.stdout + completed.stderr).strip()}", remedy)
