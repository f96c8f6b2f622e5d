"""Access tokens that do not hold any more although they have not expired.

auth_svc streams what was revoked; each service keeps it in memory, for as long as the
tokens would live, and refuses them without asking anybody. A service that has lost the
stream goes on with what it knows, and says how far behind it is.
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
"""About 300 MB. Beyond it the entries that end first are forgotten, and the log says so."""

_RETRY_SECONDS = 1.0
# Heartbeats come every few seconds; a stream that is silent for longer is dead.
_SILENCE_SECONDS = 30.0
_LAG_WARNING = timedelta(seconds=30)

_log = logging.getLogger(__name__)

Stream = Callable[[], AsyncIterator[stream_pb2.StreamRevocationsResponse]]
"""Opens a stream of revocations: those in force, then those that happen."""


@dataclass(frozen=True, slots=True)
class _Floor:
    """The least token version of a user that holds: for all sessions, and for all but one."""

    version: int
    others_version: int
    kept_session: UUID | None
    until: datetime

    def refuses(self, *, version: int, session_id: UUID | None) -> bool:
        if version < self.version:
            return True
        return version < self.others_version and session_id != self.kept_session


class Revocations:
    """The list of one process. `follow` feeds it for as long as the process runs."""

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
        """Entries in memory."""
        return len(self._sessions) + len(self._users)

    @property
    def lag_seconds(self) -> float:
        """How old the news is: everything that was revoked longer ago is known."""
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
            raise DomainError(Reason.TOKEN_INVALID, "this token was revoked; sign in again")

    async def follow(self) -> None:
        """Keeps the list up to date until cancelled, over every loss of the stream."""
        while True:
            try:
                await self._follow_once()
            except (grpc.aio.AioRpcError, TimeoutError) as error:
                _log.info("revocations interrupted", extra={"error": type(error).__name__})
            self._warn_when_behind()
            await asyncio.sleep(_RETRY_SECONDS)

    def take(self, response: stream_pb2.StreamRevocationsResponse) -> None:
        """Adds what a message says, and forgets what no token could use any more."""
        for revocation in response.revocations:
            kind = revocation.WhichOneof("revocation")
            if kind == "session_revoked":
                self._add_session(revocation.session_revoked)
            elif kind == "access_revoked":
                self._add_user(revocation.access_revoked)
        if response.HasField("as_of"):
            self._as_of = response.as_of.ToDatetime(UTC)
        self._forget(now=self._clock())

    async def _follow_once(self) -> None:
        messages = self._stream()
        while True:
            try:
                async with asyncio.timeout(_SILENCE_SECONDS):
                    message = await anext(messages)
            except StopAsyncIteration:
                return
            self.take(message)

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
            # Of a session that was kept before, only a token that is no older than the
            # change which ended it could have made this one.
            floor = _Floor(known.version, revoked.min_version, UUID(revoked.kept_session_id), until)
        else:
            floor = known
        if floor != self._users.get(user_id):
            self._users[user_id] = floor
            heapq.heappush(self._ends, (until, user_id))

    def _forget(self, *, now: datetime) -> None:
        dropped = 0
        while self._ends and (self._ends[0][0] <= now or len(self) > MAX_ENTRIES):
            until, key = heapq.heappop(self._ends)
            dropped += until > now
            # The entry may have been prolonged since: then a later end is in the heap.
            if self._sessions.get(key) == until:
                del self._sessions[key]
            floor = self._users.get(key)
            if floor is not None and floor.until == until:
                del self._users[key]
        if dropped:
            _log.error("too many revocations: some were forgotten", extra={"dropped": dropped})

    def _warn_when_behind(self) -> None:
        now = self._clock()
        if self.lag_seconds > _LAG_WARNING.total_seconds() and now - self._warned > _LAG_WARNING:
            self._warned = now
            _log.warning(
                "revocations are behind: ended sessions may still be let in",
                extra={"lag_seconds": round(self.lag_seconds, 1)},
            )


def _lag(known: Revocations) -> list[tuple[str, float]]:
    return [("auth_svc", known.lag_seconds)]


def _size(known: Revocations) -> list[tuple[str, float]]:
    return [("auth_svc", float(len(known)))]


_measure_lag = metrics.measured(
    "revocations_lag_seconds",
    "Age of the news about revoked tokens; what was revoked since may still be let in.",
    _lag,
    label="stream",
)
_measure_entries = metrics.measured(
    "revocations_entries",
    "Revoked sessions and users that this process remembers.",
    _size,
    label="stream",
)


def from_auth(stub: AuthEventServiceStub) -> Stream:
    """The stream of auth_svc, for the other services."""

    async def messages() -> AsyncIterator[stream_pb2.StreamRevocationsResponse]:
        stream = stub.StreamRevocations(
            stream_pb2.StreamRevocationsRequest(),
            # Waits for an auth_svc that is away; nobody waits for this stream.
            wait_for_ready=True,
        )
        async for message in stream:
            yield message

    return messages
