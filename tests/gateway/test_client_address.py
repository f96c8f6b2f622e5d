"""Whose call it is: behind balancers, with the PROXY protocol, and for IPv6."""

from collections.abc import Iterator

import httpx
import pytest

from mesh.rpc.identity import ADDRESS_HEADER
from testing import gateway_harness
from testing.gateway_harness import Gateway, policy_in

LOGIN = "/boxoffice.auth.v1.AuthService/Login"
JOIN = "/boxoffice.queueing.v1.QueueService/JoinQueue"
BALANCER, CLIENT = "127.0.0.1", "203.0.113.9"
DAY_SECONDS = 86_400


@pytest.fixture(scope="module")
def behind(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    """A gateway that trusts 127.0.0.1, with one sign-in a day per address, and two joins a day per
    address and three per network."""
    files = gateway_harness.contract()
    joins = policy_in(files, JOIN).limits
    for limit, requests in zip(joins, (2, 3), strict=True):
        limit.requests, limit.window.seconds = requests, DAY_SECONDS
    [limit] = policy_in(files, LOGIN).limits
    limit.requests, limit.window.seconds = 1, DAY_SECONDS
    with gateway_harness.running_gateway(
        tmp_path_factory.mktemp("behind"),
        files=files,
        rate_limit_scale=1,
        trusted_proxies=f"{BALANCER}/32, 2001:db8:ffff::/48",
        proxy_protocol=True,
    ) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def direct(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with gateway_harness.running_gateway(tmp_path_factory.mktemp("direct")) as gateway:
        yield gateway


def seen_by(gateway: Gateway, forwarded: str, *, peer: str = BALANCER, **headers: str) -> str:
    """The address that a service learns."""
    transport = httpx.HTTPTransport(local_address=peer)
    with httpx.Client(base_url=gateway.settings.gateway_url, transport=transport) as client:
        sent = {"x-forwarded-for": forwarded, **headers} if forwarded else headers
        assert client.get("/api/v1/events/e1", headers=sent, timeout=60).status_code == 200
    return gateway.upstream.calls.pop().metadata[ADDRESS_HEADER]


def test_without_trusted_proxies_a_forwarded_address_is_not_believed(direct: Gateway) -> None:
    assert seen_by(direct, CLIENT) == BALANCER
    assert seen_by(direct, "", **{ADDRESS_HEADER: CLIENT}) == BALANCER


@pytest.mark.parametrize(
    ("forwarded", "expected"),
    [
        (CLIENT, CLIENT),
        # What the client itself wrote is to the left of what the balancer added.
        (f"198.51.100.1, {CLIENT}", CLIENT),
        (f"{CLIENT}, 127.0.0.1", CLIENT),
        (f"2001:db8::1, 2001:db8:ffff::7, {BALANCER}", "2001:db8::1"),
        ("", BALANCER),
        ("unknown", BALANCER),
    ],
)
def test_the_last_address_that_is_no_trusted_proxy_is_the_clients(
    behind: Gateway, forwarded: str, expected: str
) -> None:
    assert seen_by(behind, forwarded) == expected


def test_who_is_no_trusted_proxy_is_not_believed(behind: Gateway) -> None:
    assert seen_by(behind, CLIENT, peer="127.0.0.5") == "127.0.0.5"
    assert seen_by(behind, CLIENT, **{ADDRESS_HEADER: "192.0.2.66"}) == CLIENT


def test_clients_behind_a_balancer_have_their_own_limits_and_ipv6_counts_by_64(
    behind: Gateway,
) -> None:
    def sign_in(address: str) -> int:
        headers = {"x-forwarded-for": address}
        return behind.rest.post("/api/v1/auth/login", json={}, headers=headers).status_code

    assert [sign_in("198.51.100.1"), sign_in("198.51.100.1")] == [200, 429]
    assert sign_in("198.51.100.2") == 200
    assert [sign_in("2001:db8:1:2::1"), sign_in("2001:db8:1:2:ffff::9")] == [200, 429]
    assert sign_in("2001:db8:1:3::1") == 200


@pytest.mark.parametrize(
    ("near", "elsewhere"),
    [
        (["198.51.100.1", "198.51.100.9", "198.51.100.250"], "198.51.101.1"),
        (["2001:db8:5:11::1", "2001:db8:5:12::1", "2001:db8:5:13::1"], "2001:db8:5:100::1"),
    ],
)
def test_joins_are_limited_per_address_and_per_network(
    behind: Gateway, near: list[str], elsewhere: str
) -> None:
    def join(address: str) -> httpx.Response:
        headers = {"x-forwarded-for": address}
        return behind.rest.post("/api/v1/events/e1/queue", json={}, headers=headers)

    first, second, third = near
    refused = [join(first) for _ in range(3)][-1]
    assert refused.status_code == 429
    assert int(refused.headers["retry-after"]) > 0
    # The call that the address's limit refused is not counted for the network, which has one left.
    assert [join(second).status_code, join(third).status_code] == [201, 429]
    assert join(elsewhere).status_code == 201


def test_the_proxy_protocol_names_the_client(behind: Gateway) -> None:
    with gateway_harness.connection(behind.settings) as raw:
        raw.settimeout(60)
        raw.sendall(
            b"PROXY TCP4 203.0.113.7 127.0.0.1 40000 80\r\n"
            b"GET /api/v1/events/e1 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
        )
        assert raw.recv(12) == b"HTTP/1.1 200"
        while raw.recv(65_536):
            pass
    assert behind.upstream.calls.pop().metadata[ADDRESS_HEADER] == "203.0.113.7"
