"""Threads for passwords: polite to the rest of the machine, but never starved.

The workers have a low priority, so that a burst of sign-ins does not slow down other calls (measured
by bench/login_stall.py). While all cores are busy they get almost no time. Then one more thread of
normal priority takes work that has waited `floor_seconds`. It begins at most one in `floor_seconds`,
so that a flood of sign-ins cannot use it against other calls.
"""

import os
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from typing import Any, TypeVar

NICENESS = 10
"""Of the workers: about a tenth of the share of other threads on the same core."""

_T = TypeVar("_T")


class HashingThreads:
    """Runs work in the order of its submission. Close it at the end."""

    def __init__(self, workers: int, *, floor_seconds: float) -> None:
        # With the time of submission.
        self._queue: deque[tuple[float, Future[Any], Callable[[], Any]]] = deque()
        self._changed = threading.Condition()
        self._is_closed = False
        self._threads = [
            threading.Thread(target=self._work, name=f"bcrypt {n}", daemon=True)
            for n in range(workers)
        ]
        self._threads.append(
            threading.Thread(
                target=self._keep_floor,
                args=(floor_seconds,),
                name="bcrypt floor",
                daemon=True,
            )
        )
        for thread in self._threads:
            thread.start()

    def submit(self, work: Callable[[], _T]) -> Future[_T]:
        future: Future[_T] = Future()
        with self._changed:
            self._queue.append((time.monotonic(), future, work))
            # One alone could be the thread for the floor, which does not take new work.
            self._changed.notify_all()
        return future

    def close(self) -> None:
        """Cancels what has not begun and waits for the rest."""
        with self._changed:
            self._is_closed = True
            for _, future, _ in self._queue:
                future.cancel()
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _work(self) -> None:
        # Linux has a niceness per thread; other systems do not find a process with a thread's id.
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), NICENESS)
        self._run()

    def _keep_floor(self, seconds: float) -> None:
        self._run(seconds)

    def _run(self, pause_seconds: float = 0.0) -> None:
        """Runs work that has waited `pause_seconds`, at most one in `pause_seconds`."""
        earliest = 0.0
        while (task := self._next(pause_seconds, earliest)) is not None:
            earliest = time.monotonic() + pause_seconds
            future, work = task
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(work())
            except Exception as error:  # noqa: BLE001 - the caller gets it
                future.set_exception(error)

    def _next(
        self, wait_seconds: float, earliest: float
    ) -> tuple[Future[Any], Callable[[], Any]] | None:
        """The oldest work, once it has waited that long, and from `earliest` on. None when closed."""
        with self._changed:
            while not self._is_closed:
                left = None
                if self._queue:
                    due = max(self._queue[0][0] + wait_seconds, earliest)
                    left = due - time.monotonic()
                    if left <= 0:
                        _, future, work = self._queue.popleft()
                        return future, work
                self._changed.wait(left)
        return None
