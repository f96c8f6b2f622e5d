"""The revocations of a service: which tokens it refuses, when entries expire, a broken stream."""

import asyncio
import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import grpc
import pytest

from boxoffice.auth.v1 import auth_event_service_pb2 as stream_pb2
from boxoffice.auth.v1.auth_event_service_pb2_grpc import AuthEventServiceStub
from mesh.errors import DomainError
from mesh.rpc import revocations
from mesh.rpc.call import Caller
from mesh.rpc.policy import Access
from mesh.rpc.revocations import Revocations, from_auth
from testing.network import (
    Context,
    Network,
    a_service,
    call,
    empty_request,
    reason_of,
    refusal,
    standing_in,
)
from testing.tokens import TokenKey, a_payload

NOW = datetime(2026, 3, 1, 12, tzinfo=UTC)
LIFE = timedelta(minutes=15)
LIST_MOVEMENTS = "/boxoffice.stock.v1.StockService/ListMovements"

MIRA, TAB, PHONE = uuid4(), uuid4(), uuid4()


class MovedClock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> datetime:
        return self.now


def a_caller(session_id: UUID = TAB, *, user_id: UUID = MIRA, version: int = 0) -> Caller:
    return Caller("gateway", user_id, Access.CUSTOMER, session_id, token_version=version)


def session_revoked(session_id: UUID, *, until: datetime = NOW + LIFE) -> stream_pb2.Revocation:
    revoked = stream_pb2.SessionRevoked(session_id=str(session_id), user_id=str(MIRA))
    revoked.until.FromDatetime(until)
    return stream_pb2.Revocation(session_revoked=revoked)


def access_revoked(
    min_version: int, *, kept: UUID | None = None, until: datetime = NOW + LIFE
) -> stream_pb2.Revocation:
    revoked = stream_pb2.AccessRevoked(
        user_id=str(MIRA), min_version=min_version, kept_session_id=str(kept or "")
    )
    revoked.until.FromDatetime(until)
    return stream_pb2.Revocation(access_revoked=revoked)


def update(*revoked: stream_pb2.Revocation) -> stream_pb2.StreamRevocationsResponse:
    return stream_pb2.StreamRevocationsResponse(revocations=revoked)


async def silence() -> AsyncIterator[stream_pb2.StreamRevocationsResponse]:
    await asyncio.Event().wait()
    yield update()


def a_list(clock: MovedClock, *revoked: stream_pb2.Revocation) -> Revocations:
    made = Revocations(silence, clock=clock)
    made.apply(update(*revoked))
    return made


def refuses(known: Revocations, caller: Caller) -> bool:
    try:
        known.check(caller)
    except DomainError as error:
        return error.reason == "TOKEN_INVALID"
    return False


def test_a_session_is_refused_and_others_are_not() -> None:
    known = a_list(MovedClock(), session_revoked(TAB))
    assert refuses(known, a_caller(TAB, version=9))
    assert not refuses(known, a_caller(PHONE))
    assert not refuses(known, Caller("booking_svc"))


def test_older_tokens_of_a_user_are_refused_and_the_next_is_not() -> None:
    known = a_list(MovedClock(), access_revoked(2))
    assert refuses(known, a_caller(version=1))
    assert not refuses(known, a_caller(version=2))
    assert not refuses(known, a_caller(user_id=uuid4(), version=0))


def test_one_session_may_be_kept() -> None:
    known = a_list(MovedClock(), access_revoked(2, kept=TAB))
    assert not refuses(known, a_caller(TAB, version=1))
    assert refuses(known, a_caller(PHONE, version=1))


@pytest.mark.parametrize("replayed", [False, True])
def test_a_session_is_kept_only_by_its_own_revocation(replayed: bool) -> None:
    """The user changes the password in TAB, revokes all sessions, then changes it in PHONE."""
    steps = [access_revoked(1, kept=TAB), access_revoked(2), access_revoked(3, kept=PHONE)]
    known = a_list(MovedClock(), *steps)
    if replayed:
        known.apply(update(*steps))
    assert refuses(known, a_caller(TAB, version=0))
    assert refuses(known, a_caller(TAB, version=2))
    assert not refuses(known, a_caller(PHONE, version=2))
    assert refuses(known, a_caller(PHONE, version=1))
    assert not refuses(known, a_caller(TAB, version=3))


