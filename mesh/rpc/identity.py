"""Authentication: processes by the SPIFFE name in their certificate, users by access token.

The gateway verifies tokens and forwards their payload in a header, which is trusted only from
the gateway's certificate. Bearer tokens from other processes are verified here.
"""

import base64
import binascii
import ipaddress
import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any
from uuid import UUID

import jwt

from mesh.errors import DomainError, Reason
from mesh.rpc.call import Caller
from mesh.rpc.policy import Access, MethodPolicy

ISSUER = "boxoffice"
AUDIENCE = "boxoffice-api"
ALGORITHM = "RS256"
TOKEN_TYPE = "at+jwt"
"""The `typ` header of an access token (RFC 9068)."""
REFRESH_TOKEN_LENGTH = 43
"""auth_svc's refresh tokens are 256 bits in base64url; unlike a JWT they contain no dots."""

UNVERIFIED_CLAIM = "unverified"
"""The claim of a user who must verify the e-mail address first; only auth_svc knows the setting."""

API_KEY_PREFIX = "boxoffice_"
"""An API key begins with it; the gateway exchanges it for a token with API_KEY_CLAIM."""
API_KEY_CLAIM = "api_key"
"""The claim of a token without session, whose `sub` is the id of an API key."""

GATEWAY = "gateway"
PAYLOAD_HEADER = "x-jwt-payload"
"""The header with the claims of the token that the gateway verified, base64url."""

ADDRESS_HEADER = "x-boxoffice-client-address"
"""The header with the client's IP address. The gateway removes a client's."""

IPV6_PREFIX = 64
"""Length of the prefix by which IPv6 clients are counted."""

CLOCK_SKEW_SECONDS = 10
"""Tolerated difference between the clocks of two machines."""

SPIFFE_PREFIX = "spiffe://boxoffice/"

Jwks = Callable[[], Awaitable[jwt.PyJWKSet]]
"""Returns the public keys for verifying tokens."""

_ROLES = {"CUSTOMER": Access.CUSTOMER, "STAFF": Access.STAFF, "ADMIN": Access.ADMIN}
# About 4 MB. A user sends the same payload until the token is refreshed.
_MAX_PAYLOADS = 4096
_MAX_ADDRESSES = 4096
_RANK = {Access.CUSTOMER: 1, Access.STAFF: 2, Access.ADMIN: 3}


@lru_cache(maxsize=256)
def process_of(identity_key: str | None, identities: tuple[bytes, ...]) -> str:
    """Name of the calling process, e.g. `booking_svc`, from its certificate.

    `identities` are the certificate's values of `identity_key`. Raises CALLER_NOT_ALLOWED for a
    certificate without a SPIFFE name of the mesh.
    """
    # Without alternative names the runtime returns the common name.
    if identity_key == "x509_subject_alternative_name":
        for name in identities:
            text = name.decode()
            if text.startswith(SPIFFE_PREFIX):
                return text.removeprefix(SPIFFE_PREFIX)
    raise DomainError(
        Reason.CALLER_NOT_ALLOWED, "the client certificate has no SPIFFE name of this mesh"
    )


async def identify(process: str, metadata: Mapping[str, str], jwks: Jwks) -> Caller:
    """Authenticates the caller. Raises TOKEN_INVALID, TOKEN_EXPIRED or TOKEN_WRONG_TYPE."""
    if process == GATEWAY:
        payload = metadata.get(PAYLOAD_HEADER)
        address = network_of(metadata.get(ADDRESS_HEADER, ""))
        if payload is None:
            return Caller(process, address=address)
        return _from_payload(payload, address)
    authorization = metadata.get("authorization")
    if authorization is None:
        return Caller(process)
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise DomainError(
            Reason.TOKEN_INVALID, "the authorization header must have the form: Bearer <token>"
        )
    return _caller(process, _verify(token, await jwks()))


@lru_cache(maxsize=_MAX_ADDRESSES)
def network_of(address: str) -> str:
    """What counts as one client: an IPv4 address, or the /64 network of an IPv6 address.

    A household has a /64 at least, so one IPv6 address says nothing. Empty if it is no address.
    """
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return ""
    if isinstance(parsed, ipaddress.IPv4Address):
        return str(parsed)
    if parsed.ipv4_mapped is not None:
        return str(parsed.ipv4_mapped)
    return str(ipaddress.ip_network((parsed, IPV6_PREFIX), strict=False))


