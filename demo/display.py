"""What is shown while the demo runs: a progress bar in a terminal, plain lines elsewhere."""

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from demo.chaos import Chaos
from demo.client import Tally
from demo.journal import Journal

_TERMINAL_SECONDS = 0.2
_LINES_SECONDS = 2.0

Look = Callable[[], tuple[int, str]]


class Display:
    """Prints to `console`; the bar is there only where somebody can see it move."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress: Progress | None = None

    def say(self, text: str) -> None:
        self._console.print(escape(text), highlight=False, soft_wrap=True)

    @contextmanager
    def showing(self, title: str, total: int | None, look: Look) -> Iterator[None]:
        """Shows, while the block runs, what `look` returns: how much is done, and details."""
        watching = asyncio.create_task(self._watch(title, total, look))
        try:
            yield
        finally:
            watching.cancel()
            # Lets the bar draw its end before the next line is printed.
            if self._progress is not None:
                self._draw(self._progress, look)
                self._progress.stop()
                self._progress = None

    async def _watch(self, title: str, total: int | None, look: Look) -> None:
        if not self._console.is_terminal:
            await self._print_lines(title, total, look)
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
                self._draw(progress, look)
                await asyncio.sleep(_TERMINAL_SECONDS)

    def _draw(self, progress: Progress, look: Look) -> None:
        done, details = look()
        for task_id in progress.task_ids:
            progress.update(task_id, completed=done, details=details, refresh=True)

    async def _print_lines(self, title: str, total: int | None, look: Look) -> None:
        began = time.monotonic()
        while True:
            await asyncio.sleep(_LINES_SECONDS)
            done, details = look()
            of = f"{done} of {total}, " if total is not None else ""
            self.say(f"{title}, {time.monotonic() - began:.0f} s: {of}{details}")


def sale(journal: Journal, tally: Tally, chaos: Chaos) -> Look:
    """How far the sale is: customers that are gone, and what happened so far."""

    def look() -> tuple[int, str]:
        parts = [
            f"{journal.inside} inside",
            f"{len(journal.placed_at)} placed",
            f"{journal.confirmed} confirmed",
            f"{journal.refused} refused",
            f"{sum(tally.retries.values())} retries",
        ]
        if chaos.current is not None:
            parts.append(chaos.current.deed)
        return journal.gone, ", ".join(parts)

    return look
