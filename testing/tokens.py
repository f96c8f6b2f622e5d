"""Access tokens for tests: valid and forged ones."""

import base64
import hashlib
import hmac
import json
import time
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

KEY_ID = "the-key-of-the-tests"


@dataclass(frozen=True, slots=True)
class TokenKey:
    private: rsa.RSAPrivateKey

    @classmethod
    def new(cls) -> "TokenKey":
        return cls(rsa.generate_private_key(65537, 2048))

    @property
    def public_pem(self) -> bytes:
        return self.private.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    @property
    def jwk(self) -> dict[str, Any]:
        public = jwt.algorithms.RSAAlgorithm.to_jwk(self.private.public_key(), as_dict=True)
        return {**public, "kid": KEY_ID, "alg": "RS256", "use": "sig"}

    @property
    def jwks(self) -> jwt.PyJWKSet:
        return jwt.PyJWKSet.from_dict({"keys": [self.jwk]})

    def sign(
        self, claims: dict[str, Any] | None = None, *, algorithm: str = "RS256", **header: Any
    ) -> str:
        """A valid token unless claims or headers are changed; None omits a header."""
        headers = {"typ": "at+jwt", "kid": KEY_ID, **header}
        if headers["kid"] is None:
            del headers["kid"]
        return jwt.encode(
            a_payload() if claims is None else claims,
            self.private,
            algorithm=algorithm,
            headers=headers,
        )


def a_payload(**changes: Any) -> dict[str, Any]:
    """The claims of a customer's token, valid for 15 minutes; None omits a claim."""
    now = int(time.time())
    claims = {
        "iss": "boxoffice",
        "aud": "boxoffice-api",
        "sub": str(uuid4()),
        "sid": str(uuid4()),
        "role": "CUSTOMER",
        "iat": now,
        "exp": now + 900,
        "jti": str(uuid4()),
    } | changes
    return {name: value for name, value in claims.items() if value is not None}


def signed_by_hmac(secret: bytes, claims: dict[str, Any]) -> str:
    """An HS256 token, built by hand because PyJWT refuses a public key as secret."""
    header = {"alg": "HS256", "typ": "at+jwt", "kid": KEY_ID}
    signed = f"{encoded(header)}.{encoded(claims)}"
    signature = hmac.digest(secret, signed.encode(), hashlib.sha256)
    return f"{signed}.{_base64url(signature)}"


def unsigned(claims: dict[str, Any]) -> str:
    """A token with the algorithm `none`."""
    header = {"alg": "none", "typ": "at+jwt", "kid": KEY_ID}
    return f"{encoded(header)}.{encoded(claims)}."


def encoded(content: object) -> str:
    """JSON in base64url, the format in which the gateway forwards claims."""
    return _base64url(json.dumps(content).encode())


def _base64url(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")
