"""`make check`: linters, formatting, types and import contracts of the code; linting, formatting
and compatibility of the contract; whether .env.example is up to date. All checks run, even after
a failure.
"""

import io
import os
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from launcher import protos, settings_listing
from launcher.errors import LaunchError
from mesh.paths import CONTRACT, PROTOS, ROOT

MAIN_BRANCHES = ("origin/main", "main")
"""The contract must stay compatible with the first of these that exists."""


def run() -> int:
    """Runs all checks, one per core at a time, and prints their results. Returns the exit code."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        passed = list(pool.map(lambda check: _passes(*check), _CHECKS))
    failed = [name for (name, _), good in zip(_CHECKS, passed, strict=True) if not good]
    if failed:
        print(f"Failed: {', '.join(failed)}.", file=sys.stderr)
    return 1 if failed else 0


def _passes(name: str, check: Callable[[], str]) -> bool:
    began = time.monotonic()
    try:
        note = check()
    except LaunchError as error:
        print(f"✗ {name}\n{error}", flush=True)
        return False
    seconds = time.monotonic() - began
    print(f"✓ {name} ({seconds:.1f} s){': ' + note if note else ''}", flush=True)
    return True


def breaking(contract: Path, *, against: Path) -> None:
    """Raises LaunchError that lists the breaking changes of `contract` since `against`.

    Both are compiled contracts.
    """
    _tool("buf", "breaking", str(contract), "--against", str(against))


def _ruff() -> str:
    _tool("ruff", "check", "--quiet", ".")
    return ""


def _ruff_format() -> str:
    _tool("ruff", "format", "--check", "--quiet", ".", remedy="Run `make format`.")
    return ""


def _mypy() -> str:
    _tool("mypy", "--no-error-summary")
    return ""


def _imports() -> str:
    # Without the cache, which is keyed by folder; the check takes half a second.
    _tool("lint-imports", "--no-logo", "--no-cache")
    return ""


def _buf_lint() -> str:
    _tool("buf", "lint", str(CONTRACT))
    return ""


def _buf_format() -> str:
    _tool("buf", "format", "--diff", "--exit-code", str(PROTOS), remedy="Run `make format`.")
    return ""


def _buf_breaking() -> str:
    branch = next(filter(_exists, MAIN_BRANCHES), None)
    if branch is None:
        return "skipped: there is no main branch"
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        if not _extract_protos(branch, folder):
            return f"skipped: {branch} has no protos"
        image = folder / "contract.binpb"
        try:
            protos.write_descriptor_set(folder / "protos", image)
        except protos.ProtoError as error:
            raise LaunchError(f"The contract of {branch} does not compile.", str(error)) from error
        breaking(CONTRACT, against=image)
    return f"against {branch}"


def _settings_example() -> str:
    settings_listing.check_example()
    return ""


# The longest begins first.
_CHECKS: tuple[tuple[str, Callable[[], str]], ...] = (
    ("mypy", _mypy),
    ("ruff check", _ruff),
    ("ruff format", _ruff_format),
    ("import contracts", _imports),
    ("buf lint", _buf_lint),
    ("buf format", _buf_format),
    ("buf breaking", _buf_breaking),
    (".env.example", _settings_example),
)


def _exists(branch: str) -> bool:
    return _git("rev-parse", "--verify", "--quiet", f"{branch}^{{commit}}").returncode == 0


def _extract_protos(branch: str, target: Path) -> bool:
    """Extracts the folder `protos` of a branch into `target`. False if it has none."""
    archive = _git("archive", "--format=tar", branch, PROTOS.name)
    if archive.returncode != 0:
        return False
    with tarfile.open(fileobj=io.BytesIO(archive.stdout)) as tar:
        tar.extractall(target, filter="data")
    return True


def _git(*arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, check=False)


def _tool(name: str, *arguments: str, remedy: str = "") -> None:
    """Runs a tool of the virtual environment. Raises LaunchError with its output."""
    completed = subprocess.run(
        [str(Path(sys.executable).parent / name), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        # buf requires a cache folder, although it caches nothing here.
        env={**os.environ, "BUF_CACHE_DIR": str(ROOT / "build" / "buf")},
    )
    if completed.returncode != 0:
        raise LaunchError((completed.stdout + completed.stderr).strip(), remedy)
