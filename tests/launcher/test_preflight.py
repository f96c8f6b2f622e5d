import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from launcher import preflight
from launcher.errors import LaunchError
from launcher.preflight import Port
from mesh.settings import SERVICES, MeshSettings


@pytest.fixture
def taken() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def some_settings(**given: object) -> MeshSettings:
    return MeshSettings.model_validate(given)


@pytest.mark.parametrize(
    ("setting", "owner"),
    [
        ("gateway_port", "the gateway"),
        ("envoy_admin_port", "Envoy's admin port"),
        ("port_base", "auth_svc"),
    ],
)
def test_a_port_in_use_is_named_with_its_setting_and_the_process_that_uses_it(
    taken: int, setting: str, owner: str
) -> None:
    number = taken - 1 if setting == "port_base" else taken
    port = next(
        port for port in preflight.ports(some_settings(**{setting: number})) if port.number == taken
    )
    assert port.owner == owner
    with pytest.raises(LaunchError) as caught:
        preflight.check_ports([port])
    assert f"Port {taken} for {owner} is in use" in caught.value.problem
    assert f"BOXOFFICE_{setting.upper()} changes it" in caught.value.problem
    assert f"pid {os.getpid()}" in caught.value.problem


def test_every_process_has_its_ports_checked() -> None:
    ports = preflight.ports(some_settings(gateways=2, replicas=3))
    # limit_svc runs with two gateways; each process of a service also has a metrics port.
    assert len(ports) == 2 * 2 + 2 * (3 * len(SERVICES) + 1)
    assert len({port.number for port in ports}) == len(ports)


def test_two_meshes_need_another_gateway_port_and_port_base() -> None:
    sizes = {"gateways": 2, "replicas": 8}
    first = preflight.ports(some_settings(**sizes))
    second = preflight.ports(some_settings(**sizes, gateway_port=8090, port_base=51050))
    numbers = [port.number for port in [*first, *second]]
    assert len(set(numbers)) == len(numbers)


def test_a_port_with_connections_in_time_wait_is_free() -> None:
    with socket.socket() as listener:
        # Servers set it too.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        number = listener.getsockname()[1]
        with socket.create_connection(("127.0.0.1", number)) as client:
            # The side that closes first keeps the connection in TIME_WAIT.
            listener.accept()[0].close()
            assert client.recv(1) == b""
    preflight.check_ports([Port(number, "the gateway", "BOXOFFICE_GATEWAY_PORT", "127.0.0.1")])


def test_two_settings_with_the_same_port_are_an_error() -> None:
    with pytest.raises(
        LaunchError, match=r"Port 9901 is configured for both the gateway .* and Envoy's admin port"
    ):
        preflight.check_ports(preflight.ports(some_settings(gateway_port=9901)))


def test_too_little_free_space_is_an_error_with_a_remedy(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="has 511 MiB of free space") as caught:
        preflight.check_disk(tmp_path, free_bytes=511 * 2**20)
    assert "BOXOFFICE_HOME" in caught.value.remedy
    preflight.check_disk(tmp_path, free_bytes=512 * 2**20)


def test_a_missing_executable_is_named(tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="envoy is not installed"):
        preflight.check_binaries([tmp_path / "envoy"])


def test_a_port_used_by_an_outgoing_connection_is_named_as_such() -> None:
    """The services' ports are within the kernel's range for outgoing connections."""
    with socket.socket() as server, socket.socket() as outgoing:
        server.bind(("127.0.0.1", 0))
        server.listen()
        outgoing.connect(server.getsockname())
        number = outgoing.getsockname()[1]
        # The server has not accepted the connection, so only the client uses the port.
        port = Port(number, "payment_svc", "BOXOFFICE_PORT_BASE", "127.0.0.1")
        with pytest.raises(LaunchError) as caught:
            preflight.check_ports([port])
    expected = f"Port {number} for payment_svc is in use by an outgoing connection of "
    assert caught.value.problem.startswith(expected)
    assert f"(pid {os.getpid()}), until that ends; BOXOFFICE_PORT_BASE" in caught.value.problem
