import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from launcher import leftovers
from launcher.errors import LaunchError

# A launcher with two children, one of which ignores SIGTERM. It prints when both run.
LAUNCHER = """
import asyncio, signal, sys
from pathlib import Path
from launcher import leftovers
from launcher.supervisor import Program, Supervisor, wait_healthy

async def main():
    home = Path(sys.argv[1])
    # It ignores SIGTERM.
    signal.signal(signal.SIGTERM, lambda *_: None)
    async def ready():
        return (home / "stubborn").exists()
    with leftovers.hold(home):
        supervisor = Supervisor(home)
        await wait_healthy(supervisor.start([
            Program(name="meek", command=("sleep", "600"), check=ready),
            Program(
                name="stubborn",
                command=("sh", "-c", f"trap '' TERM; touch {home}/stubborn; while :; do sleep 1; done"),
                check=ready,
            ),
        ]), 10)
        print("running", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture
def launcher(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", LAUNCHER, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        yield process
        process.kill()
    leftovers.stop_all(tmp_path, 0)


def recorded(home: Path) -> list[psutil.Process]:
    files = sorted((home / "run").glob("*.pid"))
    return [psutil.Process(json.loads(file.read_text())["pid"]) for file in files]


def test_a_home_has_at_most_one_launcher(tmp_path: Path) -> None:
    with (
        leftovers.hold(tmp_path),
        pytest.raises(LaunchError, match=f"already running in .*pid {os.getpid()}") as caught,
        leftovers.hold(tmp_path),
    ):
        pass
    assert "make down" in caught.value.remedy
    with leftovers.hold(tmp_path):
        pass


def test_processes_of_a_killed_launcher_are_stopped(
    launcher: subprocess.Popen[str], tmp_path: Path
) -> None:
    orphans = recorded(tmp_path)
    launcher.kill()
    launcher.wait()
    assert all(process.is_running() for process in orphans)
    with leftovers.hold(tmp_path):
        assert leftovers.stop_all(tmp_path, 0.5) == ["meek", "stubborn"]
    assert psutil.wait_procs(orphans, timeout=60)[1] == []
    assert leftovers.stop_all(tmp_path, 0.5) == []


def test_a_launcher_that_does_not_stop_is_killed(
    launcher: subprocess.Popen[str], tmp_path: Path
) -> None:
    assert leftovers.stop_launcher(tmp_path, 0.3)
    assert launcher.wait() == -signal.SIGKILL
    assert not leftovers.stop_launcher(tmp_path, 0.3)


def test_a_reused_pid_is_not_touched(tmp_path: Path) -> None:
    with subprocess.Popen(["sleep", "600"]) as stranger:
        path = leftovers.pid_file(tmp_path, "stock_svc")
        leftovers.record(path, stranger.pid, signal.SIGTERM)
        record = json.loads(path.read_text())
        path.write_text(json.dumps(record | {"started": record["started"] - 3600}))
        assert leftovers.stop_all(tmp_path, 0.5) == []
        assert stranger.poll() is None
        assert not path.exists()
        leftovers.record(path, stranger.pid, signal.SIGTERM)
        assert leftovers.stop_all(tmp_path, 0.5) == ["stock_svc"]
        assert stranger.poll() is not None


@pytest.mark.parametrize("content", ["", "{", "[]", '{"pid": 1}', "123"])
def test_a_damaged_pid_file_is_removed(tmp_path: Path, content: str) -> None:
    path = leftovers.pid_file(tmp_path, "stock_svc")
    path.parent.mkdir()
    path.write_text(content)
    assert leftovers.stop_all(tmp_path, 0.5) == []
    assert not path.exists()
