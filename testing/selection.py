"""Which test files a change needs: those that import a changed module, directly or not.

Files that no import shows (protos, manifests, pyproject.toml) need all tests; a page of
documentation needs those of tests/architecture. Tests of the running mesh start every package as a
process, so a change of any package needs them.
"""

import subprocess
from collections.abc import Collection
from pathlib import Path, PurePosixPath

import grimp

from mesh.paths import ROOT

PACKAGES = (
    *("mesh", "auth_svc", "booking_svc", "stock_svc", "payment_svc", "limit_svc"),
    *(
        "launcher",
        "chaos",
        "demo",
        "bench",
        "tools",
        "deploy",
        "gateway",
        "openapi",
        "testing",
        "tests",
    ),
)
# The packages of the gateway lie in a folder of their own.
_GATEWAY = "envoy/"
_ALWAYS = "tests/architecture/"
_OF_THE_MESH = "tests/e2e/"
_OF_TESTS = {"bench", "testing", "tests"}


def changed_files(branch: str) -> set[str]:
    """The files that differ from where this branch left `branch`, also uncommitted ones."""
    base = _git("merge-base", branch, "HEAD")[0]
    return {*_git("diff", "--name-only", base), *_git("ls-files", "--others", "--exclude-standard")}


def affected(changed: Collection[str], files: Collection[str]) -> set[str]:
    """The test files among `files` that a change of the files `changed` needs."""
    if not changed:
        return set()
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    modules: set[str] = set()
    for path in changed:
        if PurePosixPath(path).suffix == ".md":
            continue
        module = _module(path)
        if module not in graph.modules:
            # No module, or one that was deleted.
            return set(files)
        # A conftest.py or an __init__.py counts for its whole package.
        whole = PurePosixPath(path).name in {"conftest.py", "__init__.py"}
        part = module.removesuffix(".conftest") if whole else module
        modules |= {part, *(graph.find_descendants(part) if whole else ())}
    needed = set(modules).union(*map(graph.find_downstream_modules, modules))
    runs = any(module.split(".")[0] not in _OF_TESTS for module in needed)
    return {
        file
        for file in files
        if _module(file) in needed
        or file.startswith(_ALWAYS)
        or (runs and file.startswith(_OF_THE_MESH))
    }


def _module(path: str) -> str:
    return ".".join(
        PurePosixPath(path.removeprefix(_GATEWAY).removesuffix("/__init__.py"))
        .with_suffix("")
        .parts
    )


def _git(*arguments: str) -> list[str]:
    completed = subprocess.run(
        ["git", *arguments], cwd=Path(ROOT), capture_output=True, text=True, check=True
    )
    return completed.stdout.splitlines()
