"""Backup and restore of the embedded databases.

A backup is a copy of the whole server, taken by PostgreSQL's own streaming copy while
the mesh runs: consistent, of one moment, for all four databases at once. That matters,
because a booking in one of them and its reservation in another belong together. The keys
and secrets of the state folder go with it: without the pepper no password holds.
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

# What a mesh needs beside its databases to be the same mesh.
_KEPT = ("keys", "secrets.json", "certificates")
_DATABASES = "postgres"
_SECONDS = 3600


def create(home: Path, target: Path | None = None) -> Path:
    """Writes a backup of the mesh that runs in `home`; returns its file, for the owner alone.

    Raises LaunchError when no embedded server answers there.
    """
    moment = datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    file = target or home / "backups" / f"boxoffice-{moment}.tar.gz"
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
    # Under its name only when it is whole.
    fresh.replace(file)
    return file


def restore(home: Path, file: Path) -> Path | None:
    """Puts a backup in place of what is in `home`, where no mesh may be running.

    What was there is kept in a folder beside it, which is returned; None when there was
    nothing. Raises LaunchError for a file that is no whole backup, before anything is moved.
    """
    if not file.is_file():
        raise LaunchError(f"There is no backup {file}.")
    with leftovers.hold(home):
        leftovers.stop_all(home, 20)
        with tempfile.TemporaryDirectory(dir=home, prefix=".restore-") as folder:
            unpacked = Path(folder)
            _unpack(file, unpacked)
            _verify(unpacked / _DATABASES)
            _own(unpacked / _DATABASES)
            aside = _set_aside(home)
            for name in (_DATABASES, *_KEPT):
                if (unpacked / name).exists():
                    (unpacked / name).rename(home / name)
    return aside


def _unpack(file: Path, folder: Path) -> None:
    try:
        with tarfile.open(file) as archive:
            archive.extractall(folder, filter="tar")
    except (tarfile.TarError, OSError, EOFError) as error:
        raise LaunchError(f"{file} is no whole backup: {error}") from error
    if not (folder / _DATABASES / "PG_VERSION").exists():
        raise LaunchError(f"{file} is no backup of a mesh.")


def _verify(data: Path) -> None:
    """Raises LaunchError unless every file is as PostgreSQL wrote down that it sent it.

    What pg_verifybackup does, which the wheel's PostgreSQL has no working one of.
    """
    try:
        files = json.loads((data / "backup_manifest").read_text())["Files"]
        for each in files:
            with (data / each["Path"]).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
            if found != each["Checksum"]:
                raise LaunchError(f"The backup is damaged: {each['Path']} is not what it was.")
    except (OSError, ValueError, KeyError) as error:
        raise LaunchError(f"The backup is not whole: {error}") from error


def _own(data: Path) -> None:
    """Gives the databases to the user that PostgreSQL runs as, and to nobody else."""
    data.chmod(0o700)
    if os.geteuid() == 0:
        account = pwd.getpwnam(sockets.ACCOUNT_FOR_ROOT)
        for path in (data, *data.rglob("*")):
            os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)


def _set_aside(home: Path) -> Path | None:
    present = [name for name in (_DATABASES, *_KEPT) if (home / name).exists()]
    if not present:
        return None
    aside = home / f"before-restore-{datetime.now(UTC).strftime('%Y%m%dT%H%M%S%fZ')}"
    aside.mkdir(mode=0o700)
    for name in present:
        (home / name).rename(aside / name)
    return aside


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
