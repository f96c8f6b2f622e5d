"""The ext_authz filter: auth_svc exchanges an API key for the access token of this call.

lua/requests.lua marks calls with an API key. For all others the filter does nothing, and jwt_authn
treats both alike.
"""

from gateway.extension import Config, extension, seconds

NAMESPACE = "boxoffice.api_keys"
"""Of the dynamic metadata with the mark."""
MARK = "is_sent"

_TIMEOUT_SECONDS = 2.0


def exchange() -> Config:
    return extension(
        "envoy.filters.http.ext_authz",
        "envoy.extensions.filters.http.ext_authz.v3.ExtAuthz",
        transport_api_version="V3",
        grpc_service={
            "envoy_grpc": {"cluster_name": "auth_svc"},
            "timeout": seconds(_TIMEOUT_SECONDS),
        },
        filter_enabled_metadata={
            "filter": NAMESPACE,
            "path": [{"key": MARK}],
            "value": {"bool_match": True},
        },
        allowed_headers={"patterns": [{"exact": "authorization"}]},
        # auth_svc is unavailable: the key may be valid.
        status_on_error={"code": "ServiceUnavailable"},
    )
