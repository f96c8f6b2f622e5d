"""Access tokens and the key that signs them."""

import base64
import hashlib
import json
import stat
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import jwt
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa

from auth_svc import tokens
from auth_svc.tokens import KeyFileError, SigningKey
from mesh.rpc import identity
from mesh.rpc.call import Caller
from mesh.rpc.policy import Access


def a_token(key: SigningKey, *, user_id: UUID | None = None, session_id: UUID | None = None) -> str:
    return tokens.issue(
        key,
        user_id=user_id or uuid4(),
        session_id=session_id or uuid4(),
        role="STAFF",
        version=3,
        lifetime=timedelta(minutes=15),
        now=datetime.now(UTC),
    )


def test_a_token_verifies_with_the_published_key_and_identifies_the_user(key: SigningKey) -> None:
    user_id, session_id, now = uuid4(), uuid4(), datetime.now(UTC)
    token = tokens.issue(
        key,
        user_id=user_id,
        session_id=session_id,
        role="ADMIN",
        version=3,
        lifetime=timedelta(minutes=15),
        now=now,
    )
    published = tokens.key_set((key.public,))
    header = jwt.get_unverified_header(token)
    assert header == {"alg": "RS256", "typ": "at+jwt", "kid": key.public.kid}
    claims = jwt.decode(
        token,
        published[key.public.kid],
        algorithms=["RS256"],
        audience="boxoffice-api",
        issuer="boxoffice",
        options={"strict_aud": True, "enforce_minimum_key_length": True},
    )
    assert UUID(claims.pop("jti")).version == 7
    assert claims == {
        "iss": "boxoffice",
        "aud": "boxoffice-api",
        "sub": str(user_id),
        "sid": str(session_id),
        "role": "ADMIN",
        "ver": 3,
        "iat": int(now.timestamp()),
        "exp": int(now.timestamp()) + 900,
    }


async def test_other_services_accept_the_token(key: SigningKey) -> None:
    user_id, session_id = uuid4(), uuid4()

    async def keys() -> jwt.PyJWKSet:
        return tokens.key_set((key.public,))

    metadata = {"authorization": f"Bearer {a_token(key, user_id=user_id, session_id=session_id)}"}
    caller = await identity.identify("operator", metadata, keys)
    assert caller == Caller("operator", user_id, Access.STAFF, session_id, token_version=3)


def test_two_tokens_are_never_the_same(key: SigningKey) -> None:
    user_id = uuid4()
    assert a_token(key, user_id=user_id) != a_token(key, user_id=user_id)


def test_the_key_id_is_the_thumbprint_of_rfc_7638() -> None:
    """The key and its thumbprint are the RFC's own example, section 3.1."""
    n = (
        "0vx7agoebGcQSuuPiLJXZptN9nndrQmbXEps2aiAFbWhM78LhWx4cbbfAAtVT86zwu1RK7aPFFxuhDR1L6tS"
        "oc_BJECPebWKRXjBZCiFV4n3oknjhMstn64tZ_2W-5JsGY4Hc5n9yBXArwl93lqt7_RN5w6Cf0h4QyQ5v-65"
        "YGjQR0_FDW2QvzqY368QQMicAtaSqzs8KJZgnYb9c7d0zgdAZHzu6qMQvRL5hajrn1n91CbOpbISD08qNLyr"
        "dkt-bFTWhAI4vMQFh6WeZu0fM4lFd2NcRwr3XPksINHaQ-G_xBniIqbw0Ls1jF44-csFCur-kEgU8awapJzK"
        "nqDKgw"
    )
    number = int.from_bytes(base64.urlsafe_b64decode(n + "=="), "big")
    public = tokens._public(rsa.RSAPublicNumbers(65537, number).public_key())
    assert (public.n, public.e) == (n, "AQAB")
    assert public.kid == "NzbLsXh8uDCcd-6MNwXF4W_7noWXFZAfHkxZsRGC9Xs"


def test_the_key_is_created_once_and_readable_by_its_owner_only(tmp_path: Path) -> None:
    first = tokens.load_or_create_key(tmp_path / "keys")
    loaded = tokens.load_or_create_key(tmp_path / "keys")
    assert first.public == loaded.public
    [file] = (tmp_path / "keys").iterdir()
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.parent.stat().st_mode) == 0o700
    canonical = json.dumps(
        {"e": first.public.e, "kty": "RSA", "n": first.public.n}, separators=(",", ":")
    )
    thumbprint = base64.urlsafe_b64encode(hashlib.sha256(canonical.encode()).digest())
    assert first.public.kid == thumbprint.decode().rstrip("=")


def test_concurrent_processes_create_one_key(tmp_path: Path) -> None:
    with ThreadPoolExecutor(4) as pool:
        keys = list(pool.map(tokens.load_or_create_key, [tmp_path] * 4))
    assert len({key.public.kid for key in keys}) == 1
    assert len(list(tmp_path.iterdir())) == 1


def test_a_second_creation_keeps_the_first_key(tmp_path: Path) -> None:
    path = tmp_path / "access_token.pem"
    tokens.create_key(path)
    content = path.read_bytes()
    tokens.create_key(path)
    assert path.read_bytes() == content
    assert list(tmp_path.iterdir()) == [path]


def pem_of(key: rsa.RSAPrivateKey | ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"no key",
        pem_of(ec.generate_private_key(ec.SECP256R1())),
        pem_of(rsa.generate_private_key(65537, 1024)),  # noqa: S505 - too short on purpose
    ],
)
def test_a_file_without_a_usable_key_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "access_token.pem").write_bytes(content)
    with pytest.raises(KeyFileError, match=r"access_token\.pem"):
        tokens.load_or_create_key(tmp_path)