def authorise(caller: Caller, policy: MethodPolicy) -> None:
    """Raises CALLER_NOT_ALLOWED, TOKEN_INVALID, STAFF_REQUIRED, ADMIN_REQUIRED or
    EMAIL_NOT_VERIFIED unless the policy allows the caller.

    A process named in `policy.callers` needs no user; the gateway is exempt only for INTERNAL
    methods and without a user. All others need the role that `policy.access` requires.
    """
    for_itself = policy.access is Access.INTERNAL and caller.user_id is None
    if caller.process in policy.callers and (caller.process != GATEWAY or for_itself):
        return
    if policy.access is Access.PUBLIC:
        return
    if policy.access is Access.INTERNAL:
        raise DomainError(
            Reason.CALLER_NOT_ALLOWED, f"{caller.process} is not allowed to call {policy.path}"
        )
    if caller.role is None:
        raise DomainError(Reason.TOKEN_INVALID, "an access token is required")
    if _RANK[caller.role] < _RANK[policy.access]:
        reason = Reason.ADMIN_REQUIRED if policy.access is Access.ADMIN else Reason.STAFF_REQUIRED
        raise DomainError(reason, f"this call requires the role {policy.access.name}")
    if policy.needs_session and caller.session_id is None:
        raise DomainError(
            Reason.CALLER_NOT_ALLOWED, "this call requires a signed-in user, not an API key"
        )
    if policy.needs_verified_email and caller.must_verify_email:
        raise DomainError(
            Reason.EMAIL_NOT_VERIFIED,
            "this call requires a verified e-mail address: follow the link in the mail",
        )


@lru_cache(maxsize=_MAX_PAYLOADS)
def _from_payload(payload: str, address: str) -> Caller:
    """The caller in a payload from the gateway, which has verified the token of this very call."""
    return replace(_caller(GATEWAY, _decode(payload)), address=address)


def _caller(process: str, claims: Mapping[str, Any]) -> Caller:
    has_session = claims.get(API_KEY_CLAIM) is not True
    try:
        return Caller(
            process,
            user_id=UUID(str(claims["sub"])),
            role=_ROLES[claims["role"]],
            session_id=UUID(str(claims["sid"])) if has_session else None,
            token_version=int(claims.get("ver", 0)),
            must_verify_email=claims.get(UNVERIFIED_CLAIM) is True,
        )
    except (KeyError, ValueError, TypeError):
        raise DomainError(
            Reason.TOKEN_INVALID, "the token lacks a valid user, role or session"
        ) from None


def _decode(payload: str) -> Mapping[str, Any]:
    try:
        claims = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (binascii.Error, ValueError):
        raise DomainError(Reason.TOKEN_INVALID, "the token's payload is malformed") from None
    if not isinstance(claims, dict):
        raise DomainError(Reason.TOKEN_INVALID, "the token's payload is malformed")
    return claims


def _verify(token: str, keys: jwt.PyJWKSet) -> Mapping[str, Any]:
    if len(token) == REFRESH_TOKEN_LENGTH and "." not in token:
        raise DomainError(
            Reason.TOKEN_WRONG_TYPE, "the token is a refresh token; send an access token"
        )
    try:
        header = jwt.get_unverified_header(token)
        if header.get("typ") != TOKEN_TYPE:
            raise DomainError(Reason.TOKEN_WRONG_TYPE, "the token is not an access token")
        claims: Mapping[str, Any] = jwt.decode(
            token,
            keys[header.get("kid", "")],
            algorithms=[ALGORITHM],
            issuer=ISSUER,
            audience=AUDIENCE,
            leeway=CLOCK_SKEW_SECONDS,
            options={
                "require": ["exp", "iat", "sub", "aud", "iss", "jti"],
                "strict_aud": True,
                "enforce_minimum_key_length": True,
            },
        )
    except jwt.ExpiredSignatureError:
        raise DomainError(Reason.TOKEN_EXPIRED, "the token has expired") from None
    except (jwt.PyJWTError, KeyError):
        raise DomainError(
            Reason.TOKEN_INVALID, "the token's signature or claims are invalid"
        ) from None
    return claims
