"""Revoked access tokens that have not expired yet, kept in memory by each service.

auth_svc streams revocations. A service that lost the stream uses the ones it knows and reports
its lag.
"""

import asyncio
import heapq
import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from uuid import UUID

import grpc

from boxoffice.auth.v1 import auth_event_service_pb2 as stream_pb2
from boxoffice.auth.v1.auth_event_service_pb2_grpc import AuthEventServiceStub
from mesh.clock import Clock, system_clock
from mesh.errors import DomainError, Reason
from mesh.observability import metrics
from mesh.rpc.call import Caller

MAX_ENTRIES = 1_000_000
"""About 300 MB. Beyond it the entries that expire first are dropped, with an error in the log."""

_RETRY_SECONDS = 1.0
# Heartbeats come every few seconds; a stream that is silent for this long is broken.
_SILENCE_SECONDS = 30.0
_LAG_WARNING = timedelta(seconds=30)

_log = logging.getLogger(__name__)

Stream = Callable[[], AsyncIterator[stream_pb2.StreamRevocationsResponse]]
"""Opens a stream: first all current revocations, then new ones."""


@dataclass(frozen=True, slots=True)
class _Floor:
    """A user's lowest valid token versions: of all sessions, and of all except `kept_session`."""

    version: int
    others_version: int
    kept_session: UUID | None
    until: datetime

    def refuses(self, *, version: int, session_id: UUID | None) -> bool:
        if version < self.version:
            return True
        return version < self.others_version and session_id != self.kept_session


class Revocations:
    """The revocations known to this process; `follow` updates them."""

    def __init__(self, stream: Stream, *, clock: Clock = system_clock) -> None:
        self._stream = stream
        self._clock = clock
        self._sessions: dict[UUID, datetime] = {}
        self._users: dict[UUID, _Floor] = {}
        self._ends: list[tuple[datetime, UUID]] = []
        self._as_of: datetime | None = None
        self._started = clock()
        self._warned = self._started
        _measure_lag(self)
        _measure_entries(self)

    def __len__(self) -> int:
        """The number of entries."""
        return len(self._sessions) + len(self._users)

    @property
    def lag_seconds(self) -> float:
        """Age of the latest update: all revocations older than this are known."""
        return max(0.0, (self._clock() - (self._as_of or self._started)).total_seconds())

    def check(self, caller: Caller) -> None:
        """Raises TOKEN_INVALID when the caller's token was revoked."""
        if caller.user_id is None:
            return
        now = self._clock()
        until = self._sessions.get(caller.session_id) if caller.session_id is not None else None
        floor = self._users.get(caller.user_id)
        if (until is not None and now < until) or (
            floor is not None
            and now < floor.until
            and floor.refuses(version=caller.token_version, session_id=caller.session_id)
        ):
            raise DomainError(Reason.TOKEN_INVALID, "the token was revoked; sign in again")

    async def follow(self) -> None:
        """Applies the stream until cancelled; opens it again when it breaks."""
        while True:
            try:
                await self._follow_once()
            except (grpc.aio.AioRpcError, TimeoutError) as error:
                _log.info("the stream of revocations broke", extra={"error": type(error).__name__})
            self._warn_when_behind()
            await asyncio.sleep(_RETRY_SECONDS)

    def apply(self, response: stream_pb2.StreamRevocationsResponse) -> None:
        """Adds the revocations of a message and drops expired entries."""
        for revocation in response.revocations:
            kind = revocation.WhichOneof("revocation")
            if kind == "session_revoked":
                self._add_session(revocation.session_revoked)
            elif kind == "access_revoked":
                self._add_user(revocation.access_revoked)
        if response.HasField("as_of"):
            self._as_of = response.as_of.ToDatetime(UTC)
        self._drop_expired(now=self._clock())

    async def _follow_once(self) -> None:
        messages = self._stream()
        while True:
            try:
                async with asyncio.timeout(_SILENCE_SECONDS):
                    message = await anext(messages)
            except StopAsyncIteration:
                return
            self.apply(message)

    def _add_session(self, revoked: stream_pb2.SessionRevoked) -> None:
        session_id, until = UUID(revoked.session_id), revoked.until.ToDatetime(UTC)
        if self._sessions.get(session_id) != until:
            self._sessions[session_id] = until
            heapq.heappush(self._ends, (until, session_id))

    def _add_user(self, revoked: stream_pb2.AccessRevoked) -> None:
        user_id, until = UUID(revoked.user_id), revoked.until.ToDatetime(UTC)
        known = self._users.get(user_id) or _Floor(0, 0, None, until)
        until = max(until, known.until)
        if not revoked.kept_session_id:
            floor = _Floor(
                max(known.version, revoked.min_version),
                known.others_version,
                known.kept_session,
                until,
            )
        elif revoked.min_version > known.others_version:
            # Forgetting the previous kept session is safe: the session kept now was created
            # after the previous revocation or kept by it, so none of its tokens are older.
            floor = _Floor(known.version, revoked.min_version, UUID(revoked.kept_session_id), until)
        else:
            floor = known
        if floor != self._users.get(user_id):
            self._users[user_id] = floor
            heapq.heappush(self._ends, (until, user_id))

    def _drop_expired(self, *, now: datetime) -> None:
        dropped = 0
        while self._ends and (self._ends[0][0] <= now or len(self) > MAX_ENTRIES):
            until, key = heapq.heappop(self._ends)
            dropped += until > now
            # An entry that was extended meanwhile has a later end in the heap.
            if self._sessions.get(key) == until:
                del self._sessions[key]
            floor = self._users.get(key)
            if floor is not None and floor.until == until:
                del self._users[key]
        if dropped:
            _log.error("too many revocations: some were dropped", extra={"dropped": dropped})

    def _warn_when_behind(self) -> None:
        now = self._clock()
        if self.lag_seconds > _LAG_WARNING.total_seconds() and now - self._warned > _LAG_WARNING:
            self._warned = now
            _log.warning(
                "revocations are behind: revoked tokens may still be accepted",
                extra={"lag_seconds": round(self.lag_seconds, 1)},
            )


def _lag(revocations: Revocations) -> list[tuple[str, float]]:
    return [("auth_svc", revocations.lag_seconds)]


def _size(revocations: Revocations) -> list[tuple[str, float]]:
    return [("auth_svc", float(len(revocations)))]


_measure_lag = metrics.measured(
    "revocations_lag_seconds",
    "Age of the latest update of revocations; tokens revoked since may still be accepted.",
    _lag,
    label="stream",
)
_measure_entries = metrics.measured(
    "revocations_entries",
    "Revoked sessions and users in this process's memory.",
    _size,
    label="stream",
)


def from_auth(stub: AuthEventServiceStub) -> Stream:
    """Opens auth_svc's stream, for the other services."""

    async def messages() -> AsyncIterator[stream_pb2.StreamRevocationsResponse]:
        stream = stub.StreamRevocations(
            stream_pb2.StreamRevocationsRequest(),
            # Waits until auth_svc is reachable; no call waits for this stream.
            wait_for_ready=True,
        )
        async for message in stream:
            yield message

    return messages
