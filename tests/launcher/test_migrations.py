"""`make migrate` without a running mesh."""

import os
import subprocess
import sys
from pathlib import Path

from mesh.paths import ROOT


def test_without_databases_the_error_names_the_home(tmp_path: Path) -> None:
    completed = subprocess.run(
        [sys.executable, "-m", "launcher", "migrate"],
        cwd=ROOT,
        env={**os.environ, "BOXOFFICE_HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert completed.returncode == 1
    assert "The database of auth_svc cannot be migrated" in completed.stderr
    remedy = f"Check that a mesh with embedded databases is running in {tmp_path}."
    assert remedy in completed.stderr
    assert "Traceback" not in completed.stderr
