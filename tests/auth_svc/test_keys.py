"""Key rotation: every token can be verified at any time, with any cached key set."""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from auth_svc.keys import DatedKey, KeyRing, RotationError, roles_of, rotate
from auth_svc.tokens import KeyFileError, load_or_create_key
from mesh.rpc.identity import CLOCK_SKEW_SECONDS

START = datetime(2026, 3, 1, 12, tzinfo=UTC)
LEAD = timedelta(seconds=150)
LIFE = timedelta(minutes=15)
SKEW = timedelta(seconds=CLOCK_SKEW_SECONDS)
SECOND = timedelta(seconds=1)


class MovedClock:
    def __init__(self) -> None:
        self.now = START

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> MovedClock:
    return MovedClock()


@pytest.fixture
def ring(tmp_path: Path, clock: MovedClock) -> KeyRing:
    return KeyRing(tmp_path, clock=clock, lead=LEAD, access_lifetime=LIFE)


def at(ring: KeyRing, clock: MovedClock, now: datetime) -> tuple[str, list[str]]:
    """The ids of the signing key and of the published keys."""
    clock.now = now
    ring.reload()
    return ring.signing().public.kid, [key.kid for key in ring.published()]


def test_the_first_key_signs_at_once(ring: KeyRing, clock: MovedClock) -> None:
    signing, published = at(ring, clock, START)
    assert published == [signing]


def test_a_new_key_is_published_then_signs_then_replaces_the_old_one(
    ring: KeyRing, clock: MovedClock, tmp_path: Path
) -> None:
    old, _ = at(ring, clock, START)
    assert rotate(tmp_path, lead=LEAD, now=START) == START + LEAD
    signing, [first, new] = at(ring, clock, START)
    assert (signing, first) == (old, old)
    assert new != old
    assert at(ring, clock, START + LEAD - SECOND) == (old, [old, new])
    assert at(ring, clock, START + LEAD) == (new, [old, new])
    # The last token of the old key has expired, also by a clock that is behind.
    end = START + LEAD + LIFE + SKEW
    assert at(ring, clock, end - SECOND) == (new, [old, new])
    assert at(ring, clock, end) == (new, [new])
    assert len(list(tmp_path.glob("*.pem"))) == 1


def test_every_token_verifies_with_every_key_set_that_may_be_cached(
    ring: KeyRing, clock: MovedClock, tmp_path: Path
) -> None:
    """Two rotations: a key set fetched up to 150 s ago contains the signing key, and the key set
    contains a token's key until the token expires."""
    history: list[tuple[datetime, str, set[str]]] = []
    for seconds in range(0, 4000, 5):
        now = START + seconds * SECOND
        if seconds in (500, 2000):
            rotate(tmp_path, lead=LEAD, now=now)
        signing, published = at(ring, clock, now)
        history.append((now, signing, set(published)))
    assert len({signing for _, signing, _ in history}) == 3
    for now, signing, _ in history:
        for then, _, cached in history:
            if now - LEAD <= then <= now + LIFE + SKEW - 5 * SECOND:
                assert signing in cached, (now, then)


def test_one_rotation_at_a_time(tmp_path: Path, ring: KeyRing) -> None:
    rotate(tmp_path, lead=LEAD, now=START)
    with pytest.raises(RotationError, match="12:02:30"):
        rotate(tmp_path, lead=LEAD, now=START + LEAD - SECOND)
    rotate(tmp_path, lead=LEAD, now=START + LEAD)


def test_a_folder_without_a_key_is_not_rotated(tmp_path: Path) -> None:
    with pytest.raises(RotationError, match="no key yet"):
        rotate(tmp_path / "elsewhere", lead=LEAD, now=START)


def test_two_processes_switch_keys_at_the_same_time(
    ring: KeyRing, clock: MovedClock, tmp_path: Path
) -> None:
    other = KeyRing(tmp_path, clock=clock, lead=LEAD, access_lifetime=LIFE)
    rotate(tmp_path, lead=LEAD, now=START)
    for seconds in (0, 149, 150, 1000, 1060, 2000):
        now = START + seconds * SECOND
        assert at(ring, clock, now) == at(other, clock, now)


def test_a_deleted_key_is_replaced_at_once(
    ring: KeyRing, clock: MovedClock, tmp_path: Path
) -> None:
    """After a leak an operator deletes the key: the next one signs without delay."""
    old, _ = at(ring, clock, START)
    rotate(tmp_path, lead=LEAD, now=START)
    (tmp_path / "access_token.pem").unlink()
    signing, published = at(ring, clock, START + SECOND)
    assert published == [signing]
    assert signing != old


@pytest.fixture
def drafts(tmp_path: Path) -> Iterator[list[Path]]:
    names = ["access_token.pem.0123", "access_token-1.pem", "access_token-20260301T120000Z.pem.ab"]
    paths = [tmp_path / name for name in names]
    for path in paths:
        path.write_text("half a key")
    yield paths
    assert all(path.exists() for path in paths)


def test_other_files_are_ignored(drafts: list[Path], clock: MovedClock, tmp_path: Path) -> None:
    ring = KeyRing(tmp_path, clock=clock, lead=LEAD, access_lifetime=LIFE)
    assert len(at(ring, clock, START)[1]) == 1


def test_a_file_without_a_key_prevents_the_start(tmp_path: Path, clock: MovedClock) -> None:
    (tmp_path / "access_token-20260301T120000Z.pem").write_text("nonsense")
    with pytest.raises(KeyFileError, match="20260301"):
        KeyRing(tmp_path, clock=clock, lead=LEAD, access_lifetime=LIFE)


def test_when_no_key_is_old_enough_the_oldest_signs(tmp_path: Path) -> None:
    keys = [
        DatedKey(load_or_create_key(tmp_path / name), tmp_path / name, START + n * SECOND)
        for n, name in enumerate(["first", "second"])
    ]
    roles = roles_of(keys, now=START + 2 * SECOND, lead=LEAD, access_lifetime=LIFE)
    assert roles.signing is keys[0].key
    assert roles.retired == ()
