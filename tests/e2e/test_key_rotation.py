"""A new signing key, from its publication to the end of the old one: nobody is refused.

Envoy 1.40 does not fetch keys anew for a `kid` that it does not know, so a key must have
reached the gateway before it signs.
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

LIFE = timedelta(seconds=60)
# The default of BOXOFFICE_KEY_PUBLISH_SECONDS.
LEAD = timedelta(seconds=150)
SKEW = timedelta(seconds=CLOCK_SKEW_SECONDS)


@pytest.fixture
def rotating() -> Iterator[RunningMesh]:
    """A mesh of its own, whose keys no other test has in hand."""
    seconds = str(int(LIFE.total_seconds()))
    with running_mesh(BOXOFFICE_ACCESS_TOKEN_TTL_SECONDS=seconds) as running:
        yield running


@dataclass
class Customers:
    """People who sign in all the time and use each token for as long as it lives."""

    first: Api
    held: list[tuple[float, Api]] = field(default_factory=list)

    def all_pass(self) -> str:
        """Signs one more in; the newest and the oldest call. Returns the newest token's key."""
        fresh = self.first.sign_in(self.first.session["user"]["email"])
        self.held.append((time.monotonic(), fresh))
        # Half of its life: what a slow machine takes to send it must not let it expire.
        youngest = time.monotonic() - LIFE.total_seconds() / 2
        self.held = [one for one in self.held if one[0] > youngest]
        for _, caller in (self.held[0], self.held[-1]):
            answer = caller.get("/api/v1/auth/me")
            assert answer.status_code == 200, answer.text
        return kid_of(fresh)


def kid_of(one: Api) -> str:
    assert one.token is not None
    return str(jwt.get_unverified_header(one.token)["kid"])


def resigned(one: Api, key: SigningKey) -> Api:
    """The caller's token as a key would have signed it, for longer than any test takes."""
    assert one.token is not None
    claims = jwt.decode(one.token, options={"verify_signature": False})
    claims["exp"] = int(time.time()) + 3600
    headers = {"typ": "at+jwt", "kid": key.public.kid}
    return Api(one.client, jwt.encode(claims, key.private, algorithm="RS256", headers=headers))


def status(one: Api) -> int:
    return one.get("/api/v1/auth/me").status_code


def rotate(mesh: RunningMesh) -> Path:
    """What `make keys-rotate` does. Returns the new key's file."""
    command = [sys.executable, "-m", "launcher", "keys", "rotate"]
    environment = {**clean_environment(), **mesh.variables}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=120)
    [path] = (mesh.home / "keys").glob("access_token-*.pem")
    return path


def published(path: Path, *, ago: timedelta) -> Path:
    """The key's file as if it had been there for so long: its time is in its name."""
    time_of_name = datetime.now(UTC) - ago
    return path.rename(path.with_name(f"access_token-{time_of_name:%Y%m%dT%H%M%SZ}.pem"))


@pytest.mark.timeout(900)
def test_a_rotation_refuses_nobody(rotating: RunningMesh, is_long: bool) -> None:
    """With --long the time passes; without it the file's name says that it has."""
    patience = 60.0 + (LEAD + LIFE + SKEW).total_seconds() * is_long
    old_path = rotating.home / "keys" / "access_token.pem"
    with httpx.Client(base_url=rotating.url, timeout=20) as client:
        customers = Customers(Api(client).sign_up())
        old = load_key(old_path)
        assert customers.all_pass() == old.public.kid
        path = rotate(rotating)
        new = load_key(path)
        # The gateway knows the key before it signs.
        early = resigned(customers.first, new)
        until(lambda: customers.all_pass() and status(early) == 200, "not fetched")
        assert customers.all_pass() == old.public.kid
        if not is_long:
            path = published(path, ago=LEAD)
        until(lambda: customers.all_pass() == new.public.kid, "does not sign", seconds=patience)
        # Two keys are good now.
        late = resigned(customers.first, old)
        assert (status(early), status(late)) == (200, 200)
        if not is_long:
            # Tokens of the old key that would have expired by then.
            customers.held = [one for one in customers.held if kid_of(one[1]) == new.public.kid]
            published(path, ago=LEAD + LIFE + SKEW)
        until(
            lambda: customers.all_pass() and not old_path.exists(), "not retired", seconds=patience
        )
        until(lambda: customers.all_pass() and status(late) == 401, "still known")
        assert status(early) == 200
