"""The call that is being served: the caller and the idempotency key.

Set once by the server's interceptor and read from anywhere below it, so that a log
line or an outgoing call needs nothing handed through.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from uuid import UUID

from mesh.errors import DomainError, Reason
from mesh.observability import request_context
from mesh.rpc.policy import Access

_running = 0
_caller: ContextVar["Caller | None"] = ContextVar("caller", default=None)
_idempotency_key: ContextVar[str | None] = ContextVar("idempotency_key", default=None)


@dataclass(frozen=True, slots=True)
class Caller:
    """Who calls: the process by its certificate, and the user by a verified token, if any.

    `role` is Access.CUSTOMER, STAFF or ADMIN; `session_id` says by which of the user's
    sessions they are signed in. All three are None without a user. `token_version` grows
    whenever the tokens of before are revoked (mesh/rpc/revocations.py).
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


def idempotency_key() -> str | None:
    """The key that the client sent, if any; present when the policy requires it."""
    return _idempotency_key.get()


def begin(*, request_id: str, idempotency_key: str | None) -> None:
    """Marks the current task as serving a call. The task ends with the call."""
    request_context.begin(request_id)
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


def identify(who: Caller) -> None:
    """Records who calls, once that is known."""
    _caller.set(who)
