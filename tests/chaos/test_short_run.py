"""A minute of chaos on a mesh with one replica of each service: nothing is lost, doubled or left over."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from mesh.paths import ROOT

_SECONDS = 1200
# A kill, lost connections at COMMITs, lost replies between services, terminated backends.
_PLAN = """
3.0 kill stock_svc
4.0 cut-commit booking_svc>postgres 4.0
5.0 drop-replies services>stock_svc 2.0
6.0 terminate postgres
"""


@pytest.mark.timeout(_SECONDS + 120)
def test_a_short_run_is_clean() -> None:
    # Not pytest's tmp_path, which PostgreSQL's user cannot access when tests run as root.
    with tempfile.TemporaryDirectory(prefix="boxoffice-", ignore_cleanup_errors=True) as folder:
        home = Path(folder)
        (home / "plan.txt").write_text(_PLAN)
        process = subprocess.Popen(
            [
                *(sys.executable, "-m", "chaos", "--seed", "21", "--minutes", "0.1"),
                *("--plan", str(home / "plan.txt"), "--report", str(home / "report")),
                *("--replicas", "1", "--gateways", "1", "--customers", "1", "--leavers", "1"),
                # The verdict must not depend on the machine's speed.
                *("--hold", "10", "--patience", "20"),
            ],
            cwd=ROOT,
            env={**os.environ, "BOXOFFICE_HOME": str(home)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        try:
            output, _ = process.communicate(timeout=_SECONDS)
        except subprocess.TimeoutExpired:
            # It stops the processes of its mesh.
            process.terminate()
            output, _ = process.communicate(timeout=120)
            pytest.fail(output)
    assert process.returncode == 0, output
    assert "| P16 |" in output
