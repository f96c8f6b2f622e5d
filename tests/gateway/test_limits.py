"""Rate limits in the real Envoy, scaled to a tenth of the contract's."""

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import httpx
import pytest
from google.rpc import error_details_pb2
from grpc_status import rpc_status

from testing import gateway_harness
from testing.gateway_harness import Gateway, bearer, token

PLACE = "/boxoffice.bookings.v1.BookingService/PlaceBooking"
LIST = "/boxoffice.bookings.v1.BookingService/ListBookings"


@pytest.fixture(scope="module")
def limited(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """Per user: 10 calls, 1 booking. Per address: 10 calls, 600 webhooks."""
    folder: Path = tmp_path_factory.mktemp("limited")
    with gateway_harness.running_gateway(folder, rate_limit_scale=0.1) as gateway:
        yield gateway


def user(number: int) -> dict[str, str]:
    return bearer(token(sub=f"0192aaaa-0000-7000-8000-{number:012}"))


def until_refused(call: Callable[[], httpx.Response]) -> list[int]:
    """Repeats a call until it is refused with 429; returns the statuses before.

    The number of admitted calls depends on the machine: buckets refill while they are made.
    """
    statuses: list[int] = []
    while (status := call().status_code) != 429:
        statuses.append(status)
        assert len(statuses) < 20_000, "no call was refused"
    return statuses


def test_a_users_second_booking_in_six_seconds_is_refused(limited: Gateway) -> None:
    first, second = (
        limited.rest.post("/api/v1/bookings", json={}, headers=user(1)) for _ in range(2)
    )
    assert first.status_code == 201
    assert first.headers["x-ratelimit-limit"] == "1"
    assert second.status_code == 429
    assert len(limited.upstream.calls) == 1
    limited.upstream.calls.clear()
    retry_after = int(second.headers["retry-after"])
    assert 0 < retry_after <= 60
    body = second.json()
    assert body["code"] == 8
    assert [detail["@type"].rpartition(".")[2] for detail in body["details"]] == [
        "ErrorInfo",
        "RetryInfo",
    ]
    assert body["message"] == f"too many calls. Try again in {retry_after} seconds."
    assert body["details"][0]["reason"] == "RATE_LIMITED"
    assert body["details"][1]["retryDelay"] == f"{retry_after}s"
    assert second.headers["x-ratelimit-remaining"] == "0"


def test_grpc_and_rest_share_buckets(limited: Gateway) -> None:
    headers = user(2)
    assert limited.rest.post("/api/v1/bookings", json={}, headers=headers).status_code == 201
    with pytest.raises(grpc.RpcError) as failure:
        limited.unary(PLACE, metadata=headers)
    assert failure.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
    trailers = failure.value.trailing_metadata()
    [seconds] = [entry[1] for entry in trailers if entry[0] == "retry-after"]  # type: ignore[index]
    # Raises ValueError unless the details have the same message.
    status = rpc_status.from_call(failure.value)  # type: ignore[arg-type]
    assert status is not None
    assert status.message == f"too many calls. Try again in {seconds} seconds."
    info, delay = error_details_pb2.ErrorInfo(), error_details_pb2.RetryInfo()
    assert status.details[0].Unpack(info)
    assert info.reason == "RATE_LIMITED"
    assert status.details[1].Unpack(delay)
    assert delay.retry_delay.seconds == int(seconds)


def test_users_do_not_share_buckets(limited: Gateway) -> None:
    for number in range(10, 15):
        answer = limited.rest.post("/api/v1/bookings", json={}, headers=user(number))
        assert answer.status_code == 201


def test_all_methods_share_the_common_bucket_of_a_user(limited: Gateway) -> None:
    headers = user(3)
    paths = itertools.cycle(("/api/v1/bookings", "/api/v1/auth/me"))
    admitted = until_refused(lambda: limited.rest.get(next(paths), headers=headers))
    # On a slow machine also those from a refill.
    assert len(admitted) >= 10
    assert set(admitted) == {200}
    with pytest.raises(grpc.RpcError) as failure:
        limited.unary(LIST, metadata=headers)
    assert failure.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_rate_limit_fields_are_true_at_every_count(limited: Gateway) -> None:
    """The bucket holds 10 and gets one in 6 s: it is full again 6 s later per missing request."""
    refusals = 0
    while refusals < 2:
        answer = limited.rest.get("/api/v1/bookings", headers=user(7))
        refusals += answer.status_code == 429
        remaining = int(answer.headers["ratelimit-remaining"])
        assert int(answer.headers["ratelimit-reset"]) == (10 - remaining) * 6
        assert answer.headers["ratelimit"] == f'"common";r={remaining};t={(10 - remaining) * 6}'
        assert answer.headers["ratelimit-policy"] == '"common";q=10;w=60'
    limited.upstream.calls.clear()


def test_rate_limit_fields_name_the_bucket_with_the_fewest_requests(limited: Gateway) -> None:
    answer = limited.rest.post("/api/v1/bookings", json={}, headers=user(8))
    assert answer.headers["ratelimit"] == '"PlaceBooking";r=0;t=60'
    assert answer.headers["ratelimit-policy"] == '"common";q=10;w=60, "PlaceBooking";q=1;w=60'
    limited.upstream.calls.clear()


def test_public_methods_are_limited_per_address(limited: Gateway) -> None:
    admitted = until_refused(lambda: limited.rest.get("/api/v1/events/e1"))
    assert len(admitted) >= 10
    assert set(admitted) == {200}
    # A token does not bypass the limit per address; the user's own bucket is unaffected.
    assert limited.rest.get("/api/v1/events/e1", headers=user(4)).status_code == 429
    assert limited.rest.get("/api/v1/bookings", headers=user(4)).status_code == 200


def test_the_common_limit_does_not_apply_to_webhooks_and_probes(limited: Gateway) -> None:
    for _ in range(15):
        assert limited.rest.post("/webhooks/stripe", content=b"x").status_code == 200
        health = limited.rest.get("/health")
        assert health.status_code == 200
        assert "x-ratelimit-limit" not in health.headers


def test_a_flood_reaches_the_per_ip_ceiling(limited: Gateway) -> None:
    """Must run last: it empties the ceiling's bucket of 1,200 for this address."""
    admitted = until_refused(lambda: limited.rest.get("/nothing"))
    # Calls of the tests before have taken from the bucket, too.
    assert len(admitted) >= 1_000
    assert set(admitted) == {404}
    # The bucket refills by one per 50 ms, so no single request is certain to be refused.
    assert set(until_refused(lambda: limited.rest.get("/health"))) <= {200}
