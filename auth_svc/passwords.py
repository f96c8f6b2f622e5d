"""Passwords: which ones are good enough, and how they are hashed and compared.

bcrypt takes a core for a fifth of a second at cost 12. It runs in a bounded pool of
threads, never on the event loop, and refuses work that would wait too long.
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
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from importlib import resources
from typing import ParamSpec, TypeVar

import bcrypt

from mesh.errors import DomainError, FieldViolation, Reason

MIN_LENGTH = 8
MAX_LENGTH = 128
"""In characters after NFC, as people count them."""

# At cost 12 the last in the queue waits about two seconds.
_WAITING_PER_WORKER = 10

# About a tenth of the share of the others, when all want the same core.
_NICENESS = 10

_P = ParamSpec("_P")
_T = TypeVar("_T")


def check_policy(password: str, *, email: str, full_name: str, field: str = "password") -> None:
    """Raises PASSWORD_TOO_WEAK with one violation for every unmet rule.

    `field` is the name of the password's field in the request.
    """
    password = unicodedata.normalize("NFC", password)
    categories = {unicodedata.category(character) for character in password}
    rules = {
        f"must have {MIN_LENGTH}–{MAX_LENGTH} characters": MIN_LENGTH
        <= len(password)
        <= MAX_LENGTH,
        "must contain an upper-case letter": "Lu" in categories,
        "must contain a lower-case letter": "Ll" in categories,
        "must contain a digit": "Nd" in categories,
        "must contain a special character": any(kind[0] in "PSZ" for kind in categories),
        "must not contain control characters": "Cc" not in categories,
        "must not be the e-mail address or the name": not _is_personal(password, email, full_name),
        "must not be a common password": not _is_common(password),
    }
    unmet = [rule for rule, is_met in rules.items() if not is_met]
    if unmet:
        raise DomainError(
            Reason.PASSWORD_TOO_WEAK,
            f"the password {'; '.join(unmet)}",
            violations=tuple(FieldViolation(field, rule) for rule in unmet),
        )


def is_same(one: str, other: str) -> bool:
    """Whether two texts are one password, however their accents are put together."""
    return unicodedata.normalize("NFC", one) == unicodedata.normalize("NFC", other)


class PasswordHasher:
    """Hashes and compares passwords in threads of its own. Close it at the end.

    The hash is bcrypt over base64(HMAC-SHA-256(pepper, NFC(password))): bcrypt itself
    reads no more than 72 bytes and stops at NUL. `workers` defaults to all
    cores but one, which the event loops keep: a thread that yields may have to yield while it
    holds the interpreter. `waiting` is how many may queue for them.
    """

    def __init__(
        self, *, cost: int, pepper: bytes, workers: int | None = None, waiting: int | None = None
    ) -> None:
        workers = workers or max((os.cpu_count() or 1) - 1, 1)
        waiting = workers * _WAITING_PER_WORKER if waiting is None else waiting
        self._cost = cost
        self._pepper = pepper
        self._pool = ThreadPoolExecutor(
            workers, thread_name_prefix="bcrypt", initializer=_yield_to_others
        )
        self._places = threading.BoundedSemaphore(workers + waiting)
        self._nobodys_hash = bcrypt.hashpw(secrets.token_bytes(32), bcrypt.gensalt(cost))

    async def hash(self, password: str) -> str:
        """Raises OVERLOADED when too many passwords wait already."""
        hashed = await self._run(bcrypt.hashpw, self._digest(password), bcrypt.gensalt(self._cost))
        return hashed.decode()

    async def verify(self, password: str, password_hash: str | None) -> bool:
        """Whether the password is the hashed one. Without a hash: False, after the same time.

        Raises OVERLOADED when too many passwords wait already.
        """
        expected = self._nobodys_hash if password_hash is None else password_hash.encode()
        is_equal = await self._run(bcrypt.checkpw, self._digest(password), expected)
        return is_equal and password_hash is not None

    @property
    def unusable_hash(self) -> str:
        """The hash of nobody's password, for an account that nobody may sign in to any more."""
        return self._nobodys_hash.decode()

    def is_outdated(self, password_hash: str) -> bool:
        """Whether the hash was made at another cost than today's."""
        return not password_hash.startswith(f"$2b${self._cost:02d}$")

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _digest(self, password: str) -> bytes:
        text = unicodedata.normalize("NFC", password).encode()
        return base64.b64encode(hmac.digest(self._pepper, text, hashlib.sha256))

    async def _run(
        self, work: Callable[_P, _T], /, *arguments: _P.args, **keywords: _P.kwargs
    ) -> _T:
        if not self._places.acquire(blocking=False):
            raise DomainError(
                Reason.OVERLOADED, "too many people are signing in", retry_after_seconds=1
            )
        running = self._pool.submit(work, *arguments, **keywords)
        # Not in a finally: after a cancelled call the thread still runs and takes its place.
        running.add_done_callback(lambda _: self._places.release())
        return await asyncio.wrap_future(running)


def _yield_to_others() -> None:
    """Lets everything else on the machine go before this thread, which can wait.

    bench/login_stall.py measures it: without it a rush of sign-ins slows down all services.
    """
    # On Linux a niceness is a thread's own; elsewhere there is no such thread to be found.
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), _NICENESS)


def _is_personal(password: str, email: str, full_name: str) -> bool:
    """Whether nothing but digits and signs tells the password from the e-mail or the name."""
    letters = _letters(password)
    local_part, _, _ = email.rpartition("@")
    return bool(letters) and letters in {
        _letters(email),
        _letters(local_part),
        _letters(full_name),
    }


def _is_common(password: str) -> bool:
    """Whether it is in the list, as it is or without the digits and signs around it."""
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
