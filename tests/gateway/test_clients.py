"""The commands of docs/clients.md call the gateway with the contract that it serves."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import descriptor_pb2

from boxoffice.auth.v1 import auth_service_pb2
from mesh.paths import ROOT
from testing.gateway_harness import Gateway

LOGIN = "/boxoffice.auth.v1.AuthService/Login"
PATH = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
# buf is one of the development packages; grpcurl is used where it is installed.
TOOLS = [name for name in ("buf curl", "grpcurl") if shutil.which(name.split()[0], path=PATH)]


@pytest.mark.parametrize("tool", TOOLS)
def test_a_tool_calls_with_the_served_contract(gateway: Gateway, tool: str, tmp_path: Path) -> None:
    page = (ROOT / "docs" / "clients.md").read_text()
    [script] = re.findall(rf"<!-- {tool}: run by .*? -->\n```sh\n(.*?)```", page, re.DOTALL)
    gateway.upstream.answers[LOGIN] = lambda *_: auth_service_pb2.LoginResponse(access_token="yes")
    completed = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script],
        cwd=tmp_path,
        env={**os.environ, "PATH": PATH, "API": str(gateway.rest.base_url).rstrip("/")},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert completed.returncode == 0, completed.stderr
    assert '"accessToken": "yes"' in completed.stdout.replace('":"', '": "')
    [call] = [call for call in gateway.upstream.calls if call.path == LOGIN]
    request = auth_service_pb2.LoginRequest.FromString(call.request)
    assert request.email == "mira@example.com"


def test_the_served_contract_is_the_public_part(gateway: Gateway) -> None:
    answer = gateway.rest.get("/contract.binpb")
    assert (answer.status_code, answer.headers["content-type"]) == (200, "application/x-protobuf")
    files = descriptor_pb2.FileDescriptorSet.FromString(answer.content).file
    names = [file.name for file in files]
    assert "boxoffice/bookings/v1/booking_service.proto" in names
    assert "boxoffice/limits/v1/rate_limit_service.proto" not in names
    known: set[str] = set()
    for file in files:
        assert known.issuperset(file.dependency), file.name
        known.add(file.name)
