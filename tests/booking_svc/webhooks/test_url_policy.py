"""Webhooks go to public addresses only, whatever the URL and the DNS server contain."""

import ipaddress
import socket

import pytest

from booking_svc.webhooks import url_policy
from booking_svc.webhooks.url_policy import RefusedDestinationError, Rules

STRICT = Rules()
LAX = Rules(is_http_allowed=True, is_loopback_allowed=True)

NOT_PUBLIC = [
    "127.0.0.1",
    "127.1.2.3",
    "0.0.0.0",  # noqa: S104 - not bound to: refused
    "10.0.0.1",
    "172.16.0.1",
    "192.168.1.1",
    "169.254.169.254",
    "100.64.0.1",
    "192.0.0.1",
    "192.0.2.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "240.0.0.1",
    "255.255.255.255",
    "[::]",
    "[::1]",
    "[::ffff:127.0.0.1]",
    "[::ffff:10.0.0.1]",
    "[::ffff:169.254.169.254]",
    "[fe80::1]",
    "[fec0::1]",
    "[fc00::1]",
    "[fd12:3456::1]",
    "[ff02::1]",
    "[2001:db8::1]",
    "[64:ff9b::7f00:1]",
    "[64:ff9b:1::a00:1]",
    "[2002:7f00:1::]",
    "[2002:a00:1::]",
    "[2001:0:4136:e378:8000:63bf:3fff:fdd2]",
]


@pytest.mark.parametrize("host", NOT_PUBLIC)
async def test_an_address_that_is_not_public_is_refused(host: str) -> None:
    url = f"https://{host}/hooks"
    assert [violation.field for violation in url_policy.violations(url, STRICT)] == ["url"]
    with pytest.raises(RefusedDestinationError):
        await url_policy.address_for(url, STRICT)


@pytest.mark.parametrize(
    "host", ["localhost", "2130706433", "0x7f000001", "0177.0.0.1", "127.1", "localhost."]
)
async def test_names_and_spellings_of_this_machine_are_refused_before_a_call(
    host: str,
) -> None:
    with pytest.raises(RefusedDestinationError):
        await url_policy.address_for(f"https://{host}/hooks", STRICT)


async def test_a_name_with_any_private_address_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """DNS rebinding: an answer with a public and a private address, or a different second answer."""
    answers = [["93.184.215.14"], ["93.184.215.14", "10.0.0.1"], ["10.0.0.1"]]
    remaining = iter(answers)

    def resolve(host: str, port: int, **_: object) -> list[object]:
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (ip, port)) for ip in next(remaining)]

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    assert await url_policy.address_for("https://example.com/", STRICT) == "93.184.215.14"
    for _ in answers[1:]:
        with pytest.raises(RefusedDestinationError):
            await url_policy.address_for("https://example.com/", STRICT)


@pytest.mark.parametrize("host", ["93.184.215.14", "[2606:2800:21f:cb07:6820:80da:af6b:8b2c]"])
async def test_a_public_address_is_allowed(host: str) -> None:
    url = f"https://{host}:8443/hooks"
    assert url_policy.violations(url, STRICT) == []
    assert await url_policy.address_for(url, STRICT) == host.strip("[]")


async def test_loopback_is_for_development() -> None:
    assert await url_policy.address_for("http://127.0.0.1:9/", LAX) == "127.0.0.1"
    with pytest.raises(RefusedDestinationError):
        await url_policy.address_for("http://10.0.0.1/", LAX)


@pytest.mark.parametrize(
    "url",
    [
        "http://example.com/",
        "ftp://example.com/",
        "file:///etc/passwd",
        "gopher://example.com/",
        "//example.com/",
        "example.com",
        "https://",
        "https:///hooks",
        "https://user@example.com/",
        "https://user:password@example.com/",
        "https://example.com/#part",
        "https://example.com:port/",
        "https://example.com:99999/",
        "https://[::1/",
        "https://exa mple.com/",
        "https://example.com/\r\nx: y",
        "https://bücher.example/",
        "https://example.com\\@10.0.0.1/",
    ],
)
async def test_a_url_that_webhooks_do_not_support_is_refused(url: str) -> None:
    assert url_policy.violations(url, STRICT) != []
    with pytest.raises(RefusedDestinationError):
        await url_policy.address_for(url, STRICT)


def test_the_listed_hosts_are_ip_addresses() -> None:
    for host in NOT_PUBLIC:
        ipaddress.ip_address(host.strip("[]"))
