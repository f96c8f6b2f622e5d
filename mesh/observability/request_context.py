"""The request id and trace of the current work, for logs, traces and later background work."""

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from itertools import islice

from mesh.observability import tracing

REQUEST_ID_HEADER = "x-request-id"

MAX_REQUEST_ID_LENGTH = 1024
"""The header carries one id, or those of a batch's requests, separated by commas."""

# A UUID and a comma for each request.
_MAX_REQUEST_IDS = MAX_REQUEST_ID_LENGTH // 37

_request_id: ContextVar[str] = ContextVar("request_id", default="")


def request_id() -> str:
    """The request's id from the gateway, the same in all services; empty outside of a call."""
    return _request_id.get()


def begin(request_id: str) -> None:
    """Sets the request id of the current task."""
    _request_id.set(request_id)


def origin() -> str:
    """Request id and trace of the current work as text, to store with background work.

    Both may be empty.
    """
    return f"{_request_id.get()} {tracing.parent()}"


@contextmanager
def resuming(name: str, *origins: str, **attributes: str) -> Iterator[None]:
    """Runs background work under the request ids and traces of the calls that caused it.

    Logs name the first 27 requests; the span belongs to the first trace and links to all.
    """
    parts = [origin.partition(" ") for origin in origins]
    request_ids = dict.fromkeys(request_id for request_id, _, _ in parts if request_id)
    token = _request_id.set(",".join(islice(request_ids, _MAX_REQUEST_IDS)))
    try:
        with tracing.following(name, *(parent for _, _, parent in parts), **attributes):
            yield
    finally:
        _request_id.reset(token)
