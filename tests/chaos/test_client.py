"""The demo's client retries retryable calls with the same key, and no others."""

import random
from collections.abc import Callable

import httpx
import pytest

from chaos.client import Api, Json, RefusedError, UnansweredError

Answer = Callable[[httpx.Request], httpx.Response]


def an_error(status: int, reason: str, **headers: str) -> httpx.Response:
    info = {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason}
    return httpx.Response(
        status, json={"code": 10, "message": "no", "details": [info]}, headers=headers
    )


def lost(_: httpx.Request) -> httpx.Response:
    raise httpx.ReadError("the connection broke")


class Server:
    """Returns the answers in order and records the requests."""

    def __init__(self, *answers: httpx.Response | Answer) -> None:
        self.requests: list[httpx.Request] = []
        self._answers = list(answers)

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self._answers.pop(0)
        return answer if isinstance(answer, httpx.Response) else answer(request)


async def place(server: Server, deadline_seconds: float = 10) -> tuple[Json, Api]:
    transport = httpx.MockTransport(server)
    async with Api(
        "http://mesh", connections=2, transport=transport, randomness=random.Random(1)
    ) as api:
        body = {"eventId": "e"}
        answer = await api.call(
            "POST",
            "/api/v1/bookings",
            body=body,
            key="k",
            label="place",
            deadline_seconds=deadline_seconds,
        )
        return answer, api


@pytest.mark.parametrize(
    ("trouble", "cause"),
    [
        (an_error(503, "DEPENDENCY_UNAVAILABLE"), "503 DEPENDENCY_UNAVAILABLE"),
        (an_error(504, "DEADLINE_EXCEEDED"), "504 DEADLINE_EXCEEDED"),
        (an_error(429, "RATE_LIMITED"), "429 RATE_LIMITED"),
        (an_error(409, "IDEMPOTENCY_IN_PROGRESS"), "409 IDEMPOTENCY_IN_PROGRESS"),
        (lost, "connection lost"),
    ],
)
async def test_it_retries_with_the_same_key(trouble: httpx.Response | Answer, cause: str) -> None:
    server = Server(trouble, httpx.Response(201, json={"bookingId": "b"}))
    answer, api = await place(server)
    assert answer == {"bookingId": "b"}
    assert [request.headers["idempotency-key"] for request in server.requests] == ["k", "k"]
    assert server.requests[0].content == server.requests[1].content
    assert dict(api.tally.retries) == {cause: 1}
    assert len(api.tally.seconds["place"]) == 1


@pytest.mark.parametrize("reason", ["SOLD_OUT", "SEAT_UNAVAILABLE", "IDEMPOTENCY_KEY_REUSED"])
async def test_a_refusal_is_not_repeated(reason: str) -> None:
    server = Server(an_error(409, reason))
    with pytest.raises(RefusedError) as refusal:
        await place(server)
    assert refusal.value.reason == reason
    assert refusal.value.is_first
    assert len(server.requests) == 1


async def test_a_refusal_after_a_lost_answer_is_not_the_first() -> None:
    with pytest.raises(RefusedError) as refusal:
        await place(Server(lost, an_error(409, "HOLD_EXPIRED")))
    assert not refusal.value.is_first


async def test_it_stops_when_the_retry_delay_exceeds_the_deadline() -> None:
    server = Server(an_error(429, "RATE_LIMITED", **{"retry-after": "30"}))
    with pytest.raises(UnansweredError, match="429 RATE_LIMITED"):
        await place(server, deadline_seconds=1)
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "answer", [an_error(500, "INTERNAL"), httpx.Response(201, content=b"no JSON")]
)
async def test_an_answer_that_is_neither_success_nor_refusal(answer: httpx.Response) -> None:
    with pytest.raises(UnansweredError):
        await place(Server(answer))


async def test_an_error_without_a_reason_is_counted() -> None:
    plain = httpx.Response(503, text="upstream connect error")
    _, api = await place(Server(plain, httpx.Response(201, json={"bookingId": "b"})))
    assert dict(api.tally.oddities) == {"POST /api/v1/bookings: 503 'upstream connect error'": 1}
