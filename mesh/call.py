"""The call that is being served: who calls, until when, under which ids.

Set once by the server's interceptor and read from anywhere below it, so that a log
line or an outgoing call needs nothing handed through.
"""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from itertools import islice
from uuid import UUID

from mesh import tracing
from mesh.errors import DomainError, Reason
from mesh.policy import Access

REQUEST_ID_HEADER = "x-request-id"

MAX_REQUEST_ID_LENGTH = 1024
"""Room for the ids of a batch; the gateway's own are UUIDs."""

# A UUID and a comma each.
_MOST_REQUEST_IDS = MAX_REQUEST_ID_LENGTH // 37

_running = 0
_deadline: ContextVar[float | None] = ContextVar("deadline", default=None)
_request_id: ContextVar[str] = ContextVar("request_id", default="")
_caller: ContextVar["Caller | None"] = ContextVar("caller", default=None)
_idempotency_key: ContextVar[str | None] = ContextVar("idempotency_key", default=None)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: the process by its certificate, and the user by a verified token, if any.

    `role` is Access.CUSTOMER, STAFF or ADMIN; `session_id` says by which of the user's
    sessions they are signed in. All three are None without a user. `token_version` grows
    whenever the tokens of before are revoked (mesh/revocations.py).
    """

    process: str
    user_id: UUID | None = None
    role: Access | None = None
    session_id: UUID | None = None
    token_version: int = 0

    @property
    def is_staff(self) -> bool:
        return self.role in (Access.STAFF, Access.ADMIN)

    def user(self) -> UUID:
        """The signed-in user. Raises TOKEN_INVALID without one."""
        if self.user_id is None:
            raise DomainError(Reason.TOKEN_INVALID, "sign in first")
        return self.user_id

    def session(self) -> UUID:
        """The session that the user is signed in by. Raises TOKEN_INVALID without one."""
        if self.session_id is None:
            raise DomainError(Reason.TOKEN_INVALID, "sign in first")
        return self.session_id

    @property
    def owner_scope(self) -> UUID | None:
        """Whose things the caller may see: a customer's own, or None for everybody's.

        Staff and the services that a policy names see everybody's.
        """
        return None if self.is_staff or self.user_id is None else self.user_id


def caller() -> Caller:
    """Who made the call that is being served."""
    current = _caller.get()
    if current is None:
        raise LookupError("no call is being served")
    return current


def request_id() -> str:
    """Id of the request at the gateway, the same in all services; empty outside of a call."""
    return _request_id.get()


def idempotency_key() -> str | None:
    """The key that the client sent, if any; present when the policy requires it."""
    return _idempotency_key.get()


def remaining_seconds() -> float | None:
    """Time left for the work at hand; None when nothing bounds it."""
    deadline = _deadline.get()
    return None if deadline is None else deadline - asyncio.get_running_loop().time()


def begin(*, request_id: str, idempotency_key: str | None) -> None:
    """Marks the current task as serving a call. The task ends with the call."""
    _request_id.set(request_id)
    _idempotency_key.set(idempotency_key)


def running() -> int:
    """How many calls this process is serving, streams not counted."""
    return _running


@contextmanager
def counted() -> Iterator[None]:
    """Around a call that is being served."""
    global _running  # noqa: PLW0603 - of the process, like the metric beside it
    _running += 1
    try:
        yield
    finally:
        _running -= 1


def origin() -> str:
    """What caused the work at hand, as text to keep with what the work leaves for later.

    Request id and trace; both may be empty.
    """
    return f"{_request_id.get()} {tracing.parent()}"


@contextmanager
def resuming(name: str, *origins: str, **attributes: str) -> Iterator[None]:
    """Work in the name of the calls that left it, so that logs and traces tell so.

    Of many only the first are named in logs; the trace of the first links to all of them.
    """
    parts = [origin.partition(" ") for origin in origins]
    named = dict.fromkeys(request_id for request_id, _, _ in parts if request_id)
    token = _request_id.set(",".join(islice(named, _MOST_REQUEST_IDS)))
    try:
        with tracing.following(name, *(parent for _, _, parent in parts), **attributes):
            yield
    finally:
        _request_id.reset(token)


def identify(who: Caller) -> None:
    """Records who calls, once that is known."""
    _caller.set(who)


@contextmanager
def deadline_in(seconds: float | None) -> Iterator[None]:
    """Bounds the calls made inside to so many seconds from now; None lifts the bound."""
    at = None if seconds is None else asyncio.get_running_loop().time() + seconds
    before = _deadline.get()
    _deadline.set(at)
    try:
        yield
    finally:
        # No reset(): a stream that its client has left is closed by a task of another context.
        _deadline.set(before)
