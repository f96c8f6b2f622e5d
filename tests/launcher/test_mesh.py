"""Errors of a mesh that cannot start; tests/e2e runs complete meshes."""

import socket
from pathlib import Path

import pytest

from launcher import leftovers
from launcher.errors import LaunchError
from launcher.mesh import Mesh
from mesh.settings import MeshSettings
from testing.ports import mesh_ports


def a_mesh(home: Path, **given: object) -> Mesh:
    return Mesh(MeshSettings.model_validate({"home": home, **given}))


async def test_a_home_that_is_in_use_is_refused(tmp_path: Path) -> None:
    with leftovers.hold(tmp_path), pytest.raises(LaunchError, match="already running"):
        await a_mesh(tmp_path).start()


async def test_a_port_in_use_is_an_error_before_anything_is_started(tmp_path: Path) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        mesh = a_mesh(tmp_path, gateway_port=port)
        with pytest.raises(LaunchError, match=f"Port {port} for the gateway is in use"):
            await mesh.start()
    assert mesh.processes == []
    assert not (tmp_path / "postgres").exists()
    with leftovers.hold(tmp_path):
        pass


async def test_an_invalid_setting_of_a_service_is_an_error_before_anything_is_started(
    tmp_path: Path,
) -> None:
    gateway_port, envoy_admin_port, port_base = mesh_ports()
    settings = MeshSettings.model_validate(
        {
            "home": tmp_path,
            "gateway_port": gateway_port,
            "envoy_admin_port": envoy_admin_port,
            "port_base": port_base,
        }
    )
    mesh = Mesh(settings, variables={"BOXOFFICE_HOLD_TTL_SECONDS": "soon"})
    with pytest.raises(LaunchError, match=r"BOXOFFICE_HOLD_TTL_SECONDS: .* not 'soon'"):
        await mesh.start()
    assert mesh.processes == []
