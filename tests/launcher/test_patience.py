"""Waiting for processes as long as they make progress."""

import os
import signal
import subprocess
import sys

import pytest

from launcher.patience import Patience, demand_seconds


@pytest.mark.parametrize(
    ("share", "lasts"),
    [(0.0, 60), (0.5, 120), (1.0, None), (3.0, None)],
    ids=["hangs", "half", "one core", "several threads"],
)
def test_only_idle_time_uses_up_patience(share: float, lasts: int | None) -> None:
    """`share` is the part of the time for which the processes run or wait for a CPU."""
    seconds = 0
    patience = Patience(60, lambda: seconds * share, clock=lambda: seconds)
    over = None
    while over is None and seconds < 10_000:
        seconds += 1
        if patience.is_over:
            over = seconds
    assert over == lasts


def test_a_process_that_ended_is_no_progress() -> None:
    demand = [50.0, 0.0, 10.0]
    times = [0.0, 40.0, 60.0]
    patience = Patience(50, lambda: demand.pop(0), clock=lambda: times.pop(0))
    # 40 s idle, then 10 of 20 s.
    assert not patience.is_over
    assert patience.is_over


def test_children_and_waiting_for_a_cpu_count() -> None:
    burn = "while True: pass"
    nested = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {burn!r}])"
    # One group, so that the child ends with its parent.
    with subprocess.Popen([sys.executable, "-c", nested], process_group=0) as process:
        try:
            before = demand_seconds([process.pid, None])
            while demand_seconds([process.pid]) < before + 0.3:
                assert process.poll() is None
        finally:
            os.killpg(process.pid, signal.SIGKILL)
    assert demand_seconds([process.pid]) == 0
