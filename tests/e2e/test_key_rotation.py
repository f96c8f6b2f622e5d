"""A key rotation, from the publication of the new key to the end of the old one, refuses no call.

Envoy 1.40 does not fetch the key set again for an unknown `kid`, so the gateway must have a key
before it signs.
"""

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import jwt
import pytest

from auth_svc.tokens import SigningKey, load_key
from mesh.paths import ROOT
from mesh.rpc.identity import CLOCK_SKEW_SECONDS
from testing.running_mesh import Api, RunningMesh, clean_environment, running_mesh, until

# The default of BOXOFFICE_ACCESS_TOKEN_TTL_SECONDS; with --long a minute.
LIFE = timedelta(seconds=900)
SHORT_LIFE = timedelta(seconds=60)
# The default of BOXOFFICE_KEY_PUBLISH_SECONDS.
LEAD = timedelta(seconds=150)
SKEW = timedelta(seconds=CLOCK_SKEW_SECONDS)


@pytest.fixture
def rotating(request: pytest.FixtureRequest, is_long: bool) -> Iterator[RunningMesh]:
    """The shared mesh, or with --long a separate one whose tokens expire soon."""
    if not is_long:
        yield request.getfixturevalue("mesh")
        return
    seconds = str(int(SHORT_LIFE.total_seconds()))
    with running_mesh(BOXOFFICE_ACCESS_TOKEN_TTL_SECONDS=seconds) as running:
        yield running


@dataclass
class Customers:
    """Customers who sign in repeatedly and use each token until it expires."""

    first: Api
    life: timedelta
    held: list[tuple[float, Api]] = field(default_factory=list)

    def check(self) -> str:
        """Signs in again, and calls with the newest and oldest token. Returns the newest kid."""
        fresh = self.first.sign_in(self.first.session["user"]["email"])
        self.held.append((time.monotonic(), fresh))
        # Half of the lifetime, so that tokens do not expire during a call on a slow machine.
        oldest = time.monotonic() - self.life.total_seconds() / 2
        self.held = [held for held in self.held if held[0] > oldest]
        for _, caller in (self.held[0], self.held[-1]):
            answer = caller.get("/api/v1/auth/me")
            assert answer.status_code == 200, answer.text
        return kid_of(fresh)


def kid_of(client: Api) -> str:
    assert client.token is not None
    return str(jwt.get_unverified_header(client.token)["kid"])


def resigned(client: Api, key: SigningKey) -> Api:
    """The client with its token signed by another key, valid for longer than the test."""
    assert client.token is not None
    claims = jwt.decode(client.token, options={"verify_signature": False})
    claims["exp"] = int(time.time()) + 3600
    headers = {"typ": "at+jwt", "kid": key.public.kid}
    return Api(client.client, jwt.encode(claims, key.private, algorithm="RS256", headers=headers))


def status(client: Api) -> int:
    return client.get("/api/v1/auth/me").status_code


def rotate(mesh: RunningMesh) -> Path:
    """Rotates as `make keys-rotate` does. Returns the new key's file."""
    command = [sys.executable, "-m", "launcher", "keys", "rotate"]
    environment = {**clean_environment(), **mesh.variables}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=120)
    [path] = (mesh.home / "keys").glob("access_token-*.pem")
    return path


def published(path: Path, *, ago: timedelta) -> Path:
    """Renames the key's file, so that it counts as published this long ago."""
    time_in_name = datetime.now(UTC) - ago
    return path.rename(path.with_name(f"access_token-{time_in_name:%Y%m%dT%H%M%SZ}.pem"))


@pytest.mark.timeout(900)
def test_a_rotation_refuses_no_valid_token(rotating: RunningMesh, is_long: bool) -> None:
    """With --long in real time; otherwise the file is renamed to simulate elapsed time."""
    life = SHORT_LIFE if is_long else LIFE
    timeout = 60.0 + (LEAD + life + SKEW).total_seconds() * is_long
    old_path = rotating.home / "keys" / "access_token.pem"
    with httpx.Client(base_url=rotating.url, timeout=60) as client:
        customers = Customers(Api(client).sign_up(), life)
        old = load_key(old_path)
        assert customers.check() == old.public.kid
        path = rotate(rotating)
        new = load_key(path)
        # The gateway accepts the key before it signs.
        early = resigned(customers.first, new)
        until(
            lambda: customers.check() and status(early) == 200,
            "the gateway has not fetched the key",
        )
        assert customers.check() == old.public.kid
        if not is_long:
            path = published(path, ago=LEAD)
        until(
            lambda: customers.check() == new.public.kid,
            "the new key does not sign",
            seconds=timeout,
        )
        # Both keys are accepted.
        late = resigned(customers.first, old)
        assert (status(early), status(late)) == (200, 200)
        if not is_long:
            # Drops tokens of the old key, which expire before the key is retired.
            customers.held = [held for held in customers.held if kid_of(held[1]) == new.public.kid]
            published(path, ago=LEAD + life + SKEW)
        until(
            lambda: customers.check() and not old_path.exists(),
            "the old key was not retired",
            seconds=timeout,
        )
        until(lambda: customers.check() and status(late) == 401, "the old key is still accepted")
        assert status(early) == 200
