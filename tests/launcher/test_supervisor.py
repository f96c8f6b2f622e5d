import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import psutil
import pytest

from launcher import supervisor
from launcher.errors import LaunchError
from launcher.supervisor import Process, Program, State, Supervisor, wait_healthy
from testing.waiting import until


async def yes() -> bool:
    return True


async def no() -> bool:
    return False


def a_program(name: str = "sleeper", script: str = "exec sleep 600", **given: object) -> Program:
    return Program(**{"name": name, "command": ("sh", "-c", script), "check": yes} | given)  # type: ignore[arg-type]


class Watched:
    """A supervisor that records all state changes of its processes."""

    def __init__(self, home: Path) -> None:
        self.changes: list[tuple[str, State]] = []
        self.backoffs: list[float] = []
        self.supervisor = Supervisor(home, on_change=self._note)

    def _note(self, process: Process) -> None:
        self.changes.append((process.name, process.state))
        if process.state is State.RESTARTING:
            self.backoffs.append(process.retry_at - asyncio.get_running_loop().time())

    async def start(self, *programs: Program) -> list[Process]:
        processes = self.supervisor.start(programs)
        await wait_healthy(processes, 60)
        return processes


@pytest.fixture
async def watched(tmp_path: Path) -> AsyncIterator[Watched]:
    watched = Watched(tmp_path)
    yield watched
    await watched.supervisor.stop()


def pid_of(process: Process) -> int:
    assert process.pid is not None
    return process.pid


async def test_a_killed_process_is_restarted_with_growing_backoff(watched: Watched) -> None:
    [process] = await watched.start(a_program())
    for deaths in (1, 2, 3):
        killed = pid_of(process)
        os.kill(killed, signal.SIGKILL)
        await until(lambda: process.restarts == deaths)  # noqa: B023
        assert process.ending == "signal SIGKILL"
        await until(lambda: process.state is State.HEALTHY)
        assert pid_of(process) != killed
    assert watched.backoffs == pytest.approx([0.2, 0.4, 0.8], abs=0.05)


async def test_a_process_has_its_own_group_in_the_launchers_session(watched: Watched) -> None:
    """Ctrl-C must not reach it, and with a session of its own its niceness would have no effect."""
    [process] = await watched.start(a_program())
    assert os.getpgid(pid_of(process)) == pid_of(process)
    assert os.getsid(pid_of(process)) == os.getsid(0)


async def test_tiers_stop_in_reverse_order(watched: Watched) -> None:
    await watched.start(a_program("database"))
    pids = [pid_of(process) for process in await watched.start(a_program("one"), a_program("two"))]
    await watched.supervisor.stop()
    stops = [name for name, state in watched.changes if state is State.STOPPED]
    assert set(stops[:2]) == {"one", "two"}
    assert watched.changes.index(("database", State.STOPPING)) > max(
        watched.changes.index((name, State.STOPPED)) for name in ("one", "two")
    )
    assert not any(map(psutil.pid_exists, pids))
    assert State.RESTARTING not in [state for _, state in watched.changes]


async def test_a_process_that_ignores_its_stop_signal_is_killed_with_its_children(
    watched: Watched, tmp_path: Path
) -> None:
    [process] = await watched.start(
        a_program(script="trap '' TERM; sleep 600 & wait; sleep 600", grace_seconds=0.3)
    )
    family = psutil.Process(pid_of(process))
    await until(lambda: len(family.children()) == 1)
    members = [family, *family.children()]
    await watched.supervisor.stop()
    assert psutil.wait_procs(members, timeout=60)[1] == []


async def test_a_process_gets_its_stop_signal_and_its_grace(
    watched: Watched, tmp_path: Path
) -> None:
    [process] = await watched.start(
        a_program(
            script="trap 'echo bye; exit 0' USR1; echo ready; while :; do sleep 0.05; done",
            stop_signal=signal.SIGUSR1,
        )
    )
    await until(lambda: "ready" in process.log_tail())
    await watched.supervisor.stop()
    assert process.log_tail() == "ready\nbye"
    assert process.exit_code == 0


async def test_a_program_that_does_not_start_is_an_error_with_the_end_of_its_log(
    watched: Watched,
) -> None:
    script = "import sys; print(*range(100), sep='\\n'); sys.exit('no database')"
    with pytest.raises(
        LaunchError, match="broken does not start: it ended with exit code 1"
    ) as caught:
        await watched.start(a_program("broken", command=(sys.executable, "-c", script), check=no))
    assert "no database" in caught.value.remedy
    assert "99" in caught.value.remedy
    assert "\n50\n" not in caught.value.remedy


async def test_a_program_that_is_never_healthy_is_an_error(watched: Watched) -> None:
    processes = watched.supervisor.start([a_program("mute", check=no)])
    with pytest.raises(LaunchError, match=r"mute did not become healthy and was idle for 0\.3 s"):
        await wait_healthy(processes, 0.3)


async def test_the_error_shows_no_line_of_an_earlier_run(watched: Watched, tmp_path: Path) -> None:
    log = tmp_path / "logs" / "mute.log"
    log.parent.mkdir(exist_ok=True)
    log.write_text("of yesterday\n")
    processes = watched.supervisor.start([a_program("mute", check=no)])
    with pytest.raises(LaunchError) as caught:
        await wait_healthy(processes, 0.3)
    assert "of yesterday" not in caught.value.remedy
    assert "nothing since its start" in caught.value.remedy


async def test_a_command_that_does_not_exist_is_an_error(watched: Watched, tmp_path: Path) -> None:
    with pytest.raises(LaunchError, match="absent does not start") as caught:
        await watched.start(a_program("absent", command=(str(tmp_path / "absent"),), check=no))
    assert "No such file" in caught.value.remedy


async def test_stopping_does_not_wait_for_a_backoff(
    watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervisor, "FIRST_BACKOFF_SECONDS", 3600.0)
    processes = watched.supervisor.start([a_program("broken", script="exit 3", check=no)])
    await until(lambda: processes[0].state is State.RESTARTING)
    async with asyncio.timeout(60):
        await watched.supervisor.stop()
    assert processes[0].state is State.STOPPED


async def test_a_process_becomes_unhealthy_and_healthy_again(
    watched: Watched, tmp_path: Path
) -> None:
    well = tmp_path / "well"
    well.touch()

    async def check() -> bool:
        return well.exists()

    [process] = await watched.start(a_program(check=check))
    well.unlink()
    await until(lambda: process.state is State.UNHEALTHY)
    well.touch()
    await until(lambda: process.state is State.HEALTHY)
    assert process.restarts == 0


async def test_a_large_log_is_rotated_at_the_start(watched: Watched, tmp_path: Path) -> None:
    log = tmp_path / "logs" / "talker.log"
    log.parent.mkdir()
    with log.open("wb") as file:
        file.truncate(21 * 1024 * 1024)
    [process] = await watched.start(a_program("talker", script="echo fresh; exec sleep 600"))
    await until(lambda: process.log_tail() == "fresh")
    assert log.with_suffix(".log.1").stat().st_size == 21 * 1024 * 1024
