"""Access tokens and the RSA keys that sign them. Verification is in mesh/rpc/identity.py."""

import base64
import hashlib
import json
import os
import secrets
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from mesh.ids import new_id
from mesh.rpc.identity import (
    ALGORITHM,
    API_KEY_CLAIM,
    AUDIENCE,
    ISSUER,
    TOKEN_TYPE,
    UNVERIFIED_CLAIM,
)

_KEY_FILE = "access_token.pem"
_KEY_BITS = 2048
_PUBLIC_EXPONENT = 65537


class KeyFileError(Exception):
    """The key file cannot be used. The text names the file and the reason."""


@dataclass(frozen=True, slots=True)
class PublicKey:
    """A published key, RFC 7517: `n` and `e` are base64url; `kid` is its RFC 7638 thumbprint."""

    kid: str
    n: str
    e: str


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A private key that signs, and its public key."""

    private: rsa.RSAPrivateKey
    public: PublicKey


def load_or_create_key(folder: Path) -> SigningKey:
    """The first key of a folder, created if missing. Several processes may call it concurrently.

    Raises KeyFileError for a file that is not an RSA key of 2048 bits or more.
    """
    path = folder / _KEY_FILE
    if not path.exists():
        create_key(path)
    return load_key(path)


def load_key(path: Path) -> SigningKey:
    """The key in a file. Raises KeyFileError when it is not an RSA key of 2048 bits or more."""
    try:
        private = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except ValueError as error:
        raise KeyFileError(f"{path} is not a private key in PEM form") from error
    if not isinstance(private, rsa.RSAPrivateKey) or private.key_size < _KEY_BITS:
        raise KeyFileError(f"{path} is not an RSA key of {_KEY_BITS} bits or more")
    return SigningKey(private, _public(private.public_key()))


def key_set(keys: tuple[PublicKey, ...]) -> jwt.PyJWKSet:
    """The keys in the form that verification needs."""
    return jwt.PyJWKSet.from_dict(
        {
            "keys": [
                {
                    "kty": "RSA",
                    "use": "sig",
                    "alg": ALGORITHM,
                    "kid": key.kid,
                    "n": key.n,
                    "e": key.e,
                }
                for key in keys
            ]
        }
    )


def issue(
    key: SigningKey,
    *,
    user_id: UUID,
    session_id: UUID,
    role: str,
    version: int,
    must_verify_email: bool = False,
    lifetime: timedelta,
    now: datetime,
) -> str:
    """An access token after RFC 9068. Claim `ver` identifies revoked ones (mesh/rpc/revocations.py)."""
    claims: dict[str, Any] = {"sub": str(user_id), "sid": str(session_id), "role": role}
    claims |= {"ver": version} | ({UNVERIFIED_CLAIM: True} if must_verify_email else {})
    return _sign(key, claims, lifetime=lifetime, now=now)


def issue_for_key(
    key: SigningKey, *, api_key_id: UUID, role: str, lifetime: timedelta, now: datetime
) -> str:
    """The access token for which the gateway exchanges an API key. It has no session."""
    claims = {"sub": str(api_key_id), "role": role, API_KEY_CLAIM: True}
    return _sign(key, claims, lifetime=lifetime, now=now)


def _sign(key: SigningKey, claims: dict[str, Any], *, lifetime: timedelta, now: datetime) -> str:
    issued_at = int(now.timestamp())
    return jwt.encode(
        {
            "iss": ISSUER,
            "aud": AUDIENCE,
            **claims,
            "iat": issued_at,
            "exp": issued_at + int(lifetime.total_seconds()),
            "jti": str(new_id()),
        },
        key.private,
        algorithm=ALGORITHM,
        headers={"typ": TOKEN_TYPE, "kid": key.public.kid},
    )


def create_key(path: Path) -> None:
    """Writes a new key, unless the file exists already."""
    private = rsa.generate_private_key(_PUBLIC_EXPONENT, _KEY_BITS)
    pem = private.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
        file.write(pem)
        file.flush()
        os.fsync(file.fileno())
    try:
        # Unlike a rename, a link fails if another process was first: then its key is used.
        os.link(draft, path)
    except FileExistsError:
        pass
    finally:
        draft.unlink()


def _public(key: rsa.RSAPublicKey) -> PublicKey:
    numbers = key.public_numbers()
    n, e = _base64url(numbers.n), _base64url(numbers.e)
    # RFC 7638 section 3: the required members in this order, without spaces.
    canonical = json.dumps({"e": e, "kty": "RSA", "n": n}, separators=(",", ":"))
    return PublicKey(_encode(hashlib.sha256(canonical.encode()).digest()), n, e)


def _base64url(number: int) -> str:
    return _encode(number.to_bytes((number.bit_length() + 7) // 8, "big"))


def _encode(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")
