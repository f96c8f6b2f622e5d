"""The request that work belongs to: its id and trace, for logs, traces and later work."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import islice

from mesh.observability import tracing

REQUEST_ID_HEADER = "x-request-id"

MAX_REQUEST_ID_LENGTH = 1024
"""Room for the ids of a batch; the gateway's own are UUIDs."""

# A UUID and a comma each.
_MOST_REQUEST_IDS = MAX_REQUEST_ID_LENGTH // 37

_request_id: ContextVar[str] = ContextVar("request_id", default="")


def request_id() -> str:
    """Id of the request at the gateway, the same in all services; empty outside of a call."""
    return _request_id.get()


def begin(request_id: str) -> None:
    """Sets the request of the current task."""
    _request_id.set(request_id)


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
