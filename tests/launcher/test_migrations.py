"""`make migrate`, beside the launcher that runs the mesh or without one."""

import os
import subprocess
import sys
from pathlib import Path

from mesh.paths import ROOT


def test_without_databases_it_says_where_it_looked(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "launcher", "migrate"],
        cwd=ROOT,
        env={**os.environ, "BOXOFFICE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "The database of auth_svc cannot be migrated" in done.stderr
    assert f"Does a mesh with embedded databases run in {tmp_path}?" in done.stderr
    assert "Traceback" not in done.stderr
