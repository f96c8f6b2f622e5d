"""Reading the health of a process from Envoy's admin port."""

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
        # Not one of its hosts: another gateway.
        (host(50063, failed_active_health_check=True), True),
    ],
)
def test_a_process_is_used_when_all_its_checks_are_healthy(
    known: dict[str, Any], is_used: bool
) -> None:
    inside: dict[str, Any] = {"address": {"envoy_internal_address": {}}, "health_status": {}}
    answer = {"cluster_statuses": [{}, {"host_statuses": [inside]}, {"host_statuses": [known]}]}
    assert gateway_server._uses(answer, 50053) is is_used
