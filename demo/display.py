"""The progress display of the demo: a bar in a terminal, plain lines elsewhere."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from chaos.client import Tally
from chaos.workload.journal import Journal
from demo.kills import Kills

_TERMINAL_SECONDS = 0.2
_LINES_SECONDS = 2.0

ReadProgress = Callable[[], tuple[int, str]]
"""Returns the number of finished items, and details."""


class Display:
    """Prints to `console`; shows the bar only in a terminal."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress: Progress | None = None

    def say(self, text: str) -> None:
        self._console.print(escape(text), highlight=False, soft_wrap=True)

    @contextmanager
    def showing(self, title: str, total: int | None, read: ReadProgress) -> Iterator[None]:
        """Shows the progress that `read` returns, for the duration of the block."""
        watching = asyncio.create_task(self._watch(title, total, read))
        try:
            yield
        finally:
            watching.cancel()
            # Draws the final state before the next line is printed.
            if self._progress is not None:
                self._draw(self._progress, read)
                self._progress.stop()
                self._progress = None

    async def _watch(self, title: str, total: int | None, read: ReadProgress) -> None:
        if not self._console.is_terminal:
            await self._print_lines(title, total, read)
            return
        with suppress(asyncio.CancelledError):
            progress = self._progress = Progress(
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(bar_width=16),
                TextColumn("{task.fields[details]}"),
                TimeElapsedColumn(),
                console=self._console,
                transient=False,
            )
            progress.add_task(title, total=total, details="")
            progress.start()
            while True:
                self._draw(progress, read)
                await asyncio.sleep(_TERMINAL_SECONDS)

    def _draw(self, progress: Progress, read: ReadProgress) -> None:
        done, details = read()
        for task_id in progress.task_ids:
            progress.update(task_id, completed=done, details=details, refresh=True)

    async def _print_lines(self, title: str, total: int | None, read: ReadProgress) -> None:
        start = time.monotonic()
        while True:
            await asyncio.sleep(_LINES_SECONDS)
            done, details = read()
            count = f"{done} of {total}, " if total is not None else ""
            self.say(f"{title}, {time.monotonic() - start:.0f} s: {count}{details}")


def sale(journal: Journal, tally: Tally, kills: Kills) -> ReadProgress:
    """The progress of the sale: finished customers, and counts of bookings and retries."""

    def read() -> tuple[int, str]:
        parts = [
            f"{journal.active} active",
            f"{len(journal.placed_at)} placed",
            f"{journal.confirmed} confirmed",
            f"{journal.refused} refused",
            f"{sum(tally.retries.values())} retries",
        ]
        if kills.current is not None:
            parts.append(kills.current.action)
        return journal.done, ", ".join(parts)

    return read
