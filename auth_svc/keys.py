"""The folder with the keys of access tokens: which key signs, and which are published.

A key is published before it signs, while others may cache the key set, and afterwards, while its
tokens are valid. File names contain the start times, so that all replicas switch at the same time.
"""

import asyncio
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import jwt

from auth_svc.tokens import PublicKey, SigningKey, create_key, key_set, load_key, load_or_create_key
from mesh.clock import Clock
from mesh.rpc.identity import CLOCK_SKEW_SECONDS

MAX_KEYS = 16
"""More than there are during rotations, which follow each other after `lead` at the earliest."""

_RELOAD_SECONDS = 5.0
_NAME = re.compile(r"access_token(?:-(\d{8}T\d{6}Z))?\.pem")
_TIME = "%Y%m%dT%H%M%SZ"
# The first key has no time in its name.
_FIRST_KEY_TIME = datetime(1970, 1, 1, tzinfo=UTC)


class RotationError(Exception):
    """The keys cannot be rotated now. The text is the reason."""


@dataclass(frozen=True, slots=True)
class DatedKey:
    """A key, its file, and the time of its publication."""

    key: SigningKey
    path: Path
    time: datetime


@dataclass(frozen=True, slots=True)
class KeyRoles:
    """The key that signs, the published keys, and the files of keys that are no longer needed."""

    signing: SigningKey
    published: tuple[PublicKey, ...]
    retired: tuple[Path, ...]


def roles_of(
    keys: Sequence[DatedKey], *, now: datetime, lead: timedelta, access_lifetime: timedelta
) -> KeyRoles:
    """The roles at `now` of keys, which are sorted oldest first.

    The newest key that has been published for `lead` signs, or the oldest when none has.
    """
    signing = max([index for index, key in enumerate(keys) if key.time + lead <= now], default=0)
    life = access_lifetime + timedelta(seconds=CLOCK_SKEW_SECONDS)
    # All tokens of a key have expired once its successor has signed for their lifetime.
    retired = [
        index
        for index, successor in enumerate(keys[1 : signing + 1])
        if successor.time + lead + life <= now
    ]
    return KeyRoles(
        keys[signing].key,
        tuple(key.key.public for index, key in enumerate(keys) if index not in retired),
        tuple(keys[index].path for index in retired),
    )


def read(folder: Path) -> list[DatedKey]:
    """The keys of a folder, oldest first. Creates the first one when there is none.

    Raises tokens.KeyFileError for a file without a usable key.
    """
    if not _files(folder):
        load_or_create_key(folder)
    return [DatedKey(load_key(path), path, time) for time, path in _files(folder)]


def rotate(folder: Path, *, lead: timedelta, now: datetime) -> datetime:
    """Adds a key. Returns the time from which it signs. Raises RotationError."""
    files = _files(folder)
    if not files:
        raise RotationError(f"{folder} has no key yet: auth_svc creates the first one at its start")
    newest, _ = files[-1]
    if newest + lead > now:
        raise RotationError(
            f"the previous rotation ends at {newest + lead:%H:%M:%S} UTC; try again then"
        )
    if len(files) >= MAX_KEYS:
        raise RotationError(f"{folder} has {len(files)} keys; delete the expired ones")
    create_key(folder / f"access_token-{now:{_TIME}}.pem")
    return now + lead


class KeyRing:
    """The keys of this process. `run_once`, in a loop, follows changes of the folder and time."""

    def __init__(
        self, folder: Path, *, clock: Clock, lead: timedelta, access_lifetime: timedelta
    ) -> None:
        self._folder = folder
        self._clock = clock
        self._lead = lead
        self._access_lifetime = access_lifetime
        self._keys = read(folder)
        self._roles = self._current_roles()
        self._key_set = key_set(self._roles.published)

    def signing(self) -> SigningKey:
        """The key that signs now."""
        return self._roles.signing

    def published(self) -> tuple[PublicKey, ...]:
        """The keys that verify tokens now or will do so soon."""
        return self._roles.published

    async def jwks(self) -> jwt.PyJWKSet:
        """The published keys, for verification."""
        return self._key_set

    async def run_once(self) -> None:
        """Reloads the keys, then waits. For a background loop."""
        await asyncio.to_thread(self.reload)
        await asyncio.sleep(_RELOAD_SECONDS)

    def reload(self) -> None:
        """Reads the folder if its files changed, and updates the roles for the current time."""
        if [path for _, path in _files(self._folder)] != [key.path for key in self._keys]:
            self._keys = read(self._folder)
        roles = self._current_roles()
        if roles.published != self._roles.published:
            self._key_set = key_set(roles.published)
        self._roles = roles
        for path in roles.retired:
            # A read-only folder is cleaned up by its owner.
            with suppress(OSError):
                path.unlink(missing_ok=True)

    def _current_roles(self) -> KeyRoles:
        return roles_of(
            self._keys, now=self._clock(), lead=self._lead, access_lifetime=self._access_lifetime
        )


def _files(folder: Path) -> list[tuple[datetime, Path]]:
    """Key files with the times in their names, oldest first; other files are skipped."""
    files = []
    for path in folder.glob("access_token*.pem"):
        if name := _NAME.fullmatch(path.name):
            time = (
                datetime.strptime(name[1], _TIME).replace(tzinfo=UTC)
                if name[1]
                else _FIRST_KEY_TIME
            )
            files.append((time, path))
    return sorted(files)
