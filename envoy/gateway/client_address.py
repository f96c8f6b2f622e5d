"""The client's address, which services learn from the gateway."""

from gateway.extension import Config
from mesh.rpc.identity import ADDRESS_HEADER


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
