"""Who needs a token: jwt_authn's rules, one per routed RPC, and deny for all else.

Roles are the services' business; the gateway verifies the token and forwards its
payload in a header that services believe from the gateway's certificate only.
"""

from collections.abc import Iterable

from gateway.clusters import JWKS_CLUSTER
from gateway.extension import Config, extension, seconds
from mesh.rpc.identity import AUDIENCE, CLOCK_SKEW_SECONDS, ISSUER, PAYLOAD_HEADER
from mesh.rpc.policy import MethodPolicy

FILTER = "envoy.filters.http.jwt_authn"
CLAIMS = "claims"
"""Key of the verified claims in the filter's dynamic metadata; limits.py counts by `sub`."""

_PROVIDER = "boxoffice"
JWKS_PATH = "/.well-known/jwks.json"
# Envoy fetches the keys anew 5 s before it, but never because of a `kid` that it does not
# know, so a new key must be published for longer before it signs: docs/sessions.md. Keys
# that it cannot fetch anew it keeps.
_JWKS_CACHE_SECONDS = 10.0


def jwt_authn(policies: Iterable[MethodPolicy]) -> Config:
    return extension(
        FILTER,
        "envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
        providers={_PROVIDER: _provider()},
        rules=[*(_rule(policy) for policy in policies), _deny_the_rest()],
    )


def _rule(policy: MethodPolicy) -> Config:
    match: Config = {"match": {"path": policy.path}}
    if policy.needs_token:
        match["requires"] = {"provider_name": _PROVIDER}
    return match


def _deny_the_rest() -> Config:
    return {"match": {"prefix": "/"}, "requires": {"provider_name": _PROVIDER}}


def _provider() -> Config:
    return {
        "issuer": ISSUER,
        "audiences": [AUDIENCE],
        "require_expiration": True,
        "clock_skew_seconds": CLOCK_SKEW_SECONDS,
        # Named, because the default also takes ?access_token=, which ends up in logs.
        "from_headers": [{"name": "authorization", "value_prefix": "Bearer "}],
        # The token itself stays here: no service needs it, so none can leak it.
        "forward": False,
        "forward_payload_header": PAYLOAD_HEADER,
        "payload_in_metadata": CLAIMS,
        "remote_jwks": {
            "http_uri": {
                "uri": f"http://{JWKS_CLUSTER}{JWKS_PATH}",
                "cluster": JWKS_CLUSTER,
                "timeout": "1s",
            },
            "cache_duration": seconds(_JWKS_CACHE_SECONDS),
            # fast_listener: the door opens without them; calls with a token get 503 until then.
            "async_fetch": {"fast_listener": True, "failed_refetch_duration": "1s"},
            "retry_policy": {
                "num_retries": 3,
                "retry_back_off": {"base_interval": "0.1s", "max_interval": "1s"},
            },
        },
    }
