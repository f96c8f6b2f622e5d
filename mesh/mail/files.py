"""The transport that writes mails to files, for when no mail server is configured."""

import asyncio
from collections.abc import Sequence
from email.message import EmailMessage
from pathlib import Path

from mesh.mail.transport import Outcome, Verdict

MAX_FILES = 10_000
"""Beyond this number the oldest files are deleted."""

# Listing the folder costs more than writing a mail, so it is trimmed once per this many mails.
_TRIM_EVERY = 500


class FileTransport:
    """Writes each mail to `<folder>/<mail id>.eml`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._written = 0

    async def send(self, messages: Sequence[EmailMessage]) -> Sequence[Outcome]:
        return await asyncio.to_thread(self._write_all, messages)

    def _write_all(self, messages: Sequence[EmailMessage]) -> list[Outcome]:
        outcomes = [self._write(message) for message in messages]
        if self._written % _TRIM_EVERY < len(messages):
            self._trim()
        self._written += len(messages)
        return outcomes

    def _write(self, message: EmailMessage) -> Outcome:
        # Mail ids are UUIDv7, so the files sort by time.
        name = str(message["Message-ID"]).strip("<>").partition("@")[0]
        unfinished = self._folder / f".{name}.tmp"
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            unfinished.write_bytes(message.as_bytes())
            unfinished.rename(self._folder / f"{name}.eml")
        except OSError as error:
            return Outcome(Verdict.UNREACHABLE, type(error).__name__)
        return Outcome(Verdict.SENT, "file")

    def _trim(self) -> None:
        files = sorted(self._folder.glob("*.eml"))
        for path in files[: max(0, len(files) - MAX_FILES)]:
            path.unlink(missing_ok=True)
