"""The jwt_authn filter: one rule per routed RPC; all other paths require a token.

The gateway verifies tokens and forwards their payload in a header. Services check roles.
"""

from collections.abc import Iterable

from gateway.clusters import JWKS_CLUSTER
from gateway.extension import Config, extension, seconds
from mesh.rpc.identity import AUDIENCE, CLOCK_SKEW_SECONDS, ISSUER, PAYLOAD_HEADER
from mesh.rpc.policy import MethodPolicy

FILTER = "envoy.filters.http.jwt_authn"
CLAIMS = "claims"
"""Key of the verified claims in the filter's dynamic metadata; limits.py uses `sub`."""

_PROVIDER = "boxoffice"
_ENDED = "ended"
# For signing out with an ended token: as long as a session may last.
_ENDED_SECONDS = 30 * 86_400
JWKS_PATH = "/.well-known/jwks.json"
# Envoy refetches the keys 5 s before this time, and keeps the old ones if that fails. An unknown
# `kid` does not trigger a fetch, so a new key must be published for longer before it is used for
# signing: docs/sessions.md.
_JWKS_CACHE_SECONDS = 10.0


def jwt_authn(policies: Iterable[MethodPolicy]) -> Config:
    return extension(
        FILTER,
        "envoy.extensions.filters.http.jwt_authn.v3.JwtAuthentication",
        providers={
            _PROVIDER: _provider(CLOCK_SKEW_SECONDS),
            _ENDED: _provider(_ENDED_SECONDS),
        },
        rules=[*(_rule(policy) for policy in policies), _deny_the_rest()],
    )


def _rule(policy: MethodPolicy) -> Config:
    match: Config = {"match": {"path": policy.path}}
    if policy.accepts_ended_token:
        match["requires"] = {"provider_name": _ENDED}
    elif policy.needs_token:
        match["requires"] = {"provider_name": _PROVIDER}
    elif policy.reads_token:
        # Without a token the call is anonymous; one that fails is refused.
        either = [{"provider_name": _PROVIDER}, {"allow_missing": {}}]
        match["requires"] = {"requires_any": {"requirements": either}}
    return match


def _deny_the_rest() -> Config:
    return {"match": {"prefix": "/"}, "requires": {"provider_name": _PROVIDER}}


def _provider(clock_skew_seconds: int) -> Config:
    return {
        "issuer": ISSUER,
        "audiences": [AUDIENCE],
        "require_expiration": True,
        "clock_skew_seconds": clock_skew_seconds,
        # The default also accepts ?access_token=, which ends up in logs.
        "from_headers": [{"name": "authorization", "value_prefix": "Bearer "}],
        # No service needs the token itself.
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
            # fast_listener: the listener starts without keys; calls with a token get 503 until then.
            "async_fetch": {"fast_listener": True, "failed_refetch_duration": "1s"},
            "retry_policy": {
                "num_retries": 3,
                "retry_back_off": {"base_interval": "0.1s", "max_interval": "1s"},
            },
        },
    }