def test_entries_expire_with_the_tokens() -> None:
    clock = MovedClock()
    known = a_list(clock, session_revoked(TAB), access_revoked(1), session_revoked(TAB))
    later = NOW + LIFE + timedelta(minutes=1)
    known.apply(update(access_revoked(2, until=later)))
    assert len(known) == 2
    clock.now = NOW + LIFE
    known.apply(update())
    # The session's entry has expired; the user's was extended.
    assert len(known) == 1
    assert not refuses(known, a_caller(TAB, version=2))
    assert refuses(known, a_caller(TAB, version=1))
    clock.now = later
    known.apply(update())
    assert len(known) == 0


def test_entries_beyond_the_limit_are_dropped(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(revocations, "MAX_ENTRIES", 3)
    sessions = [uuid4() for _ in range(5)]
    ends = [NOW + LIFE + timedelta(seconds=n) for n in range(5)]
    known = a_list(
        MovedClock(),
        *(session_revoked(session, until=end) for session, end in zip(sessions, ends, strict=True)),
    )
    refused = [refuses(known, a_caller(session)) for session in sessions]
    assert refused == [False, False, True, True, True]
    assert [record.message for record in caplog.records] == [
        "too many revocations: some were dropped"
    ]


async def test_a_broken_stream_is_opened_again_and_entries_are_kept(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = MovedClock()
    opened = 0

    async def breaks() -> AsyncIterator[stream_pb2.StreamRevocationsResponse]:
        nonlocal opened
        opened += 1
        yield update(session_revoked(TAB if opened == 1 else PHONE))
        clock.now += timedelta(seconds=45)
        raise grpc.aio.AioRpcError(
            grpc.StatusCode.UNAVAILABLE, grpc.aio.Metadata(), grpc.aio.Metadata()
        )

    known = Revocations(breaks, clock=clock)
    following = asyncio.create_task(known.follow())
    try:
        async with asyncio.timeout(60):
            while not refuses(known, a_caller(PHONE)):
                await asyncio.sleep(0.01)
    finally:
        following.cancel()
    assert refuses(known, a_caller(TAB))
    assert known.lag_seconds >= 45
    with caplog.at_level(logging.WARNING):
        assert any("behind" in record.message for record in caplog.records)


def test_an_update_ends_the_lag() -> None:
    clock = MovedClock()
    known = a_list(clock)
    clock.now += timedelta(seconds=50)
    assert known.lag_seconds == 50
    pulse = stream_pb2.StreamRevocationsResponse()
    pulse.as_of.FromDatetime(clock.now - timedelta(seconds=2))
    known.apply(pulse)
    assert known.lag_seconds == 2


async def test_a_service_refuses_what_auth_revoked(network: Network, key: TokenKey) -> None:
    """One process streams, another serves; until the update arrives the token is accepted."""
    published = asyncio.Event()
    # The serving process uses the real clock.
    revoked = session_revoked(TAB, until=datetime.now(UTC) + LIFE)

    async def stream(_: object, context: Context) -> AsyncIterator[object]:
        yield update()
        await published.wait()
        yield update(revoked)
        await asyncio.Event().wait()

    auth = a_service(standing_in("boxoffice.auth.v1.AuthEventService", StreamRevocations=stream))
    async with (
        network.serve("auth_svc", auth) as auth_port,
        network.plain_channel("stock_svc", "auth_svc", auth_port) as to_auth,
    ):
        known = Revocations(from_auth(AuthEventServiceStub(to_auth)))
        following = asyncio.create_task(known.follow())
        stock = a_service(
            standing_in("boxoffice.stock.v1.StockService"), jwks=key.jwks, revocations=known
        )
        async with (
            network.serve("stock_svc", stock) as port,
            network.plain_channel("operator", "stock_svc", port) as channel,
        ):
            signed = key.sign(a_payload(sid=str(TAB), role="STAFF"))
            bearer = [("authorization", f"Bearer {signed}")]
            request = empty_request(LIST_MOVEMENTS)

            async def outcome() -> str:
                error = await refusal(call(channel, LIST_MOVEMENTS, request, metadata=bearer))
                return reason_of(error)

            # An empty request fails validation, but only after the token was accepted.
            assert await outcome() == "VALIDATION_FAILED"
            published.set()
            async with asyncio.timeout(60):
                while await outcome() != "TOKEN_INVALID":
                    await asyncio.sleep(0.01)
        following.cancel()
        await asyncio.gather(following, return_exceptions=True)
