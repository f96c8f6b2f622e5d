"""The call that is being served: its caller and its idempotency key, as context variables.

The interceptor sets them; servicers read them.
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
# A list that tasks of the call share; not empty once its answer is a stored one.
_replays: ContextVar[list[bool] | None] = ContextVar("replays", default=None)


@dataclass(frozen=True, slots=True)
class Caller:
    """The calling process, from its certificate, and the user, from a verified token.

    `role` is Access.CUSTOMER, STAFF or ADMIN. `user_id`, `role` and `session_id` are None without
    a token; with an API key `user_id` is the key's id and `session_id` is None. Revoking a user's tokens raises `token_version` (mesh/rpc/revocations.py). `address` is
    the client's as the gateway saw it, for IPv6 the /64 network; empty without the gateway.
    """

    process: str
    user_id: UUID | None = None
    role: Access | None = None
    session_id: UUID | None = None
    token_version: int = 0
    address: str = ""
    must_verify_email: bool = False

    @property
    def is_staff(self) -> bool:
        return self.role in (Access.STAFF, Access.ADMIN)

    @property
    def customer_id(self) -> UUID | None:
        """The signed-in customer; None for staff and without a token."""
        return self.user_id if self.role is Access.CUSTOMER else None

    def user(self) -> UUID:
        """The signed-in user. Raises TOKEN_INVALID without one."""
        if self.user_id is None:
            raise DomainError(Reason.TOKEN_INVALID, "an access token is required")
        return self.user_id

    def session(self) -> UUID:
        """The session of the token. Raises TOKEN_INVALID without one."""
        if self.session_id is None:
            raise DomainError(Reason.TOKEN_INVALID, "an access token is required")
        return self.session_id

    @property
    def owner_scope(self) -> UUID | None:
        """The user whose records the caller may read; None for all records.

        Staff, and services that call without a user, may read all.
        """
        return None if self.is_staff or self.user_id is None else self.user_id


def caller() -> Caller:
    """The caller of the call that is being served."""
    current = _caller.get()
    if current is None:
        raise LookupError("no call is being served")
    return current


def idempotency_key() -> str | None:
    """The idempotency key that the client sent; not None when the policy requires one."""
    return _idempotency_key.get()


def mark_replayed() -> None:
    """Notes that the answer of this call is the stored one of an earlier call with the key."""
    replays = _replays.get()
    if replays is not None:
        replays.append(True)


def is_replayed() -> bool:
    return bool(_replays.get())


def begin(*, request_id: str, idempotency_key: str | None) -> None:
    """Sets the context of the current task, which serves one call."""
    request_context.begin(request_id)
    _idempotency_key.set(idempotency_key)
    _replays.set([])


def running() -> int:
    """The number of calls that this process is serving, without streams."""
    return _running


def count(change: int) -> None:
    """Adds to the number of running calls."""
    global _running  # noqa: PLW0603 - one count per process
    _running += change


@contextmanager
def counted() -> Iterator[None]:
    """Counts the block as a running call."""
    count(1)
    try:
        yield
    finally:
        count(-1)


def identify(authenticated: Caller) -> None:
    """Sets the caller of the current call."""
    _caller.set(authenticated)
