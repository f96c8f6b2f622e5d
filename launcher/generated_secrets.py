"""Secrets that the launcher generates once and stores in the state folder."""

import json
import os
import secrets
from pathlib import Path

NAMES = (
    "sandbox_webhook_secret",
    "password_pepper",
    "page_token_secret",
    "webhook_secret_keys",
)
"""Names of settings: the first is BOXOFFICE_SANDBOX_WEBHOOK_SECRET."""

_BYTES = 32


def load(home: Path) -> dict[str, str]:
    """The secrets of `home` by name; generates missing ones."""
    path = home / "secrets.json"
    known: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
    missing = [name for name in NAMES if name not in known]
    if missing:
        known |= {name: secrets.token_urlsafe(_BYTES) for name in missing}
        _write(path, json.dumps(known, indent=2))
    return {name: known[name] for name in NAMES}


def _write(path: Path, content: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_name(path.name + ".new")
    fresh.unlink(missing_ok=True)
    with os.fdopen(os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(content)
        # Without the pepper no password is valid, so it must be on disk before it is used.
        file.flush()
        os.fsync(file.fileno())
    fresh.replace(path)
