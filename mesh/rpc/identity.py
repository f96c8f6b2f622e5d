"""Whom a service believes: certificates for processes, tokens for users.

The certificate's SPIFFE name says which process calls. The gateway has verified the
token and forwards its payload; that header is believed from the gateway's certificate
only. A bearer token from anyone else is verified here.
"""

import base64
import binascii
import json
from collections.abc import Awaitable, Callable, Iterable, Mapping
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
# auth_svc's refresh tokens are 256 bits in base64url, of this length and without the dots of a JWT.
REFRESH_TOKEN_LENGTH = 43
"""RFC 9068: the `typ` header of an access token."""

GATEWAY = "gateway"
PAYLOAD_HEADER = "x-jwt-payload"
"""Claims of the token that the gateway verified, base64url."""

CLOCK_SKEW_SECONDS = 10
"""How far the clocks of two machines may be apart."""

SPIFFE_PREFIX = "spiffe://boxoffice/"

Jwks = Callable[[], Awaitable[jwt.PyJWKSet]]
"""Returns the public keys that verify tokens."""

_ROLES = {"CUSTOMER": Access.CUSTOMER, "STAFF": Access.STAFF, "ADMIN": Access.ADMIN}
_RANK = {Access.CUSTOMER: 1, Access.STAFF: 2, Access.ADMIN: 3}


def process_of(auth_context: Mapping[str, Iterable[bytes]]) -> str:
    """Name of the calling process, e.g. `booking_svc`, from its certificate's SPIFFE name.

    Raises CALLER_NOT_ALLOWED for a certificate without one.
    """
    for name in auth_context.get("x509_subject_alternative_name", ()):
        text = name.decode()
        if text.startswith(SPIFFE_PREFIX):
            return text.removeprefix(SPIFFE_PREFIX)
    raise DomainError(Reason.CALLER_NOT_ALLOWED, "the certificate names no process of the mesh")


async def identify(process: str, metadata: Mapping[str, str], jwks: Jwks) -> Caller:
    """Who calls.

    Raises TOKEN_INVALID, TOKEN_EXPIRED or TOKEN_WRONG_TYPE for a token that does not hold.
    """
    if process == GATEWAY:
        payload = metadata.get(PAYLOAD_HEADER)
        return Caller(process) if payload is None else _caller(process, _decode(payload))
    authorization = metadata.get("authorization")
    if authorization is None:
        return Caller(process)
    scheme, _, token = authorization.partition(" ")
    if scheme.lower() != "bearer" or not token:
        raise DomainError(Reason.TOKEN_INVALID, "the authorization must be: Bearer <token>")
    return _caller(process, _verify(token, await jwks()))


def authorise(caller: Caller, policy: MethodPolicy) -> None:
    """Raises unless the policy lets the caller in.

    A service that the policy names needs no user. Anyone else is judged by the
    access that the policy gives to users. The gateway calls for itself, without a user,
    only what it routes to nobody.
    """
    for_itself = policy.access is Access.INTERNAL and caller.user_id is None
    if caller.process in policy.callers and (caller.process != GATEWAY or for_itself):
        return
    if policy.access is Access.PUBLIC:
        return
    if policy.access is Access.INTERNAL:
        raise DomainError(Reason.CALLER_NOT_ALLOWED, f"{caller.process} may not call {policy.path}")
    if caller.role is None:
        raise DomainError(Reason.TOKEN_INVALID, "sign in first")
    if _RANK[caller.role] < _RANK[policy.access]:
        reason = Reason.ADMIN_REQUIRED if policy.access is Access.ADMIN else Reason.STAFF_REQUIRED
        raise DomainError(reason, f"needs the role {policy.access.name}")


def _caller(process: str, claims: Mapping[str, Any]) -> Caller:
    try:
        return Caller(
            process,
            user_id=UUID(str(claims["sub"])),
            role=_ROLES[claims["role"]],
            session_id=UUID(str(claims["sid"])),
            token_version=int(claims.get("ver", 0)),
        )
    except (KeyError, ValueError, TypeError):
        raise DomainError(
            Reason.TOKEN_INVALID, "the token names no user, role or session"
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
        raise DomainError(Reason.TOKEN_WRONG_TYPE, "a refresh token is no access token")
    try:
        header = jwt.get_unverified_header(token)
        if header.get("typ") != TOKEN_TYPE:
            raise DomainError(Reason.TOKEN_WRONG_TYPE, "not an access token")
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
        raise DomainError(Reason.TOKEN_INVALID, "the token does not hold") from None
    return claims
