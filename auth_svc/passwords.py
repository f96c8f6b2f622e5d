"""Password policy, hashing and verification.

bcrypt occupies a core for a fifth of a second at cost 12. It runs in threads of its own
(hashing_threads.py), never on the event loop, and a bounded queue rejects work that would wait too
long.
"""

import asyncio
import base64
import hashlib
import hmac
import os
import secrets
import threading
import unicodedata
from collections.abc import Callable
from functools import cache, partial
from importlib import resources
from typing import ParamSpec, TypeVar

import bcrypt

from auth_svc.hashing_threads import HashingThreads
from mesh.errors import DomainError, FieldViolation, Reason, invalid

MIN_LENGTH = 8
MAX_LENGTH = 128
"""In characters after NFC normalisation."""

# At cost 12 the last entry of the queue waits about two seconds, with one worker eight: less than
# the calls' deadline of 25 s, also when each hash takes three times as long on a busy machine.
_WAITING_PER_WORKER = 10
_MIN_WAITING = 32

# 20 customers at once get through in 20 s. A burst on an idle machine hardly uses it.
_FLOOR_SECONDS = 1.0

_P = ParamSpec("_P")
_T = TypeVar("_T")


def violations(
    password: str, *, email: str, full_name: str, field: str = "password"
) -> tuple[FieldViolation, ...]:
    """One violation per unmet rule of the policy, each with the name `field`."""
    password = unicodedata.normalize("NFC", password)
    categories = {unicodedata.category(character) for character in password}
    rules = {
        "length": (
            f"must have {MIN_LENGTH}–{MAX_LENGTH} characters",
            MIN_LENGTH <= len(password) <= MAX_LENGTH,
        ),
        "upper_case": ("must contain an upper-case letter", "Lu" in categories),
        "lower_case": ("must contain a lower-case letter", "Ll" in categories),
        "digit": ("must contain a digit", "Nd" in categories),
        "special": (
            "must contain a special character",
            any(kind[0] in "PSZ" for kind in categories),
        ),
        "control": ("must not contain control characters", "Cc" not in categories),
        "personal": (
            "must not be the e-mail address or the name",
            not _is_personal(password, email, full_name),
        ),
        "common": ("must not be a common password", not _is_common(password)),
    }
    return tuple(
        FieldViolation(field, text, f"password.{rule}")
        for rule, (text, is_met) in rules.items()
        if not is_met
    )


def check_policy(password: str, *, email: str, full_name: str, field: str = "password") -> None:
    """Raises PASSWORD_TOO_WEAK with the `violations`."""
    if unmet := violations(password, email=email, full_name=full_name, field=field):
        raise DomainError(
            Reason.PASSWORD_TOO_WEAK,
            f"the password {'; '.join(violation.description for violation in unmet)}",
            violations=unmet,
        )


def is_same(first: str, second: str) -> bool:
    """Whether two texts are the same password, after Unicode normalisation."""
    return unicodedata.normalize("NFC", first) == unicodedata.normalize("NFC", second)


def check_confirmation(new_password: str, confirm_password: str | None) -> None:
    """Raises VALIDATION_FAILED when the optional second entry of a new password differs."""
    if confirm_password is not None and not is_same(new_password, confirm_password):
        raise invalid(FieldViolation("confirm_password", "must equal `new_password`"))


class PasswordHasher:
    """Hashes and verifies passwords in its own threads. Close it at the end.

    The hash is bcrypt over base64(HMAC-SHA-256(pepper, NFC(password))), because bcrypt reads at
    most 72 bytes and stops at NUL. `workers` defaults to all cores but one, which is left to the
    event loops: a thread of low priority may be preempted while it holds the interpreter lock.
    `waiting` is the length of the queue.
    """

    def __init__(
        self, *, cost: int, pepper: bytes, workers: int | None = None, waiting: int | None = None
    ) -> None:
        workers = workers or max((os.cpu_count() or 1) - 1, 1)
        if waiting is None:
            waiting = max(workers * _WAITING_PER_WORKER, _MIN_WAITING)
        self._cost = cost
        self._pepper = pepper
        self._threads = HashingThreads(workers, floor_seconds=_FLOOR_SECONDS)
        self._places = threading.BoundedSemaphore(workers + waiting)
        self._random_hash = bcrypt.hashpw(secrets.token_bytes(32), bcrypt.gensalt(cost))

    async def hash(self, password: str) -> str:
        """Raises OVERLOADED when the queue is full."""
        hashed = await self._run(bcrypt.hashpw, self._digest(password), bcrypt.gensalt(self._cost))
        return hashed.decode()

    async def verify(self, password: str, password_hash: str | None) -> bool:
        """Whether the password matches the hash. Without a hash: False, after the same time.

        Raises OVERLOADED when the queue is full.
        """
        expected = self._random_hash if password_hash is None else password_hash.encode()
        is_equal = await self._run(bcrypt.checkpw, self._digest(password), expected)
        return is_equal and password_hash is not None

    @property
    def unusable_hash(self) -> str:
        """The hash of a random password, for an account without sign-in."""
        return self._random_hash.decode()

    def is_outdated(self, password_hash: str) -> bool:
        """Whether the hash has another cost than the configured one."""
        return not password_hash.startswith(f"$2b${self._cost:02d}$")

    def close(self) -> None:
        self._threads.close()

    def _digest(self, password: str) -> bytes:
        text = unicodedata.normalize("NFC", password).encode()
        return base64.b64encode(hmac.digest(self._pepper, text, hashlib.sha256))

    async def _run(
        self, work: Callable[_P, _T], /, *arguments: _P.args, **keywords: _P.kwargs
    ) -> _T:
        if not self._places.acquire(blocking=False):
            raise DomainError(
                Reason.OVERLOADED,
                "too many sign-ins at the same time; try again",
                retry_after_seconds=1,
            )
        running = self._threads.submit(partial(work, *arguments, **keywords))
        # Not in a finally block: the thread of a cancelled call still runs and keeps its place.
        running.add_done_callback(lambda _: self._places.release())
        return await asyncio.wrap_future(running)


def _is_personal(password: str, email: str, full_name: str) -> bool:
    """Whether the password equals the e-mail address or the name, apart from digits and signs."""
    letters = _letters(password)
    local_part, _, _ = email.rpartition("@")
    return bool(letters) and letters in {
        _letters(email),
        _letters(local_part),
        _letters(full_name),
    }


def _is_common(password: str) -> bool:
    """Whether the list contains it, with or without the digits and signs around it."""
    folded = password.casefold()
    core = folded.strip("".join(char for char in folded if not char.isalpha()))
    return folded in _common_passwords() or core in _common_passwords()


def _letters(text: str) -> str:
    folded = unicodedata.normalize("NFC", text).casefold()
    return "".join(character for character in folded if character.isalpha())


@cache
def _common_passwords() -> frozenset[str]:
    text = resources.files("auth_svc").joinpath("common_passwords.txt").read_text("utf-8")
    return frozenset(line for line in text.splitlines() if line and not line.startswith("#"))
