"""Where a webhook may go: to public addresses only, whatever a name says at the moment.

A name that is public when an endpoint is made can be ours when it is called (DNS
rebinding), so each attempt resolves it, looks at every address, and connects to one of
those it has looked at.
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
# NAT64 (RFC 6052): IPv4 addresses in IPv6's clothes, which a gateway would undress.
_NAT64 = (ipaddress.ip_network("64:ff9b::/96"), ipaddress.ip_network("64:ff9b:1::/48"))

# Of their own: names that somebody lets hang must not keep the process's other threads.
_RESOLVERS = ThreadPoolExecutor(max_workers=8, thread_name_prefix="resolve")

_Address = ipaddress.IPv4Address | ipaddress.IPv6Address


@dataclass(frozen=True, slots=True)
class Rules:
    """What this installation lets through; anything but the defaults is for development."""

    is_http_allowed: bool = False
    is_loopback_allowed: bool = False


class RefusedDestinationError(Exception):
    """The destination may not be called. The text says why, for the delivery's log."""


def violations(url: str, rules: Rules, *, field: str = "url") -> list[FieldViolation]:
    """What is wrong with an endpoint's URL, as far as its text tells."""
    try:
        parts = urlsplit(url)
        host, _ = parts.hostname, parts.port
    except ValueError:
        return [FieldViolation(field, "is no URL")]
    faults = []
    allowed = ("https", "http") if rules.is_http_allowed else ("https",)
    if parts.scheme not in allowed:
        faults.append(FieldViolation(field, f"must begin with {' or '.join(allowed)}://"))
    if not host or not url.isascii() or not url.isprintable() or " " in url:
        faults.append(FieldViolation(field, "has no host, or letters that a URL may not have"))
    if parts.username is not None or parts.password is not None or parts.fragment:
        faults.append(FieldViolation(field, "must have neither a user nor a fragment"))
    if (
        not faults
        and (literal := _literal(host or "")) is not None
        and not _may_call(literal, rules)
    ):
        faults.append(FieldViolation(field, "is not a public address"))
    return faults


async def address_for(url: str, rules: Rules) -> str:
    """An address of the URL's host that may be called now.

    Raises RefusedDestinationError when any of its addresses may not: a name that is
    partly ours is not somebody else's.
    """
    if violations(url, rules):
        raise RefusedDestinationError("the URL is not allowed")
    parts = urlsplit(url)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        async with asyncio.timeout(_RESOLVE_SECONDS):
            found = await asyncio.get_running_loop().run_in_executor(
                _RESOLVERS,
                partial(socket.getaddrinfo, parts.hostname, port, type=socket.SOCK_STREAM),
            )
    except (OSError, UnicodeError):
        raise RefusedDestinationError("the host's name cannot be resolved") from None
    # A scope (fe80::1%eth0) only ever stands at addresses that are not public.
    addresses = [ipaddress.ip_address(str(entry[4][0]).partition("%")[0]) for entry in found]
    if not addresses or not all(_may_call(address, rules) for address in addresses):
        raise RefusedDestinationError("the host's address is not public")
    return str(addresses[0])


def _literal(host: str) -> _Address | None:
    try:
        return ipaddress.ip_address(host)
    except ValueError:
        return None


def _may_call(address: _Address, rules: Rules) -> bool:
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped or address.sixtofour
        if inner is not None:
            return _may_call(inner, rules)
        if address.teredo is not None or address.is_site_local:
            return False
        if any(address in network for network in _NAT64):
            return False
    if address.is_loopback:
        return rules.is_loopback_allowed
    return address.is_global and not address.is_multicast and not address.is_reserved
