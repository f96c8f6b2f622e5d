"""Checks that the generated files in build/ were compiled from the current protos.

Services and the gateway's generator check it before they start, so that both enforce the same
policies.
"""

import hashlib
from pathlib import Path

from mesh.paths import BUILD, PROTOS

STAMP = BUILD / "protos.sha256"
"""The digest of the compiled protos; launcher/protos.py writes it."""


class StaleError(Exception):
    """The protos have changed since they were compiled."""


def digest(protos: Path = PROTOS) -> str:
    """SHA-256 over the paths and contents of all protos."""
    total = hashlib.sha256()
    for path in sorted(protos.rglob("*.proto")):
        total.update(path.relative_to(protos).as_posix().encode() + b"\0" + path.read_bytes())
    return total.hexdigest()


def check(protos: Path = PROTOS, stamp: Path = STAMP) -> None:
    """Raises StaleError when the protos have changed. Does nothing without a protos/ folder."""
    if not protos.is_dir():
        return
    if not stamp.exists() or stamp.read_text() != digest(protos):
        raise StaleError("the protos have changed since they were compiled: run `make protos`")
