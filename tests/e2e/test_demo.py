"""The demo with 40 customers while a service is killed: the audit is clean.

tests/chaos/ and `make chaos` have more faults.
"""

import os
import subprocess
import sys
import tempfile

import pytest

from mesh.paths import ROOT
from testing.ports import mesh_ports

_SECONDS = 600


@pytest.mark.timeout(_SECONDS + 60)
def test_the_audit_is_clean_after_a_service_was_killed() -> None:
    gateway, admin, base = mesh_ports()
    with tempfile.TemporaryDirectory(prefix="boxoffice-", ignore_cleanup_errors=True) as home:
        environment = {
            **os.environ,
            "BOXOFFICE_HOME": home,
            "BOXOFFICE_GATEWAY_PORT": str(gateway),
            "BOXOFFICE_ENVOY_ADMIN_PORT": str(admin),
            "BOXOFFICE_PORT_BASE": str(base),
        }
        try:
            completed = subprocess.run(
                [sys.executable, "-m", "demo", "--customers", "40", "--kill", "stock_svc"],
                cwd=ROOT,
                env=environment,
                capture_output=True,
                text=True,
                timeout=_SECONDS,
                check=False,
            )
        finally:
            # Stops what a demo that timed out left running.
            subprocess.run(
                [sys.executable, "-m", "launcher", "down"],
                cwd=ROOT,
                env=environment,
                capture_output=True,
                check=True,
            )
    report = completed.stdout + completed.stderr
    assert completed.returncode == 0, report
    assert "kill stock_svc" in report
