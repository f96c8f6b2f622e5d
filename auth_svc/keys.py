"""The keys of access tokens in a folder, and which of them sign and are published when.

A key is published before it signs, for as long as others keep the key set, and after it
has signed, for as long as its tokens live. When each began is in the names of the files,
so that all replicas, which share the folder, do the same at the same time.
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
"""More than any rotation leaves behind."""

_LOOK_SECONDS = 5.0
_NAME = re.compile(r"access_token(?:-(\d{8}T\d{6}Z))?\.pem")
_TIME = "%Y%m%dT%H%M%SZ"
# The first key has no time in its name: it was there from the beginning.
_BEGINNING = datetime(1970, 1, 1, tzinfo=UTC)


class RotationError(Exception):
    """The keys cannot be rotated now; the text says why."""


@dataclass(frozen=True, slots=True)
class DatedKey:
    """A key, its file, and since when it has been published."""

    key: SigningKey
    path: Path
    time: datetime


@dataclass(frozen=True, slots=True)
class Ring:
    """What each key is for, oldest first: one signs, some are published, the rest are over."""

    signing: SigningKey
    published: tuple[PublicKey, ...]
    retired: tuple[Path, ...]


def ring_of(
    keys: Sequence[DatedKey], *, now: datetime, lead: timedelta, access_lifetime: timedelta
) -> Ring:
    """What the keys, oldest first, are for at a time.

    The newest that has been published for `lead` signs; when none has, the oldest does.
    """
    signing = max([n for n, each in enumerate(keys) if each.time + lead <= now], default=0)
    life = access_lifetime + timedelta(seconds=CLOCK_SKEW_SECONDS)
    # Its successor has signed for as long as its last token lived.
    over = [
        n
        for n, successor in enumerate(keys[1 : signing + 1])
        if successor.time + lead + life <= now
    ]
    return Ring(
        keys[signing].key,
        tuple(each.key.public for n, each in enumerate(keys) if n not in over),
        tuple(keys[n].path for n in over),
    )


def read(folder: Path) -> list[DatedKey]:
    """The keys of a folder, oldest first; the first one is made when there is none.

    Raises tokens.KeyFileError for a file that holds no such key.
    """
    if not _files(folder):
        load_or_create_key(folder)
    return [DatedKey(load_key(path), path, time) for time, path in _files(folder)]


def rotate(folder: Path, *, lead: timedelta, now: datetime) -> datetime:
    """Adds a key. Returns when it will begin to sign. Raises RotationError."""
    files = _files(folder)
    if not files:
        raise RotationError(f"{folder} has no key yet: auth_svc makes the first one")
    newest, _ = files[-1]
    if newest + lead > now:
        raise RotationError(
            f"the last rotation goes on until {newest + lead:%H:%M:%S} UTC; try again then"
        )
    if len(files) >= MAX_KEYS:
        raise RotationError(f"{folder} has {len(files)} keys; remove those that are over")
    create_key(folder / f"access_token-{now:{_TIME}}.pem")
    return now + lead


class KeyRing:
    """The keys of this process. `turn`, run as a loop, notices files that come and go."""

    def __init__(
        self, folder: Path, *, clock: Clock, lead: timedelta, access_lifetime: timedelta
    ) -> None:
        self._folder = folder
        self._clock = clock
        self._lead = lead
        self._access_lifetime = access_lifetime
        self._keys = read(folder)
        self._ring = self._decide()
        self._key_set = key_set(self._ring.published)

    def signing(self) -> SigningKey:
        """The key that signs now."""
        return self._ring.signing

    def published(self) -> tuple[PublicKey, ...]:
        """The keys that verify now, or soon."""
        return self._ring.published

    async def jwks(self) -> jwt.PyJWKSet:
        """The published keys as verification takes them."""
        return self._key_set

    async def turn(self) -> None:
        """One turn of the loop, and the pause after it."""
        await asyncio.to_thread(self.look)
        await asyncio.sleep(_LOOK_SECONDS)

    def look(self) -> None:
        """Reads the folder if its files are others, and decides anew."""
        if [path for _, path in _files(self._folder)] != [each.path for each in self._keys]:
            self._keys = read(self._folder)
        ring = self._decide()
        if ring.published != self._ring.published:
            self._key_set = key_set(ring.published)
        self._ring = ring
        for path in ring.retired:
            # A folder that only somebody else may write to is theirs to tidy up.
            with suppress(OSError):
                path.unlink(missing_ok=True)

    def _decide(self) -> Ring:
        return ring_of(
            self._keys, now=self._clock(), lead=self._lead, access_lifetime=self._access_lifetime
        )


def _files(folder: Path) -> list[tuple[datetime, Path]]:
    """Key files by the time in their names, oldest first; drafts and others are left out."""
    found = []
    for path in folder.glob("access_token*.pem"):
        if name := _NAME.fullmatch(path.name):
            time = datetime.strptime(name[1], _TIME).replace(tzinfo=UTC) if name[1] else _BEGINNING
            found.append((time, path))
    return sorted(found)
