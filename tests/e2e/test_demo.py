"""The demo with 40 customers while a service is killed, and a small on-sale: the audits are clean.

tests/chaos/ and `make chaos` have more faults.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from mesh.paths import ROOT
from testing.ports import mesh_ports

_SECONDS = 600


@pytest.mark.timeout(_SECONDS + 60)
def test_the_audit_is_clean_after_a_service_was_killed() -> None:
    with tempfile.TemporaryDirectory(prefix="boxoffice-", ignore_cleanup_errors=True) as home:
        completed = run_demo(home, "--customers", "40", "--kill", "stock_svc")
    report = completed.stdout + completed.stderr
    assert completed.returncode == 0, report
    assert "kill stock_svc" in report


@pytest.mark.timeout(_SECONDS + 60)
def test_a_small_on_sale_has_a_clean_report() -> None:
    with tempfile.TemporaryDirectory(prefix="boxoffice-", ignore_cleanup_errors=True) as home:
        completed = run_demo(home, "--on-sale", "--customers", "60", "--folder", f"{home}/report")
        text = completed.stdout + completed.stderr
        assert completed.returncode == 0, text
        created = json.loads(Path(home, "report", "report.json").read_text())
        page = Path(home, "report", "report.html").read_text()
    assert "Audit clean." in text
    report, fairness = created["report"], created["fairness"]
    assert (created["isSettled"], created["differences"]) == (True, [])
    assert (fairness["isValid"], fairness["isCommitmentNoted"]) == (True, True)
    assert report["visitors"]["joined"] >= 60
    assert report["visitors"]["bought"] > 0
    causes = {refusal["cause"] for refusal in report["refusals"]}
    assert {"PROOF_MISSING", "PROOF_REUSED", "TICKET_FORGED", "TOKEN_FORGED"} <= causes
    assert "Bots of the demo" in page


def run_demo(home: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The demo in a process of its own, with its state in `home`."""
    gateway, admin, base = mesh_ports()
    environment = {
        **os.environ,
        "BOXOFFICE_HOME": home,
        "BOXOFFICE_GATEWAY_PORT": str(gateway),
        "BOXOFFICE_ENVOY_ADMIN_PORT": str(admin),
        "BOXOFFICE_PORT_BASE": str(base),
    }
    try:
        return subprocess.run(
            [sys.executable, "-m", "demo", *arguments],
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
