"""Which URLs and addresses webhooks may be sent to: public ones only.

A host name that is public when the endpoint is created can resolve to a private address later (DNS
rebinding), so each attempt resolves it, checks every address and connects to a checked one.
"""

import asyncio
import ipaddress
import socket
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from urllib.parse import urlsplit

from mesh.errors import FieldViolation

_RESOLVE_SECONDS = 5.0
# NAT64 (RFC 6052): a gateway translates these to IPv4 addresses.
_NAT64 = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("64:ff9b:1::/48"))

# A separate pool: slow DNS servers must not block the process's other threads.
_RESOLVERS = ThreadPoolExecutor(max_workers=8, thread_name_prefix="resolve")

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Rules:
    """What this installation allows. Values other than the defaults are for development."""

    is_http_allowed: bool = False
    is_loopback_allowed: bool = False


class RefusedDestinationError(Exception):
    """The destination is not allowed. The text is the error in the delivery's log."""


def violations(url: str, rules: Rules, *, field: str = "url") -> list[FieldViolation]:
    """Violations of an endpoint's URL, checked without resolving its host."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return [FieldViolation(field, "must be a URL")]
    violations = []
    allowed = ("https", "http") if rules.is_http_allowed else ("https",)
    if parts.scheme not in allowed:
        violations.append(FieldViolation(field, f"must begin with {' or '.join(allowed)}://"))
    if not host or not url.isascii() or not url.isprintable() or " " in url:
        violations.append(
            FieldViolation(
                field, "must have a host, and printable ASCII characters without spaces only"
            )
        )
    if parts.username is not None or parts.password is not None or parts.fragment:
        violations.append(
            FieldViolation(field, "must not contain a user, a password or a fragment")
        )
    if (
        not violations
        and (literal := _literal(host or "")) is not None
        and not _is_allowed(literal, rules)
    ):
        violations.append(FieldViolation(field, "must have a public address"))
    return violations


async def address_for(url: str, rules: Rules) -> str:
    """Resolves the URL's host. Returns one of its addresses.

    Raises RefusedDestinationError when any of its addresses is not allowed.
    """
    if violations(url, rules):
        raise RefusedDestinationError("the URL is not allowed")
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        async with asyncio.timeout(_RESOLVE_SECONDS):
            entries = await asyncio.get_running_loop().run_in_executor(
                _RESOLVERS,
                partial(socket.getaddrinfo, parts.hostname, port, type=socket.SOCK_STREAM),
            )
    except (OSError, UnicodeError):
        raise RefusedDestinationError("the host name cannot be resolved") from None
    # Only non-public addresses have a scope (fe80::1%eth0).
    addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in entries]
    if not addresses or not all(_is_allowed(address, rules) for address in addresses):
        raise RefusedDestinationError("the host's address is not public")
    return str(addresses[0])


def _literal(host: str) -> _Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _is_allowed(address: _Address, rules: Rules) -> bool:
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is not None:
            return _is_allowed(inner, rules)
        if address.teredo is not None or address.is_site_local:
            return False
        if any(address in network for network in _NAT64):
            return False
    if address.is_loopback:
        return rules.is_loopback_allowed
    return address.is_global and not address.is_multicast and not address.is_reserved
