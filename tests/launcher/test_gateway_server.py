"""What Envoy's admin page says of a process, read."""

from typing import Any

import pytest

from launcher import gateway_server


def host(port: int, **health: object) -> dict[str, Any]:
    return {
        "address": {"socket_address": {"address": "127.0.0.1", "port_value": port}},
        "health_status": {"eds_health_status": "HEALTHY", **health},
    }


@pytest.mark.parametrize(
    ("known", "is_used"),
    [
        (host(50053), True),
        (host(50053, failed_active_health_check=True), False),
        (host(50053, failed_outlier_check=True), False),
        # Not among its hosts: another gateway.
        (host(50063, failed_active_health_check=True), True),
    ],
)
def test_a_process_is_used_once_nothing_speaks_against_it(
    known: dict[str, Any], is_used: bool
) -> None:
    inside: dict[str, Any] = {"address": {"envoy_internal_address": {}}, "health_status": {}}
    answer = {"cluster_statuses": [{}, {"host_statuses": [inside]}, {"host_statuses": [known]}]}
    assert gateway_server._uses(answer, 50053) is is_used
