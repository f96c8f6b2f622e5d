"""The client's address: how the gateway finds it behind proxies, and how services learn it."""

import ipaddress

from gateway.extension import Config, extension
from mesh.rpc.identity import ADDRESS_HEADER, IPV6_PREFIX
from mesh.settings import MeshSettings

ADDRESS: Config = {
    "masked_remote_address": {"v4_prefix_mask_len": 32, "v6_prefix_mask_len": IPV6_PREFIX}
}
"""The rate limit action that counts by address, IPv6 by its /64."""

# What one customer of a network operator gets, or a small one has, at least.
NETWORK: Config = {"masked_remote_address": {"v4_prefix_mask_len": 24, "v6_prefix_mask_len": 56}}
"""The rate limit action that counts by the address's network."""


def detection(settings: MeshSettings) -> Config:
    """Fields of the connection manager that find the address.

    The peer of the connection, unless it is a trusted proxy: then the last entry of
    X-Forwarded-For that no trusted proxy has.
    """
    if not settings.trusted_proxies:
        return {"use_remote_address": True, "xff_num_trusted_hops": 0}
    return {
        # Envoy allows only one of the two.
        "use_remote_address": False,
        "original_ip_detection_extensions": [
            extension(
                "envoy.http.original_ip_detection.xff",
                "envoy.extensions.http.original_ip_detection.xff.v3.XffConfig",
                xff_trusted_cidrs={"cidrs": [_cidr(text) for text in settings.trusted_proxies]},
            )
        ],
    }


def listener_filters(settings: MeshSettings) -> list[Config]:
    """The PROXY protocol, if it is on. Connections without it are served, e.g. local checks."""
    if not settings.proxy_protocol:
        return []
    return [
        extension(
            "envoy.filters.listener.proxy_protocol",
            "envoy.extensions.filters.listener.proxy_protocol.v3.ProxyProtocol",
            allow_requests_without_proxy_protocol=True,
        )
    ]


def to_services() -> Config:
    """Fields of the route configuration that tell services the address."""
    return {
        "request_headers_to_add": [
            {
                "header": {
                    "key": ADDRESS_HEADER,
                    "value": "%DOWNSTREAM_REMOTE_ADDRESS_WITHOUT_PORT%",
                },
                "append_action": "OVERWRITE_IF_EXISTS_OR_ADD",
            }
        ]
    }


def _cidr(text: str) -> Config:
    network = ipaddress.ip_network(text)
    return {"address_prefix": str(network.network_address), "prefix_len": network.prefixlen}
