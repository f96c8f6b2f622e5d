"""Secrets that the launcher generates once and stores in the state folder."""

import json
import secrets
from pathlib import Path

from launcher import files

NAMES = (
    "sandbox_webhook_secret",
    "password_pepper",
    "page_token_secret",
    "webhook_secret_keys",
    "queue_secret_keys",
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
        # Durably, because without the pepper no password is valid.
        files.replace(path, json.dumps(known, indent=2).encode())
    return {name: known[name] for name in NAMES}
