"""Runs the README's commands unchanged."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from mesh.paths import ROOT
from testing.running_mesh import ADMIN_SECRET, RunningMesh

_README = (ROOT / "README.md").read_text()
_BLOCK = r"<!-- {}: run by .*? -->\n```\w+\n(.*?)```"


def blocks(name: str) -> list[str]:
    return re.findall(_BLOCK.format(name), _README, re.DOTALL)


@pytest.fixture(scope="module")
def shell(mesh: RunningMesh) -> "Shell":
    return Shell(mesh)


class Shell:
    """Runs README text against the tests' mesh, with its ports and folder."""

    def __init__(self, mesh: RunningMesh) -> None:
        self._replacements = {
            "http://localhost:8080": mesh.url,
            "localhost:8080": mesh.url.removeprefix("http://"),
            "localhost:50052": f"localhost:{mesh.port('booking_svc')}",
            "an-admin-secret-of-32-characters": ADMIN_SECRET,
            "CERTIFICATES=.boxoffice": f"CERTIFICATES={mesh.home}",
            ".venv/bin/": f"{Path(sys.executable).parent}/",
        }

    def bash(self, script: str, **variables: str) -> str:
        return self._run(["bash", "-euo", "pipefail", "-c", self._adapt(script)], variables)

    def python(self, script: str, **variables: str) -> str:
        return self._run([sys.executable, "-c", self._adapt(script)], variables)

    def _adapt(self, script: str) -> str:
        for text, replacement in self._replacements.items():
            script = script.replace(text, replacement)
        return script

    def _run(self, command: list[str], variables: dict[str, str]) -> str:
        completed = subprocess.run(
            command,
            cwd=ROOT,
            env={**os.environ, **variables},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert completed.returncode == 0, completed.stdout + completed.stderr
        return completed.stdout


def test_the_commands_of_the_readme_work(shell: Shell) -> None:
    first = "".join(blocks("first booking"))
    # The README waits a second for the webhook; a slow machine may need more.
    first = first.replace("sleep 1", "sleep 5")
    output = shell.bash(first + '\necho "$EVENT_ID $OFFER_ID"').splitlines()
    assert output[-2] == "CONFIRMED", output
    event_id, offer_id = output[-1].split()

    [client] = blocks("python client")
    booked = shell.python(client, EVENT_ID=event_id, OFFER_ID=offer_id)
    assert booked.split()[1:] == ["300000", "INR"]

    [operator] = blocks("operator")
    answer = shell.bash(operator, EVENT_ID=event_id)
    assert "boxoffice.catalogue.v1.EventService/GetEvent" in answer
    assert "Monsoon Nights" in answer
